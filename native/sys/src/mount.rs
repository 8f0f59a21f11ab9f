//! mount(2), umount2(2), mount_setattr(2), unshare(2), setns(2).

use crate::{c_path, c_str, check, check_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

/// mount(2). `data` may be empty.
pub fn mount(source: &str, target: &Path, fstype: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (source, target, fstype, data) = (c_str(source)?, c_path(target)?, c_str(fstype)?, c_str(data)?);
    let data = if data.as_bytes().is_empty() { ptr::null() } else { data.as_ptr() };
    // SAFETY: all pointers are NUL-terminated strings that outlive the call, or null where the kernel allows it.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype.as_ptr(), flags, data.cast()) })?;
    Ok(())
}

/// open_tree(2): a copy of what is mounted at `path` (links followed) and below it.
pub fn open_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: the path is NUL-terminated and only read; the new descriptor is ours.
    unsafe {
        let fd = check_long(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// fsopen(2), fsmount(2): a new file system in memory that is mounted nowhere, and goes with what is open of it.
pub fn detached_memory() -> io::Result<OwnedFd> {
    // FSCONFIG_CMD_CREATE, and FSOPEN_CLOEXEC as FSMOUNT_CLOEXEC, of linux/mount.h.
    const CREATE: libc::c_uint = 6;
    const CLOEXEC: libc::c_uint = 1;
    let none = ptr::null::<libc::c_char>();
    // SAFETY: the name is NUL-terminated, the pointers that are null may be; the new descriptors are ours.
    unsafe {
        let made =
            OwnedFd::from_raw_fd(check_long(libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), CLOEXEC))? as i32);
        check_long(libc::syscall(libc::SYS_fsconfig, made.as_raw_fd(), CREATE, none, none, 0))?;
        let mounted = check_long(libc::syscall(libc::SYS_fsmount, made.as_raw_fd(), CLOEXEC, 0))?;
        Ok(OwnedFd::from_raw_fd(mounted as i32))
    }
}

/// move_mount(2): mounts the tree behind `tree` (open_tree(2)) at `target`.
pub fn move_mount(tree: &impl AsFd, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    let (tree, empty) = (tree.as_fd().as_raw_fd(), c"".as_ptr());
    // SAFETY: both paths are NUL-terminated and only read; the descriptor is open.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, tree, empty, libc::AT_FDCWD, target.as_ptr(), libc::MOVE_MOUNT_F_EMPTY_PATH)
    };
    check_long(result)?;
    Ok(())
}

/// mount_setattr(2): sets the MOUNT_ATTR_ bits in `set` on the mount at `target`, below it too when `recursive`.
pub fn mount_setattr(target: &Path, set: u64, recursive: bool) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let target = c_path(target)?;
    let attributes = MountAttr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `target` is NUL-terminated, `attributes` is the kernel's struct of the size that is passed; both are
    // only read.
    let result = unsafe {
        let size = std::mem::size_of::<MountAttr>();
        libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, target.as_ptr(), flags, &attributes, size)
    };
    check_long(result)?;
    Ok(())
}

/// umount2(2).
pub fn umount(target: &Path, flags: libc::c_int) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: `target` is NUL-terminated.
    check(unsafe { libc::umount2(target.as_ptr(), flags) })?;
    Ok(())
}

/// unshare(2).
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers. A single-threaded caller loses nothing but the sharing it asks to lose.
    check(unsafe { libc::unshare(flags) })?;
    Ok(())
}

/// setns(2).
pub fn setns(fd: &impl AsFd, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open.
    check(unsafe { libc::setns(fd.as_fd().as_raw_fd(), kind) })?;
    Ok(())
}

/// pivot_root(2) of the directory that is the working directory now, onto itself, and the old root let go: from then on the
/// caller's root is what is mounted there, and nothing else.
pub fn make_root_of_here() -> io::Result<()> {
    let here = c".".as_ptr();
    // SAFETY: `here` is NUL-terminated and only read.
    unsafe {
        check_long(libc::syscall(libc::SYS_pivot_root, here, here))?;
        check(libc::umount2(here, libc::MNT_DETACH))?;
    }
    std::env::set_current_dir("/")
}
