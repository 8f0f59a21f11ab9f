//! mount(2) as the host words it.

use crate::agent::Agent;
use crate::fault::{invalid, wrong_state, During, Reply};
use crate::proto::guest::GuestMount;
use crate::streams::Patience;
use crate::{devices, inside, template};
use libc::c_ulong;
use rustix::fs::CWD;
use rustix::mount::{open_tree, OpenTreeFlags};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the host has set no time for the call.
const TAG_LIMIT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_millis(200);

/// mount(8)'s words for flags; every other option is the file system's own.
const FLAGS: [(&str, c_ulong, bool); 17] = [
    ("ro", libc::MS_RDONLY, true),
    ("rw", libc::MS_RDONLY, false),
    ("nosuid", libc::MS_NOSUID, true),
    ("suid", libc::MS_NOSUID, false),
    ("nodev", libc::MS_NODEV, true),
    ("dev", libc::MS_NODEV, false),
    ("noexec", libc::MS_NOEXEC, true),
    ("exec", libc::MS_NOEXEC, false),
    ("sync", libc::MS_SYNCHRONOUS, true),
    ("dirsync", libc::MS_DIRSYNC, true),
    ("noatime", libc::MS_NOATIME, true),
    ("nodiratime", libc::MS_NODIRATIME, true),
    ("relatime", libc::MS_RELATIME, true),
    ("strictatime", libc::MS_STRICTATIME, true),
    ("bind", libc::MS_BIND, true),
    ("rbind", libc::MS_BIND | libc::MS_REC, true),
    ("remount", libc::MS_REMOUNT, true),
];

/// mount(8)'s words for what is done to the mount point afterwards.
const AFTERWARDS: &str = "X-mount.";

/// (flags, the file system's own options).
pub fn parse(options: &[String]) -> (c_ulong, String) {
    let (mut flags, mut data) = (0, Vec::new());
    let ours = |option: &&String| !["", "defaults"].contains(&option.as_str()) && !option.starts_with(AFTERWARDS);
    for option in options.iter().filter(ours) {
        match FLAGS.iter().find(|(word, ..)| word == option) {
            Some((_, flag, true)) => flags |= flag,
            Some((_, flag, false)) => flags &= !flag,
            None => data.push(option.as_str()),
        }
    }
    (flags, data.join(","))
}

/// Mounts; waits for the device that it names.
pub fn mount(agent: &Agent, wanted: &GuestMount, patience: &Patience) -> Reply<()> {
    let target = Path::new(&wanted.target);
    if !target.is_absolute() {
        return Err(invalid(format!("the target {:?} is not absolute", wanted.target)));
    }
    let source = match &wanted.device {
        Some(device) => format!("/dev/{}", devices::await_there(agent, device, patience)?.name),
        None => wanted.source.clone(),
    };
    let (mut flags, data) = parse(&wanted.options);
    if wanted.r#type == "bind" {
        flags |= libc::MS_BIND;
    }
    make_target(target, flags & libc::MS_BIND != 0 && Path::new(&source).is_file())?;
    let words = || format!("cannot mount {source} ({}) at {}", wanted.r#type, wanted.target);
    if flags & libc::MS_BIND == 0 {
        let mount = || drupe_sys::mount::mount(&source, target, &wanted.r#type, flags, &data);
        if wanted.r#type != "virtiofs" {
            return mount().during(words);
        }
        template::take_out(agent)?;
        return await_tag(agent, patience, mount).during(words);
    }
    let bind = libc::MS_BIND | flags & libc::MS_REC;
    drupe_sys::mount::mount(&source, target, "", bind, "").during(words)?;
    own(target, &wanted.options)?;
    match flags & !bind {
        0 => Ok(()),
        more => drupe_sys::mount::mount("", target, "", libc::MS_REMOUNT | libc::MS_BIND | more, "").during(words),
    }
}

/// Until the device with this tag is there: nothing but a mount that succeeds tells (before Linux 6.9).
fn await_tag(agent: &Agent, patience: &Patience, mount: impl Fn() -> std::io::Result<()>) -> std::io::Result<()> {
    let deadline = patience.deadline.unwrap_or_else(|| Instant::now() + TAG_LIMIT);
    loop {
        match mount() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => {
                // Some time before the end, so that the kernel's word gets out.
                let until = deadline.checked_sub(ANSWER).unwrap_or(deadline);
                if agent.await_news(Some(patience.link), Some(until)).is_err() {
                    return Err(error);
                }
            }
            result => return result,
        }
    }
}

/// X-mount.owner, X-mount.group and X-mount.mode: of a directory that is mounted on itself, so that it is there.
fn own(target: &Path, options: &[String]) -> Reply<()> {
    let number = |word: &str, radix| {
        let text = options.iter().find_map(|option| option.strip_prefix(AFTERWARDS)?.strip_prefix(word));
        text.map(|text| u32::from_str_radix(text, radix))
            .transpose()
            .map_err(|_| invalid(format!("{word} has no number")))
    };
    let (uid, gid, mode) = (number("owner=", 10)?, number("group=", 10)?, number("mode=", 8)?);
    let words = || format!("cannot give {} away", target.display());
    if uid.is_some() || gid.is_some() {
        std::os::unix::fs::chown(target, uid, gid).during(words)?;
    }
    mode.map_or(Ok(()), |mode| std::fs::set_permissions(target, std::fs::Permissions::from_mode(mode)).during(words))
}

fn make_target(target: &Path, is_file: bool) -> Reply<()> {
    let directory = if is_file { target.parent().unwrap_or(target) } else { target };
    std::fs::create_dir_all(directory).during(|| format!("cannot make {}", directory.display()))?;
    if is_file && !target.exists() {
        std::fs::write(target, "").during(|| format!("cannot make {}", target.display()))?;
    }
    Ok(())
}

/// Mounts in a container that lives: made here, and then moved into its mounts.
pub fn mount_inside(agent: &Agent, pid: u32, wanted: &GuestMount, patience: &Patience) -> Reply<()> {
    let here = agent.place.run.join("inside").join(wanted.target.trim_matches('/').replace('/', "-"));
    let target = here.to_string_lossy().into_owned();
    mount(agent, &GuestMount { target, ..wanted.clone() }, patience)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, &here, flags).during(|| format!("cannot take {}", here.display()));
    let moved = tree.and_then(|tree| {
        inside::run(pid, || {
            let target = Path::new(&wanted.target);
            make_target(target, here_is_file(&tree))?;
            drupe_sys::mount::move_mount(&tree, target).during(|| format!("cannot mount at {}", wanted.target))
        })
    });
    let cleared = unmount_below(&here);
    let _ = std::fs::remove_dir(&here).or_else(|_| std::fs::remove_file(&here));
    moved.and(cleared)
}

fn here_is_file(tree: &impl AsFd) -> bool {
    rustix::fs::fstat(tree).is_ok_and(|stat| !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Unmounts in a container that lives. FailedPrecondition while something there uses it.
pub fn unmount_inside(pid: u32, target: &str) -> Reply<()> {
    inside::run(pid, || match drupe_sys::mount::umount(Path::new(target), 0) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(wrong_state(format!("{target} is in use"))),
        result => result.during(|| format!("cannot unmount {target}")),
    })
}

/// Unmounts all that is mounted at or below `top`, last first.
pub fn unmount_below(top: &Path) -> Reply<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").during(|| "cannot read the mount table")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let points: Vec<String> = points.filter(|point| Path::new(point).starts_with(top)).collect();
    for point in points.iter().rev() {
        drupe_sys::mount::umount(Path::new(point), 0)
            .or_else(|_| drupe_sys::mount::umount(Path::new(point), libc::MNT_DETACH))
            .during(|| format!("cannot unmount {point}"))?;
    }
    Ok(())
}

/// proc(5): space, tab, newline and backslash are written as \040 and so on.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_string(), |text, (code, character)| text.replace(code, character))
}
