use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::*;
use crate::dentry::Path;
use crate::mount::{Mount, MountNamespace};
use crate::open::{OpenFile, OpenFlags};
use crate::pipe;
use crate::sync::Mutex;
use crate::testing::{Asker, Tree};
use crate::walk::{How, View};

/// Process 7 with threads 7 and 9, and a zombie 12.
struct Two {
    tree: Tree,
    files: Vec<(i32, bool, Arc<OpenFile>)>,
    name: Mutex<Vec<u8>>,
}

impl Processes for Two {
    fn current(&self) -> (u32, u32) {
        (7, 9)
    }

    fn pids(&self) -> Vec<u32> {
        vec![12, 7]
    }

    fn threads(&self, pid: u32) -> Vec<u32> {
        if pid == 7 {
            vec![9, 7]
        } else {
            vec![pid]
        }
    }

    fn process(&self, pid: u32, tid: u32) -> Option<Process> {
        let state = if pid == 7 { b'S' } else { b'Z' };
        let uids = [0, if pid == 7 { 0 } else { 1000 }, 0, 0];
        let known = self.pids().contains(&pid) && self.threads(pid).contains(&tid);
        known.then(|| Process { pid, tid, state, uids, name: self.name.lock().clone(), ..Process::default() })
    }

    fn command_line(&self, pid: u32) -> Option<Vec<u8>> {
        (pid == 7).then(|| b"sh\0-c\0".to_vec())
    }

    fn set_oom_score_adj(&self, _: u32, _: i32) -> Result<()> {
        Ok(())
    }

    fn environment(&self, _: u32) -> Option<Vec<u8>> {
        None
    }

    fn auxiliary(&self, _: u32) -> Option<Vec<u8>> {
        None
    }

    fn areas(&self, _: u32) -> Vec<Area> {
        Vec::new()
    }

    fn files(&self, _: u32) -> Vec<(i32, bool, Arc<OpenFile>)> {
        self.files.clone()
    }

    fn places(&self, _: u32) -> Option<Places> {
        let root = self.tree.root.clone();
        Some(Places { root: root.clone(), working: root, executable: None })
    }

    fn limits(&self, _: u32) -> Option<[(u64, u64); 16]> {
        Some([(1, u64::MAX); 16])
    }

    fn namespace(&self, _: u32) -> Option<Arc<MountNamespace>> {
        Some(Arc::clone(&self.tree.namespace))
    }

    fn set_name(&self, _: u32, _: u32, name: &[u8]) -> Result<()> {
        *self.name.lock() = name.to_vec();
        Ok(())
    }

    fn system(&self) -> System {
        System { processors: 3, memory_bytes: 1 << 30, loads_percent: [5, 120, 0], ..System::default() }
    }

    fn uuid(&self) -> String {
        "u".into()
    }
}

/// A tree with the procfs of `Two` at /proc; descriptors 3 and 4 are a pipe.
fn with_proc(run: impl Fn(&View<'_>, &Path)) {
    let asker = Asker::root();
    let context = asker.context();
    let (read, write) = pipe::pipe(&context, OpenFlags(0)).unwrap();
    let files = vec![(3, true, read), (4, false, write)];
    let source = Arc::new(Two { tree: Tree::new(), files, name: Mutex::new(b"sh".to_vec()) });
    let (tree, view) = (&source.tree, source.tree.view(&context));
    let at = view.mkdir(&tree.root, b"proc", 0o755).unwrap();
    let proc = procfs(source.clone(), crate::Timestamp::ZERO);
    tree.namespace.mount(Mount::new(proc, b"proc", 0), at).unwrap();
    run(&view, &tree.root);
}

fn get(view: &View<'_>, root: &Path, path: &str) -> Result<String> {
    let (file, mut out) = (view.open(root, path.as_bytes(), OpenFlags(0), 0, 0)?, vec![0; 4096]);
    let count = file.read(view.context, &mut out)?;
    Ok(String::from_utf8_lossy(&out[..count]).into_owned())
}

fn link(view: &View<'_>, root: &Path, path: &str) -> Result<String> {
    let path = view.walk(root, path.as_bytes(), How::NO_FOLLOW)?;
    Ok(String::from_utf8_lossy(&view.read_link(&path)?).into_owned())
}

#[test]
fn processes_are_found_by_number_and_by_self() {
    with_proc(|view, root| {
        assert_eq!(link(view, root, "proc/self"), Ok("7".into()));
        assert_eq!(link(view, root, "proc/thread-self"), Ok("7/task/9".into()));
        assert_eq!(get(view, root, "proc/self/cmdline"), Ok("sh\0-c\0".into()));
        assert_eq!(get(view, root, "proc/12/cmdline"), Err(Errno::SRCH));
        for missing in ["proc/8", "proc/07", "proc/+7", "proc/7/task/8", "proc/7/nothing", "proc/99999999999"] {
            assert_eq!(get(view, root, missing), Err(Errno::NOENT), "{missing}");
        }
        let zombie = view.walk(root, b"proc/12", How::FOLLOW).unwrap();
        assert_eq!(zombie.inode().metadata().unwrap().uid, 1000);
        assert_eq!(get(view, root, "proc/sys/kernel/random/uuid"), Ok("u\n".into()));
        assert_eq!(get(view, root, "proc/loadavg"), Ok("0.05 1.20 0.00 0/0 0\n".into()));
    });
}

#[test]
fn descriptors_lead_to_their_files_and_pipes_open_again() {
    with_proc(|view, root| {
        assert!(link(view, root, "proc/self/fd/3").unwrap().starts_with("pipe:["));
        assert_eq!(link(view, root, "proc/self/cwd"), Ok("/".into()));
        assert_eq!(link(view, root, "proc/self/fd/5"), Err(Errno::NOENT));
        let write = view.open(root, b"proc/self/fd/4", OpenFlags(OpenFlags::WRONLY), 0, 0);
        assert_eq!(write.err(), Some(Errno::NXIO)); // the pipe's opener is the kernel's `Devices`
        assert!(get(view, root, "proc/self/fdinfo/3").unwrap().contains("flags:\t02000000\n"));
        let mounts = get(view, root, "proc/mounts").unwrap();
        assert_eq!(mounts, "tmpfs / tmpfs rw 0 0\nproc /proc proc rw 0 0\n");
        assert!(get(view, root, "proc/self/mountinfo").unwrap().ends_with(" / /proc rw - proc proc rw\n"));
    });
}

#[test]
fn a_name_can_be_written_and_nothing_else_can() {
    with_proc(|view, root| {
        let open = |path: &str, flags| view.open(root, path.as_bytes(), OpenFlags(flags), 0, 0);
        let file = open("proc/self/comm", OpenFlags::WRONLY | OpenFlags::TRUNC).unwrap();
        assert_eq!(file.write(view.context, b"a-name-that-is-too-long\n"), Ok(24));
        assert_eq!(get(view, root, "proc/self/comm"), Ok("a-name-that-is-\n".into()));
        assert_eq!(open("proc/self/status", OpenFlags::WRONLY).err(), Some(Errno::ACCES));
        assert_eq!(view.mkdir(root, b"proc/new", 0o755).err(), Some(Errno::PERM));
    });
}

#[test]
fn a_listing_goes_on_where_it_was() {
    with_proc(|view, root| {
        let (mut seen, all) = (Vec::new(), view.open(root, b"proc", OpenFlags(0), 0, 0).unwrap());
        loop {
            let before = seen.len();
            let mut add = |entry: crate::inode::DirEntry<'_>| {
                let room = seen.len() == before;
                if room {
                    seen.push(String::from_utf8_lossy(entry.name).into_owned());
                }
                room
            };
            all.read_dir(&mut add).unwrap();
            if seen.len() == before {
                break;
            }
        }
        assert_eq!(seen[seen.len() - 4..], ["self", "thread-self", "7", "12"]);
        let once: std::collections::BTreeSet<_> = seen.iter().collect();
        assert!(seen.contains(&"meminfo".into()) && seen.len() > 20 && once.len() == seen.len());
    });
}

fn host(name: &str) -> String {
    std::fs::read_to_string(format!("/proc/self/{name}")).unwrap()
}

/// One line of the host's maps as data.
fn area(line: &str) -> Area {
    let mut fields = line.splitn(6, ' ');
    let mut next = || fields.next().unwrap_or_default();
    let ((start, end), access) = (next().split_once('-').unwrap(), next().as_bytes().to_vec());
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let offset = hex(next());
    let (major, minor) = next().split_once(':').unwrap();
    let protection =
        access.iter().zip([(b'r', 1), (b'w', 2), (b'x', 4)]).map(|(has, (is, bit))| if *has == is { bit } else { 0 });
    Area {
        start: hex(start),
        end: hex(end),
        protection: protection.sum(),
        shared: access[3] == b's',
        offset,
        device: crate::kind::make_device(hex(major) as u32, hex(minor) as u32),
        inode: next().parse().unwrap(),
        name: next().trim_start().into(),
        ..Area::default()
    }
}

#[test]
fn maps_and_limits_are_written_as_linux_writes_them() {
    let text = host("maps");
    let areas: Vec<Area> = text.lines().map(area).collect();
    assert!(areas.len() > 3);
    assert_eq!(String::from_utf8(stat::maps(&areas)).unwrap(), text);
    let text = host("limits");
    let value = |row: &str, column: usize| row[column..].split(' ').next().unwrap().parse().unwrap_or(u64::MAX);
    let values: Vec<(u64, u64)> = text.lines().skip(1).map(|row| (value(row, 26), value(row, 47))).collect();
    assert_eq!(String::from_utf8(stat::limits(&values.try_into().unwrap())).unwrap(), text);
}

#[test]
fn stat_and_status_have_the_fields_where_linux_has_them() {
    let text = host("stat");
    let theirs: Vec<&str> = text[text.rfind(')').unwrap()..].split_whitespace().collect();
    let number = |field: usize| theirs[field - 2].parse::<u64>().unwrap();
    let page = 4096;
    let process = Process {
        parent: number(4) as u32,
        group: number(5) as u32,
        session: number(6) as u32,
        state: theirs[1].as_bytes()[0],
        terminal: number(7),
        terminal_group: theirs[6].parse().unwrap(),
        thread_count: number(20) as u32,
        user_ticks: number(14),
        start_ticks: number(22),
        size_bytes: number(23),
        resident_bytes: number(24) * page,
        exit_signal: number(38) as i32,
        ..Process::default()
    };
    let ours = String::from_utf8(stat::stat(&process)).unwrap();
    let ours: Vec<&str> = ours[ours.rfind(')').unwrap()..].split_whitespace().collect();
    assert_eq!(ours.len(), theirs.len());
    for field in [3, 4, 5, 6, 7, 8, 14, 20, 22, 23, 24, 38] {
        assert_eq!(ours[field - 2], theirs[field - 2], "field {field}");
    }
    let names = |text: &str| text.lines().map(|row| row.split(':').next().unwrap().to_string()).collect::<Vec<_>>();
    let (ours, theirs) = (names(&String::from_utf8(stat::status(&process)).unwrap()), names(&host("status")));
    let mut rest = theirs.iter();
    assert!(ours.iter().all(|name| rest.any(|other| other == name)), "{ours:?}");
}
