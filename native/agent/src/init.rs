//! What PID 1 does before anybody can call: a root that pivot_root(2) accepts, the kernel's file systems, modules.

use crate::fault::{not_found, During, Reply};
use crate::{devices, modules};
use drupe_sys::mount::mount;
use rustix::process::{chdir, chroot};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

const DISK_LIMIT: Duration = Duration::from_secs(20);
/// Nobody listens to uevents yet.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// source, target, type, flags, options
const MOUNTS: [(&str, &str, &str, libc::c_ulong, &str); 10] = [
    ("proc", "/proc", "proc", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
    ("sysfs", "/sys", "sysfs", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
    ("devtmpfs", "/dev", "devtmpfs", libc::MS_NOSUID, "mode=755"),
    ("devpts", "/dev/pts", "devpts", libc::MS_NOSUID | libc::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
    ("mqueue", "/dev/mqueue", "mqueue", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
    ("tmpfs", "/run", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
    ("tmpfs", "/mnt", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=755"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, ""),
];

/// Everything, in order; what fails is said on the console, and the rest goes on: the host will see what is missing.
pub fn begin() {
    if is_initial_root() {
        if let Err(fault) = go_to_disk() {
            eprintln!("drupe-agent: {}", fault.words);
        }
        say("leave the initial root", leave_initial_root());
    }
    MOUNTS.iter().for_each(mount_one);
    say("let the kernel ask for modules", fs::write("/proc/sys/kernel/modprobe", "/sbin/modprobe"));
    modules::load_boot();
    devices::load_present();
    say("hand controllers on", crate::service::hand_on(Path::new(crate::cgroup::TOP)));
    say("choose where memory goes", crate::online::set_policy());
    say("start lo", drupe_sys::net::loopback_up());
}

fn say(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        eprintln!("drupe-agent: cannot {what}: {error}");
    }
}

fn mount_one((source, target, kind, flags, options): &(&str, &str, &str, libc::c_ulong, &str)) {
    let result = fs::create_dir_all(target).and_then(|()| mount(source, Path::new(target), kind, *flags, options));
    say(&format!("mount {target}"), result);
}

fn is_initial_root() -> bool {
    const STATFS_TMPFS: i64 = 0x0102_1994;
    const STATFS_RAMFS: i64 = 0x8584_58f6;
    [STATFS_TMPFS, STATFS_RAMFS].iter().any(|magic| drupe_sys::process::is_filesystem(Path::new("/"), *magic))
}

/// An initramfs is the one root that nobody can pivot away from. A bind mount of it, moved onto it, is like any other.
fn leave_initial_root() -> io::Result<()> {
    fs::create_dir_all("/root")?;
    mount("/", Path::new("/root"), "", libc::MS_BIND, "")?;
    move_to("/root")
}

fn move_to(root: &str) -> io::Result<()> {
    chdir(root)?;
    mount(".", Path::new("/"), "", libc::MS_MOVE, "")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

/// `drupe.root=SERIAL`: the root is an EROFS disk of that serial, and this initramfs has only what it takes to get there.
/// Does not come back where there is one: the agent of the disk goes on.
fn go_to_disk() -> Reply<()> {
    MOUNTS[..3].iter().for_each(mount_one);
    let serial = command_line("drupe.root");
    if let Some(serial) = &serial {
        devices::load_present();
        modules::load_for("fs-erofs");
        let disk = await_disk(serial)?;
        mount(&disk, Path::new("/root"), "erofs", libc::MS_RDONLY, "").during(|| format!("cannot mount {disk}"))?;
    }
    for (_, target, ..) in MOUNTS[..3].iter().rev() {
        drupe_sys::mount::umount(Path::new(target), libc::MNT_DETACH).during(|| format!("cannot unmount {target}"))?;
    }
    if serial.is_none() {
        return Ok(());
    }
    for spent in ["/lib", "/usr"] {
        let _ = fs::remove_dir_all(spent); // memory that nobody needs any more
    }
    move_to("/root").during(|| "cannot change to the root on the disk")?;
    Err(drupe_sys::process::exec(Path::new("/sbin/drupe-agent"), &[c"drupe-agent".into()])).during(|| "no agent there")
}

fn await_disk(serial: &str) -> Reply<String> {
    let late = Instant::now() + DISK_LIMIT;
    loop {
        if let Some(disk) = devices::find_disk(serial) {
            return Ok(format!("/dev/{}", disk.name));
        }
        if Instant::now() > late {
            return Err(not_found(format!("no disk has the serial {serial:?}")));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// The value of a word of the kernel's command line: `drupe.channel=serial`.
pub fn command_line(word: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    text.split_whitespace().rev().find_map(|part| Some(part.strip_prefix(word)?.strip_prefix('=')?.to_string()))
}
