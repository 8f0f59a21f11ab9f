//! A cgroup tree that crun accepts; how a process joins a cgroup.

use crate::{check, mount, process};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

const CGROUP2_MAGIC: i64 = 0x6367_7270;
const TOP: &str = "/sys/fs/cgroup";
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Whether a cgroup v2 tree is mounted beside the v1 controllers (systemd's "hybrid").
pub fn is_hybrid() -> bool {
    !process::is_filesystem(Path::new(TOP), CGROUP2_MAGIC) && process::is_filesystem(Path::new(UNIFIED), CGROUP2_MAGIC)
}

/// In our own mount namespace: crun refuses to work next to a hybrid tree. A v1 hierarchy takes the place of the v2 one:
/// crun makes a directory per container there all the same, and in a plain file system could not remove it again.
/// Without one, a private tmpfs takes them.
pub fn hide_unified() -> io::Result<()> {
    if !is_hybrid() {
        return Ok(());
    }
    let unified = Path::new(UNIFIED);
    let stand_in = || {
        mount::mount("/sys/fs/cgroup/systemd", unified, "", libc::MS_BIND, "")
            .or_else(|_| mount::mount("none", unified, "tmpfs", 0, "mode=755"))
    };
    mount::mount("", Path::new(TOP), "", libc::MS_PRIVATE, "")
        .and_then(|()| mount::umount(unified, libc::MNT_DETACH))
        .and_then(|()| stand_in())
}

/// Moves this process, which has one thread, into a cgroup, by a file of it (v1: `tasks`; v2: `cgroup.procs`) that was opened by
/// whoever may.
pub fn join(file: &impl AsFd) -> io::Result<()> {
    // SAFETY: the byte is only read.
    let written = unsafe { libc::write(file.as_fd().as_raw_fd(), c"0".as_ptr().cast(), 1) };
    check(written as i32).map(drop)
}
