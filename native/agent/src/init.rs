//! What PID 1 does before anybody can call: a root that pivot_root(2) accepts, the kernel's file systems, modules.

use crate::{devices, modules};
use drupe_sys::mount::mount;
use rustix::process::{chdir, chroot};
use std::fs;
use std::io;
use std::path::Path;

/// source, target, type, flags, options
const MOUNTS: [(&str, &str, &str, libc::c_ulong, &str); 9] = [
    ("proc", "/proc", "proc", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
    ("sysfs", "/sys", "sysfs", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
    ("devtmpfs", "/dev", "devtmpfs", libc::MS_NOSUID, "mode=755"),
    ("devpts", "/dev/pts", "devpts", libc::MS_NOSUID | libc::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
    ("mqueue", "/dev/mqueue", "mqueue", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
    ("tmpfs", "/run", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
];

/// Everything, in order; what fails is said on the console, and the rest goes on: the host will see what is missing.
pub fn begin() {
    say("leave the initial root", leave_initial_root());
    for (source, target, kind, flags, options) in MOUNTS {
        let result = fs::create_dir_all(target).and_then(|()| mount(source, Path::new(target), kind, flags, options));
        say(&format!("mount {target}"), result);
    }
    say("let the kernel ask for modules", fs::write("/proc/sys/kernel/modprobe", "/sbin/modprobe"));
    modules::load_boot();
    devices::load_present();
    say("hand controllers on", enable_controllers());
    say("choose where memory goes", crate::online::set_policy());
    say("start lo", drupe_sys::net::loopback_up());
}

fn say(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("drupe-agent: cannot {what}: {error}");
    }
}

/// An initramfs is the one root that nobody can pivot away from. A bind mount of it, moved onto it, is like any other.
fn leave_initial_root() -> io::Result<()> {
    const STATFS_TMPFS: i64 = 0x0102_1994;
    const STATFS_RAMFS: i64 = 0x8584_58f6;
    let is = |magic| drupe_sys::process::is_filesystem(Path::new("/"), magic);
    if !is(STATFS_TMPFS) && !is(STATFS_RAMFS) {
        return Ok(());
    }
    fs::create_dir_all("/root")?;
    mount("/", Path::new("/root"), "", libc::MS_BIND, "")?;
    chdir("/root")?;
    mount(".", Path::new("/"), "", libc::MS_MOVE, "")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

fn enable_controllers() -> io::Result<()> {
    let there = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    let words: Vec<String> = there.split_whitespace().map(|name| format!("+{name}")).collect();
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", words.join(" "))
}

/// The value of a word of the kernel's command line: `drupe.channel=serial`.
pub fn command_line(word: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    text.split_whitespace().rev().find_map(|part| Some(part.strip_prefix(word)?.strip_prefix('=')?.to_string()))
}
