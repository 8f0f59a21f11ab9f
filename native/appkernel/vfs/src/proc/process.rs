//! /proc/PID and /proc/PID/task/TID.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::{net, number, numbered, oom, stat, Places, Source};
use crate::cred::CAP_SYS_RESOURCE;
use crate::dentry::Path;
use crate::inode::LinkTarget;
use crate::kind::FileType;
use crate::mount::Mount;
use crate::open::OpenFile;
use crate::pseudo::{Directory, Entry, Fixed, Item, Listed};

const NAME_MAX_BYTES: usize = 15;

/// The directory of a process, or with `thread` of one of its threads; None when it is gone.
pub(super) fn directory(source: &Source, pid: u32, tid: u32, thread: bool) -> Option<Item> {
    let process = source.process(pid, tid)?;
    let owner = (process.uids[1], process.gids[1]);
    let maker = Maker { source: Arc::clone(source), pid, tid, owner };
    let mut entries = maker.entries();
    if thread {
        entries.push(("children", maker.text(0o444, children)));
    } else {
        let tasks = Tasks { source: Arc::clone(source), pid };
        entries.push(("task", maker.own(Item::directory(tasks), 0o555)));
    }
    Some(maker.own(Item::directory(Fixed::new(entries)), 0o555))
}

struct Maker {
    source: Source,
    pid: u32,
    tid: u32,
    owner: (u32, u32),
}

impl Maker {
    fn own(&self, item: Item, permissions: u32) -> Item {
        item.with(permissions, self.owner)
    }

    fn text(&self, permissions: u32, make: fn(&Source, u32, u32) -> Option<Vec<u8>>) -> Item {
        let (source, pid, tid) = (Arc::clone(&self.source), self.pid, self.tid);
        self.own(Item::text(move || make(&source, pid, tid).ok_or(Errno::SRCH)), permissions)
    }

    fn place(&self, choose: fn(Places) -> Option<Path>) -> Item {
        let (source, pid) = (Arc::clone(&self.source), self.pid);
        let lead = move || source.places(pid).and_then(choose).map(LinkTarget::Jump).ok_or(Errno::NOENT);
        self.own(Item::link(lead), 0o777).guarded()
    }

    fn name(&self) -> Item {
        let (read, write, pid, tid) = (Arc::clone(&self.source), Arc::clone(&self.source), self.pid, self.tid);
        let generate = move || read.process(pid, tid).map(|process| stat::line(&process.name)).ok_or(Errno::SRCH);
        let accept = move |_: &crate::Context, data: &[u8]| {
            let name = data.split(|byte| [b'\n', 0].contains(byte)).next().unwrap_or_default();
            write.set_name(pid, tid, &name[..name.len().min(NAME_MAX_BYTES)])
        };
        self.own(Item::new(Entry::Control(Arc::new(generate), Arc::new(accept))), 0o644)
    }

    /// Kept and told; which program ends when memory is short, the host decides by size.
    fn score(&self, way: &'static oom::Way) -> Item {
        let (read, write, pid, tid) = (Arc::clone(&self.source), Arc::clone(&self.source), self.pid, self.tid);
        let current = |source: &Source, pid, tid| Ok(source.process(pid, tid).ok_or(Errno::SRCH)?.oom_score_adj);
        let generate = move || current(&read, pid, tid).map(|score| format!("{}\n", (way.show)(score)).into_bytes());
        let accept = move |context: &crate::Context, data: &[u8]| {
            let score = way.parse(data)?;
            let may_lower = context.credentials.capable(CAP_SYS_RESOURCE);
            if score < (way.least)(current(&write, pid, tid)?) && !may_lower {
                return Err(Errno::ACCES);
            }
            write.set_oom_score_adj(pid, score)
        };
        self.own(Item::new(Entry::Control(Arc::new(generate), Arc::new(accept))), 0o644)
    }

    fn entries(&self) -> Vec<(&'static str, Item)> {
        let (source, pid) = (&self.source, self.pid);
        let files = |info| self.own(Item::directory(Files { source: Arc::clone(source), pid, info }), 0o500);
        let fixed = |text| self.own(Item::fixed(text), 0o444);
        vec![
            ("stat", self.text(0o444, |s, pid, tid| Some(stat::stat(&s.process(pid, tid)?)))),
            ("statm", self.text(0o444, |s, pid, tid| Some(stat::statm(&s.process(pid, tid)?)))),
            ("status", self.text(0o444, |s, pid, tid| Some(stat::status(&s.process(pid, tid)?)))),
            ("comm", self.name()),
            ("cmdline", self.text(0o444, |s, pid, _| s.command_line(pid))),
            ("environ", self.text(0o400, |s, pid, _| s.environment(pid)).guarded()),
            ("auxv", self.text(0o400, |s, pid, _| s.auxiliary(pid)).guarded()),
            ("maps", self.text(0o444, |s, pid, _| Some(stat::maps(&s.areas(pid)))).guarded()),
            ("smaps", self.text(0o444, |s, pid, _| Some(stat::smaps(&s.areas(pid)))).guarded()),
            ("smaps_rollup", self.text(0o444, |s, pid, _| Some(stat::smaps_rollup(&s.areas(pid)))).guarded()),
            ("limits", self.text(0o444, |s, pid, _| Some(stat::limits(&s.limits(pid)?)))),
            ("mounts", self.text(0o444, |s, pid, _| mounts(s, pid, mount_line))),
            ("mountinfo", self.text(0o444, |s, pid, _| mounts(s, pid, mountinfo_line))),
            ("fd", files(false)),
            ("fdinfo", files(true)),
            ("exe", self.place(|places| places.executable)),
            ("cwd", self.place(|places| Some(places.working))),
            ("root", self.place(|places| Some(places.root))),
            ("cgroup", fixed("0::/\n")),
            ("oom_score", self.text(0o444, |s, pid, tid| Some(oom::score(&s.process(pid, tid)?, &s.system())))),
            ("oom_score_adj", self.score(&oom::SCORE_ADJ)),
            ("oom_adj", self.score(&oom::ADJ)),
            ("cpuset", fixed("/\n")),
            ("coredump_filter", fixed("00000033\n")),
            ("net", self.own(Item::directory(net::Network(Arc::clone(source))), 0o555)),
            ("loginuid", fixed("4294967295")),
            ("sessionid", fixed("4294967295")),
            ("personality", fixed("00000000\n")),
            ("wchan", fixed("0")),
            ("uid_map", fixed("         0          0 4294967295\n")),
            ("gid_map", fixed("         0          0 4294967295\n")),
            ("setgroups", fixed("allow\n")),
            (
                "ns",
                self.own(
                    Item::directory(Fixed::new(NAMESPACES.map(|(name, text)| (name, Item::link_to(text))))),
                    0o511,
                ),
            ),
        ]
    }
}

/// The namespaces that everything in a pod is in: there are no others.
const NAMESPACES: [(&str, &str); 10] = [
    ("cgroup", "cgroup:[4026531835]"),
    ("ipc", "ipc:[4026531839]"),
    ("mnt", "mnt:[4026531841]"),
    ("net", "net:[4026531840]"),
    ("pid", "pid:[4026531836]"),
    ("pid_for_children", "pid:[4026531836]"),
    ("time", "time:[4026531834]"),
    ("time_for_children", "time:[4026531834]"),
    ("user", "user:[4026531837]"),
    ("uts", "uts:[4026531838]"),
];

/// What a thread has forked; which of a process's threads that was, is not known: the first one.
fn children(source: &Source, pid: u32, tid: u32) -> Option<Vec<u8>> {
    let all = source.pids();
    let parent = |child: &u32| source.process(*child, *child).map(|process| process.parent);
    let own = all.iter().filter(|child| tid == pid && parent(child) == Some(pid));
    Some(own.map(|child| format!("{child} ")).collect::<String>().into_bytes())
}

struct Tasks {
    source: Source,
    pid: u32,
}

impl Directory for Tasks {
    fn child(&self, name: &[u8]) -> Option<Item> {
        let tid = number(name).filter(|tid| self.source.threads(self.pid).contains(tid))?;
        directory(&self.source, self.pid, tid, true)
    }

    fn list(&self) -> Vec<Listed> {
        numbered(self.source.threads(self.pid), 1, FileType::Directory)
    }
}

/// /proc/PID/fd, or with `info` fdinfo.
struct Files {
    source: Source,
    pid: u32,
    info: bool,
}

impl Files {
    fn find(source: &Source, pid: u32, fd: i32) -> Result<(bool, Arc<OpenFile>)> {
        let all = source.files(pid);
        all.into_iter().find(|(at, ..)| *at == fd).map(|(_, close, file)| (close, file)).ok_or(Errno::NOENT)
    }

    fn permissions(file: &OpenFile) -> u32 {
        let (reads, writes) = (file.flags().reads(), file.flags().writes());
        0o100 | if reads { 0o400 } else { 0 } | if writes { 0o200 } else { 0 }
    }
}

impl Directory for Files {
    fn child(&self, name: &[u8]) -> Option<Item> {
        let fd = i32::try_from(number(name)?).ok()?;
        let (_, file) = Self::find(&self.source, self.pid, fd).ok()?;
        let owner =
            self.source.process(self.pid, self.pid).map_or((0, 0), |process| (process.uids[1], process.gids[1]));
        let (source, pid) = (Arc::clone(&self.source), self.pid);
        if self.info {
            let text = move || Self::find(&source, pid, fd).map(|(close, file)| stat::descriptor(close, &file));
            return Some(Item::text(text).with(0o444, owner));
        }
        let permissions = Self::permissions(&file);
        let lead = move || {
            let (_, file) = Self::find(&source, pid, fd)?;
            file.path().cloned().map(LinkTarget::Jump).ok_or(Errno::NOENT)
        };
        Some(Item::link(lead).with(permissions, owner).guarded())
    }

    fn list(&self) -> Vec<Listed> {
        let numbers = self.source.files(self.pid).iter().filter_map(|(fd, ..)| u32::try_from(*fd).ok()).collect();
        numbered(numbers, 1, if self.info { FileType::Regular } else { FileType::Symlink })
    }
}

fn mounts(source: &Source, pid: u32, line: fn(&Mount, &Path) -> Option<String>) -> Option<Vec<u8>> {
    let (namespace, root) = (source.namespace(pid)?, source.places(pid)?.root);
    let lines: Vec<String> = namespace.mounts().iter().filter_map(|mount| line(mount, &root)).collect();
    Some(lines.concat().into_bytes())
}

/// Where a mount is seen; None: not from this root.
fn point(mount: &Mount, root: &Path) -> Option<String> {
    if mount.id() == root.mount.id() {
        return Some("/".into());
    }
    let (text, reachable) = mount.covers()?.text(root);
    reachable.then(|| escaped(&text))
}

/// Blanks, tabs, newlines and backslashes in octal, as in fstab(5).
fn escaped(text: &[u8]) -> String {
    let mut out = String::new();
    for chunk in text.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                ' ' | '\t' | '\n' | '\\' => out.push_str(&format!("\\{:03o}", char as u32)),
                other => out.push(other),
            }
        }
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\{byte:03o}")));
    }
    out
}

fn mount_line(mount: &Mount, root: &Path) -> Option<String> {
    let (at, source) = (point(mount, root)?, escaped(mount.source()));
    Some(format!("{source} {at} {} {} 0 0\n", mount.file_system().name(), mount.options()))
}

fn mountinfo_line(mount: &Mount, root: &Path) -> Option<String> {
    let at = point(mount, root)?;
    let parent = mount.covers().map_or(mount.id(), |below| below.mount.id());
    let device = mount.root().inode().metadata().map_or(0, |metadata| metadata.device);
    let (major, minor) = crate::kind::split_device(device);
    let inner = Path::new(mount.covers().map_or_else(|| root.mount.clone(), |below| below.mount), mount.root().clone());
    let within = escaped(&below_root(&inner));
    let (id, source, name) = (mount.id(), escaped(mount.source()), mount.file_system().name());
    let (own, all) = (mount.own_options(), mount.file_system_options());
    Some(format!("{id} {parent} {major}:{minor} {within} {at} {own} - {name} {source} {all}\n"))
}

/// The mount's root as a path in its file system.
fn below_root(path: &Path) -> Vec<u8> {
    let (mut text, mut at) = (Vec::new(), Some(Arc::clone(&path.dentry)));
    while let Some(dentry) = at.filter(|dentry| dentry.parent().is_some()) {
        text.splice(..0, [&b"/"[..], &dentry.name()].concat());
        at = dentry.parent();
    }
    if text.is_empty() {
        text.push(b'/');
    }
    text
}
