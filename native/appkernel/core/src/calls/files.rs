//! Opening files, and what they are.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::cred::{MAY_EXEC, MAY_READ, MAY_WRITE};
use drupe_appkernel_vfs::inode::XattrMode;
use drupe_appkernel_vfs::pipe::PipeEnd;
use drupe_appkernel_vfs::{wait, Credentials, FileType, OpenFile, OpenFlags, Path, TimeChange, View};

use super::Args;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::mm::PAGE;
use crate::seat::{Seat, AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW};
use crate::task::Tid;

pub const CWD: u64 = AT_FDCWD as i64 as u64;
const AT_SYMLINK_FOLLOW: u64 = 0x400;
const AT_NO_AUTOMOUNT: u64 = 0x800;

struct Order {
    fd: u64,
    path: u64,
    flags: u32,
    mode: u32,
    resolve: u64,
}

fn open_file(kernel: &mut Kernel, tid: Tid, order: &Order) -> Result<Done> {
    let flags = OpenFlags(order.flags);
    let file = match kernel.pending(tid)?.opening.take() {
        Some(file) => file,
        None => {
            let seat = kernel.seat(tid)?;
            let path = kernel.path_text(tid, order.path)?;
            let start = kernel.start(tid, &seat, order.fd, &path)?;
            let context = seat.context();
            View::check_flags(flags)?;
            let kept = if flags.has(OpenFlags::PATH) { flags } else { OpenFlags(flags.0 | OpenFlags::LARGEFILE) };
            seat.view(&context).open(&start, &path, kept, order.mode, order.resolve)?
        }
    };
    // A pipe, opened again by a link of /proc, waits for nobody.
    let is_pipe = file.path().is_some_and(|path| path.mount.is_internal());
    let waits = file.downcast::<PipeEnd>().is_some_and(|pipe| !pipe.is_open()) && !file.is_nonblocking() && !is_pipe;
    if waits {
        let done = kernel.wait_for_file(tid, &file, wait::READABLE | wait::WRITABLE)?;
        kernel.pending(tid)?.opening = Some(file);
        return Ok(done);
    }
    let fd = kernel.install(tid, file, flags.has(OpenFlags::CLOEXEC))?;
    Ok(Done::Value(fd.into()))
}

pub fn openat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, path, flags, mode, ..] = *args;
    open_file(kernel, tid, &Order { fd, path, flags: flags as u32, mode: mode as u32 & 0o7777, resolve: 0 })
}

pub fn open(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    openat(kernel, tid, &[CWD, args[0], args[1], args[2], 0, 0])
}

pub fn creat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let flags = OpenFlags::CREAT | OpenFlags::WRONLY | OpenFlags::TRUNC;
    openat(kernel, tid, &[CWD, args[0], flags.into(), args[1], 0, 0])
}

/// What open(2) knows; openat2(2) refuses the rest.
const KNOWN_FLAGS: u32 = 0o37_777_703;

pub fn openat2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, path, how, size, ..] = *args;
    if size < 24 {
        return Err(Errno::INVAL);
    }
    if size > PAGE {
        return Err(Errno::TOOBIG);
    }
    let [flags, mode, resolve] = kernel.get_words(tid, how)?;
    if kernel.get_bytes(tid, how + 24, size as usize - 24)?.iter().any(|&byte| byte != 0) {
        return Err(Errno::TOOBIG);
    }
    let flags = u32::try_from(flags).map_err(|_| Errno::INVAL)?;
    let makes = [OpenFlags::CREAT, OpenFlags::TMPFILE].iter().any(|&flag| OpenFlags(flags).has(flag));
    if flags & !KNOWN_FLAGS != 0 || resolve & !0x1f != 0 || mode & !0o7777 != 0 || mode != 0 && !makes {
        return Err(Errno::INVAL);
    }
    open_file(kernel, tid, &Order { fd, path, flags, mode: mode as u32, resolve })
}

fn put_stat(kernel: &Kernel, tid: Tid, path: &Path, address: u64) -> Result<Done> {
    kernel.put(tid, address, &encode::stat(&path.inode().metadata()?))?;
    Ok(Done::Value(0))
}

pub fn newfstatat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, path, address, flags, ..] = *args;
    if flags & !(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0 {
        return Err(Errno::INVAL);
    }
    if flags & AT_EMPTY_PATH != 0 && fd as i32 >= 0 && kernel.path_text(tid, path)?.is_empty() {
        return fstat(kernel, tid, &[fd, address, 0, 0, 0, 0]);
    }
    let seat = kernel.seat(tid)?;
    let path = kernel.at(tid, &seat, fd, path, flags)?;
    put_stat(kernel, tid, &path, address)
}

pub fn stat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    newfstatat(kernel, tid, &[CWD, args[0], args[1], 0, 0, 0])
}

pub fn lstat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    newfstatat(kernel, tid, &[CWD, args[0], args[1], AT_SYMLINK_NOFOLLOW, 0, 0])
}

pub fn fstat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let metadata = kernel.any_file(tid, args[0])?.metadata()?;
    kernel.put(tid, args[1], &encode::stat(&metadata))?;
    Ok(Done::Value(0))
}

pub fn statx(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const SYNC_TYPE: u64 = 0x6000;
    let [fd, path, flags, mask, address, _] = *args;
    if flags & !(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | SYNC_TYPE) != 0 || mask >> 31 & 1 == 1 {
        return Err(Errno::INVAL);
    }
    let empty = flags & AT_EMPTY_PATH != 0 && (path == 0 || kernel.path_text(tid, path)?.is_empty());
    let (metadata, mount) = if empty && fd as i32 >= 0 {
        let file = kernel.any_file(tid, fd)?;
        (file.metadata()?, file.path().map_or(0, |path| path.mount.id()))
    } else {
        let seat = kernel.seat(tid)?;
        let path = kernel.at(tid, &seat, fd, path, flags)?;
        (path.inode().metadata()?, path.mount.id())
    };
    kernel.put(tid, address, &encode::statx(&metadata, mount))?;
    Ok(Done::Value(0))
}

fn check_access(kernel: &Kernel, tid: Tid, args: &Args, flags: u64) -> Result<Done> {
    const EACCESS: u64 = 0x200;
    let [fd, path, mode, ..] = *args;
    if mode & !7 != 0 || flags & !(EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let mut seat = kernel.seat(tid)?;
    if flags & EACCESS == 0 {
        seat.credentials = real(kernel, tid)?;
    }
    let path = kernel.at(tid, &seat, fd, path, flags)?;
    let bits = [(4, MAY_READ), (2, MAY_WRITE), (1, MAY_EXEC)];
    let access = bits.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, may)| may).sum();
    let context = seat.context();
    seat.view(&context).access(&path, access)?;
    Ok(Done::Value(0))
}

/// The caller as its real ids have it (access(2)).
fn real(kernel: &Kernel, tid: Tid) -> Result<Credentials> {
    let process = kernel.process(tid)?;
    let capabilities = if process.ids.uid == 0 { process.ids.permitted } else { 0 };
    Ok(Credentials { uid: process.ids.uid, gid: process.ids.gid, capabilities, ..process.credentials.clone() })
}

pub fn access(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    check_access(kernel, tid, &[CWD, args[0], args[1], 0, 0, 0], 0)
}

pub fn faccessat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    check_access(kernel, tid, args, 0)
}

pub fn faccessat2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    check_access(kernel, tid, args, args[3])
}

pub fn readlinkat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, path, address, size, ..] = *args;
    if size as i32 <= 0 {
        return Err(Errno::INVAL);
    }
    let seat = kernel.seat(tid)?;
    let path = kernel.at(tid, &seat, fd, path, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH)?;
    let context = seat.context();
    let mut text = seat.view(&context).read_link(&path)?;
    text.truncate(size as usize);
    kernel.put(tid, address, &text)?;
    Ok(Done::Value(text.len() as i64))
}

pub fn readlink(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if kernel.path_text(tid, args[0])?.is_empty() {
        return Err(Errno::NOENT);
    }
    readlinkat(kernel, tid, &[CWD, args[0], args[1], args[2], 0, 0])
}

/// ST_* from the mount's flags.
fn put_statfs(kernel: &Kernel, tid: Tid, path: &Path, address: u64) -> Result<Done> {
    let statfs = path.mount.file_system().statfs()?;
    let read_only = u64::from(path.mount.check_writable().is_err());
    let flags = u64::from(path.mount.flags() & 0xe) | read_only;
    kernel.put(tid, address, &encode::statfs(&statfs, flags))?;
    Ok(Done::Value(0))
}

pub fn statfs(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let path = kernel.at(tid, &seat, CWD, args[0], 0)?;
    put_statfs(kernel, tid, &path, args[1])
}

pub fn fstatfs(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.any_file(tid, args[0])?;
    put_statfs(kernel, tid, file.path().ok_or(Errno::NOSYS)?, args[1])
}

pub fn truncate(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if (args[1] as i64) < 0 {
        return Err(Errno::INVAL);
    }
    kernel.check_file_size(tid, args[1])?;
    change(kernel, tid, CWD, args[0], 0, |view, path| view.truncate(path, args[1]))
}

fn change(
    kernel: &Kernel,
    tid: Tid,
    fd: u64,
    path: u64,
    flags: u64,
    act: impl FnOnce(&View<'_>, &Path) -> Result<()>,
) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let path = kernel.at(tid, &seat, fd, path, flags)?;
    act_on(&seat, &path, act)
}

fn act_on(seat: &Seat, path: &Path, act: impl FnOnce(&View<'_>, &Path) -> Result<()>) -> Result<Done> {
    let context = seat.context();
    act(&seat.view(&context), path)?;
    Ok(Done::Value(0))
}

fn change_open(kernel: &Kernel, tid: Tid, fd: u64, act: impl FnOnce(&View<'_>, &Path) -> Result<()>) -> Result<Done> {
    let file = kernel.file(tid, fd)?;
    act_on(&kernel.seat(tid)?, file.path().ok_or(Errno::BADF)?, act)
}

pub fn chmod(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    change(kernel, tid, CWD, args[0], 0, |view, path| view.chmod(path, args[1] as u32))
}

pub fn fchmod(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    change_open(kernel, tid, args[0], |view, path| view.chmod(path, args[1] as u32))
}

pub fn fchmodat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    change(kernel, tid, args[0], args[1], 0, |view, path| view.chmod(path, args[2] as u32))
}

pub fn fchmodat2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[3] & !(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    change(kernel, tid, args[0], args[1], args[3], |view, path| match path.inode().kind() {
        FileType::Symlink => Err(Errno::NOTSUP),
        _ => view.chmod(path, args[2] as u32),
    })
}

fn id(value: u64) -> Option<u32> {
    (value as u32 != u32::MAX).then_some(value as u32)
}

pub fn fchownat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, path, uid, gid, flags, _] = *args;
    change(kernel, tid, fd, path, flags, |view, path| view.chown(path, id(uid), id(gid)))
}

pub fn chown(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    fchownat(kernel, tid, &[CWD, args[0], args[1], args[2], 0, 0])
}

pub fn lchown(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    fchownat(kernel, tid, &[CWD, args[0], args[1], args[2], AT_SYMLINK_NOFOLLOW, 0])
}

pub fn fchown(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    change_open(kernel, tid, args[0], |view, path| view.chown(path, id(args[1]), id(args[2])))
}

fn time_change(seconds: u64, part: u64) -> Result<TimeChange> {
    const UTIME_NOW: u64 = 0x3fff_ffff;
    const UTIME_OMIT: u64 = 0x3fff_fffe;
    match part {
        UTIME_NOW => Ok(TimeChange::Now),
        UTIME_OMIT => Ok(TimeChange::Omit),
        0..=999_999_999 => Ok(TimeChange::To(drupe_appkernel_vfs::Timestamp::new(seconds as i64, part as u32))),
        _ => Err(Errno::INVAL),
    }
}

fn set_times(kernel: &Kernel, tid: Tid, place: (u64, u64, u64), times: (TimeChange, TimeChange)) -> Result<Done> {
    let (fd, path, flags) = place;
    if path == 0 {
        return change_open(kernel, tid, fd, |view, path| view.set_times(path, times.0, times.1));
    }
    change(kernel, tid, fd, path, flags, |view, path| view.set_times(path, times.0, times.1))
}

pub fn utimensat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, path, times, flags, ..] = *args;
    let changes = match times {
        0 => (TimeChange::Now, TimeChange::Now),
        _ => {
            let [a, b, c, d] = kernel.get_words(tid, times)?;
            (time_change(a, b)?, time_change(c, d)?)
        }
    };
    set_times(kernel, tid, (fd, path, flags), changes)
}

/// futimesat(2), utimes(2): with microseconds.
pub fn futimesat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, path, times, ..] = *args;
    let changes = match times {
        0 => (TimeChange::Now, TimeChange::Now),
        _ => {
            let [a, b, c, d] = kernel.get_words(tid, times)?;
            if b >= 1_000_000 || d >= 1_000_000 {
                return Err(Errno::INVAL);
            }
            (time_change(a, b * 1000)?, time_change(c, d * 1000)?)
        }
    };
    set_times(kernel, tid, (fd, path, 0), changes)
}

pub fn utimes(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    futimesat(kernel, tid, &[CWD, args[0], args[1], 0, 0, 0])
}

pub fn utime(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let changes = match args[1] {
        0 => (TimeChange::Now, TimeChange::Now),
        at => {
            let [accessed, modified] = kernel.get_words(tid, at)?;
            (time_change(accessed, 0)?, time_change(modified, 0)?)
        }
    };
    set_times(kernel, tid, (CWD, args[0], 0), changes)
}

/// The file of an extended attribute's call: by path, by link, by descriptor.
fn attributes_of(kernel: &Kernel, tid: Tid, seat: &Seat, which: Which, at: u64) -> Result<Path> {
    match which {
        Which::Path => kernel.at(tid, seat, CWD, at, 0),
        Which::Link => kernel.at(tid, seat, CWD, at, AT_SYMLINK_NOFOLLOW),
        Which::Open => kernel.file(tid, at)?.path().cloned().ok_or(Errno::NOTSUP),
    }
}

#[derive(Clone, Copy)]
pub enum Which {
    Path,
    Link,
    Open,
}

const NAME_MAX: usize = 256;

fn put_sized(kernel: &Kernel, tid: Tid, address: u64, room: u64, data: &[u8]) -> Result<Done> {
    if room > 0 {
        if (room as usize) < data.len() {
            return Err(Errno::RANGE);
        }
        kernel.put(tid, address, data)?;
    }
    Ok(Done::Value(data.len() as i64))
}

pub fn get_attribute(kernel: &mut Kernel, tid: Tid, args: &Args, which: Which) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let path = attributes_of(kernel, tid, &seat, which, args[0])?;
    let name = kernel.text(tid, args[1], NAME_MAX, Errno::RANGE)?;
    let value = path.inode().xattrs()?.get(&name)?;
    put_sized(kernel, tid, args[2], args[3], &value)
}

pub fn list_attributes(kernel: &mut Kernel, tid: Tid, args: &Args, which: Which) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let path = attributes_of(kernel, tid, &seat, which, args[0])?;
    let names = match path.inode().xattrs() {
        Ok(attributes) => attributes.list()?,
        Err(_) => Vec::new(),
    };
    let all: Vec<u8> = names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect();
    put_sized(kernel, tid, args[1], args[2], &all)
}

pub fn set_attribute(kernel: &mut Kernel, tid: Tid, args: &Args, which: Which) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let path = attributes_of(kernel, tid, &seat, which, args[0])?;
    let name = kernel.text(tid, args[1], NAME_MAX, Errno::RANGE)?;
    if args[3] > 65_536 {
        return Err(Errno::TOOBIG);
    }
    let value = kernel.get_bytes(tid, args[2], args[3] as usize)?;
    let mode = match args[4] {
        0 => XattrMode::Any,
        1 => XattrMode::Create,
        2 => XattrMode::Replace,
        _ => return Err(Errno::INVAL),
    };
    path.mount.check_writable()?;
    let plain = matches!(path.inode().kind(), FileType::Regular | FileType::Directory);
    if name.starts_with(b"user.") && !plain {
        return Err(Errno::PERM); // xattr(7): permissions of other files do not say who may
    }
    path.inode().xattrs()?.set(&seat.context(), &name, &value, mode)?;
    Ok(Done::Value(0))
}

pub fn remove_attribute(kernel: &mut Kernel, tid: Tid, args: &Args, which: Which) -> Result<Done> {
    let seat = kernel.seat(tid)?;
    let path = attributes_of(kernel, tid, &seat, which, args[0])?;
    let name = kernel.text(tid, args[1], NAME_MAX, Errno::RANGE)?;
    path.mount.check_writable()?;
    path.inode().xattrs()?.remove(&seat.context(), &name)?;
    Ok(Done::Value(0))
}

/// linkat(2)'s first file.
pub fn link_source(kernel: &Kernel, tid: Tid, seat: &Seat, args: &Args) -> Result<Path> {
    let (fd, path, flags) = (args[0], args[1], args[4]);
    if flags & !(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH) != 0 {
        return Err(Errno::INVAL);
    }
    let follow = if flags & AT_SYMLINK_FOLLOW != 0 { 0 } else { AT_SYMLINK_NOFOLLOW };
    kernel.at(tid, seat, fd, path, flags & AT_EMPTY_PATH | follow)
}

/// A directory that a task may stand in.
pub fn directory(seat: &Seat, path: Path) -> Result<Path> {
    let metadata = path.inode().metadata()?;
    if !metadata.is_directory() {
        return Err(Errno::NOTDIR);
    }
    seat.credentials.check(&metadata, MAY_EXEC)?;
    Ok(path)
}

/// The directory behind a descriptor, for fchdir(2).
pub fn open_directory(file: &Arc<OpenFile>) -> Result<Path> {
    file.path().cloned().ok_or(Errno::NOTDIR)
}
