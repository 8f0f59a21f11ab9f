//! Names: making, moving, removing them; where a task stands.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::inode::RenameMode;
use drupe_appkernel_vfs::{Path, View};

use super::files::{self, CWD};
use super::Args;
use crate::kernel::{Done, Kernel};
use crate::task::Tid;

const AT_REMOVEDIR: u64 = 0x200;

/// Do something with a name at a path of the guest's.
fn name(
    kernel: &Kernel,
    tid: Tid,
    fd: u64,
    path: u64,
    act: impl FnOnce(&View<'_>, &Path, &[u8]) -> Result<()>,
) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let path = kernel.path_text(tid, path)?;
    let start = kernel.start(tid, &seat, fd, &path)?;
    let context = seat.context();
    act(&seat.view(&context), &start, &path)?;
    Ok(Done::Value(0))
}

pub fn mkdirat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    name(kernel, tid, args[0], args[1], |view, at, path| view.mkdir(at, path, args[2] as u32).map(drop))
}

pub fn mkdir(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    mkdirat(kernel, tid, &[CWD, args[0], args[1], 0, 0, 0])
}

/// dev_t as programs give it to mknod(2): 32 bits.
pub fn mknodat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (mode, device) = (args[2] as u32, u64::from(args[3] as u32));
    name(kernel, tid, args[0], args[1], |view, at, path| view.mknod(at, path, mode, device).map(drop))
}

pub fn mknod(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    mknodat(kernel, tid, &[CWD, args[0], args[1], args[2], 0, 0])
}

pub fn unlinkat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, path, flags, ..] = *args;
    match flags & 0xffff_ffff {
        0 => name(kernel, tid, fd, path, |view, at, path| view.unlink(at, path)),
        AT_REMOVEDIR => name(kernel, tid, fd, path, |view, at, path| view.rmdir(at, path)),
        _ => Err(Errno::INVAL),
    }
}

pub fn unlink(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    unlinkat(kernel, tid, &[CWD, args[0], 0, 0, 0, 0])
}

pub fn rmdir(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    unlinkat(kernel, tid, &[CWD, args[0], AT_REMOVEDIR, 0, 0, 0])
}

pub fn symlinkat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let target = kernel.path_text(tid, args[0])?;
    name(kernel, tid, args[1], args[2], |view, at, path| view.symlink(&target, at, path).map(drop))
}

pub fn symlink(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    symlinkat(kernel, tid, &[args[0], CWD, args[1], 0, 0, 0])
}

pub fn linkat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let old = files::link_source(kernel, tid, &seat, args)?;
    name(kernel, tid, args[2], args[3], |view, at, path| view.link(&old, at, path))
}

pub fn link(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    linkat(kernel, tid, &[CWD, args[0], CWD, args[1], 0, 0])
}

pub fn renameat2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [old_fd, old, new_fd, new, flags, _] = *args;
    let mode = match flags {
        0 => RenameMode::Replace,
        1 => RenameMode::NoReplace,
        2 => RenameMode::Exchange,
        _ => return Err(Errno::INVAL),
    };
    let seat = kernel.seat(tid)?;
    let (old, new) = (kernel.path_text(tid, old)?, kernel.path_text(tid, new)?);
    let from = kernel.start(tid, &seat, old_fd, &old)?;
    let to = kernel.start(tid, &seat, new_fd, &new)?;
    let context = seat.context();
    seat.view(&context).rename((&from, &old), (&to, &new), mode)?;
    Ok(Done::Value(0))
}

pub fn renameat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    renameat2(kernel, tid, &[args[0], args[1], args[2], args[3], 0, 0])
}

pub fn rename(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    renameat2(kernel, tid, &[CWD, args[0], CWD, args[1], 0, 0])
}

pub fn chdir(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let path = kernel.at(tid, &seat, CWD, args[0], 0)?;
    kernel.process(tid)?.fs.lock().cwd = files::directory(&seat, path)?;
    Ok(Done::Value(0))
}

pub fn fchdir(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let path = files::open_directory(&kernel.any_file(tid, args[0])?)?;
    kernel.process(tid)?.fs.lock().cwd = files::directory(&seat, path)?;
    Ok(Done::Value(0))
}

pub fn chroot(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const CAP_SYS_CHROOT: u32 = 18;
    let seat = kernel.seat(tid)?;
    let path = files::directory(&seat, kernel.at(tid, &seat, CWD, args[0], 0)?)?;
    if !seat.credentials.capable(CAP_SYS_CHROOT) {
        return Err(Errno::PERM);
    }
    kernel.process(tid)?.fs.lock().root = path;
    Ok(Done::Value(0))
}

/// No path that is told is longer, with its end.
const PATH_MAX: usize = 4096;

pub fn getcwd(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    if seat.cwd.dentry.is_removed() {
        return Err(Errno::NOENT);
    }
    let (mut text, reachable) = seat.cwd.text(&seat.root);
    if !reachable {
        text = [b"(unreachable)".as_slice(), &text].concat();
    }
    text.push(0);
    if text.len() > PATH_MAX {
        return Err(Errno::NAMETOOLONG); // the C library then finds it out by itself
    }
    if text.len() as u64 > args[1] {
        return Err(Errno::RANGE);
    }
    kernel.put(tid, args[0], &text)?;
    Ok(Done::Value(text.len() as i64))
}

pub fn umask(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let fs = Arc::clone(&kernel.process(tid)?.fs);
    let old = std::mem::replace(&mut fs.lock().umask, args[0] as u32 & 0o777);
    Ok(Done::Value(old.into()))
}
