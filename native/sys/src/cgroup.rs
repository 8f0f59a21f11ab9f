//! A cgroup tree that crun accepts.

use crate::{mount, process};
use std::io;
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
