//! Work on a container's files as its processes see them: from its root, within its mounts.

use crate::fault::{fault, Code, During, Reply};
use rustix::process::{chroot, fchdir};
use std::fs::File;

/// Runs `work` on a thread that has the root and the mounts of process `pid`: whatever symbolic links say, a path leads
/// nowhere else. The caller's own descriptors stay usable.
pub fn run<T: Send>(pid: u32, work: impl FnOnce() -> Reply<T> + Send) -> Reply<T> {
    let open = |name: &str| File::open(format!("/proc/{pid}/{name}")).during(|| format!("cannot enter process {pid}"));
    let (mounts, root) = (open("ns/mnt")?, open("root")?);
    let inside = move || {
        let words = || format!("cannot enter process {pid}");
        drupe_sys::mount::unshare(libc::CLONE_FS).during(words)?;
        drupe_sys::mount::setns(&mounts, libc::CLONE_NEWNS).during(words)?;
        fchdir(&root).during(words)?;
        chroot(".").during(words)?;
        drop((mounts, root));
        work()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("inside".into()).spawn_scoped(scope, inside);
        let thread = thread.during(|| "cannot start a thread")?;
        thread.join().unwrap_or_else(|_| Err(fault(Code::Internal, "the work inside of the container failed")))
    })
}
