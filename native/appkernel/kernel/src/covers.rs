//! Paths of a container that are masked, or read-only (runtime-spec, linux.maskedPaths and readonlyPaths). One that is not
//! there needs neither.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::dentry::Dentry;
use drupe_appkernel_vfs::devices;
use drupe_appkernel_vfs::inode::FileSystem;
use drupe_appkernel_vfs::mount::{MS_NOEXEC, MS_NOSUID, MS_RDONLY};
use drupe_appkernel_vfs::{Context, How, Mount, MountNamespace, Path, View};

use crate::pod::Pod;

/// Of the file system that covers a directory: nothing is written to it.
const EMPTY_BYTES: u64 = 4096;

/// Cover each: a directory with one that is empty, a file with the null device, as runc does.
pub fn mask(pod: &Pod, view: &View<'_>, paths: &[Vec<u8>]) -> Result<()> {
    for path in there(view, paths)? {
        let cover = match path.inode().metadata()?.is_directory() {
            true => Mount::new(pod.tmpfs(view.context, 0o755, Some(EMPTY_BYTES))?, b"tmpfs", MS_RDONLY),
            false => Mount::bind(&null(pod, view.context)?, MS_NOSUID | MS_NOEXEC),
        };
        view.namespace.mount(cover, path)?;
    }
    Ok(())
}

fn null(pod: &Pod, context: &Context<'_>) -> Result<Path> {
    let devices_of_its_own = pod.tmpfs(context, 0o755, None)?;
    devices::populate(context, &devices_of_its_own.root())?;
    let root = Mount::new(devices_of_its_own, b"tmpfs", 0).root_path();
    let dentry = root.dentry.lookup(b"null")?;
    Ok(Path::new(Arc::clone(&root.mount), dentry))
}

/// Make each read-only, with what is mounted on it as it is.
pub fn protect(view: &View<'_>, paths: &[Vec<u8>]) -> Result<()> {
    for path in there(view, paths)? {
        if Arc::ptr_eq(&path.dentry, path.mount.root()) {
            path.mount.set_flags(path.mount.flags() | MS_RDONLY);
            continue;
        }
        let again = Mount::bind(&path, path.mount.flags() | MS_RDONLY);
        let above = view.namespace.mounts();
        view.namespace.mount(Arc::clone(&again), path.clone())?;
        repeat(view.namespace, &above, &path.mount, &path.dentry, &again)?;
    }
    Ok(())
}

/// What lies on `old` below a place lies on `new` as well.
fn repeat(
    namespace: &MountNamespace,
    all: &[Arc<Mount>],
    old: &Arc<Mount>,
    below: &Arc<Dentry>,
    new: &Arc<Mount>,
) -> Result<()> {
    for mount in all {
        let Some(at) = mount.covers().filter(|at| Arc::ptr_eq(&at.mount, old) && at.dentry.is_below(below)) else {
            continue;
        };
        let again = Mount::bind(&mount.root_path(), mount.flags());
        namespace.mount(Arc::clone(&again), Path::new(Arc::clone(new), at.dentry))?;
        repeat(namespace, all, mount, mount.root(), &again)?;
    }
    Ok(())
}

fn there(view: &View<'_>, paths: &[Vec<u8>]) -> Result<Vec<Path>> {
    let walked = paths.iter().map(|path| view.walk(view.root, path, How::FOLLOW));
    walked.filter(|found| !matches!(found, Err(Errno::NOENT | Errno::NOTDIR))).collect()
}
