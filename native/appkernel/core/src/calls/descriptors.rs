//! Descriptors: closing, doubling, flags, ioctl.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::ioctl::{FIOASYNC, FIOCLEX, FIONBIO, FIONCLEX};
use drupe_appkernel_vfs::locks::Owner;
use drupe_appkernel_vfs::pipe::PipeEnd;
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::tmpfs::TmpFile;
use drupe_appkernel_vfs::{FdTable, FileType, OpenFile, OpenFlags};

use super::mq;
use super::{locks, messages, Args};
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::pids;
use crate::task::{Process, Tid};

const NOFILE: usize = 7;
const FD_CLOEXEC: u64 = 1;

/// The descriptor table as an owner of POSIX locks.
pub(crate) fn lock_owner(process: &Process) -> Owner {
    table_owner(&process.files, process.pid as i32)
}

pub(crate) fn table_owner(files: &Arc<Mutex<FdTable>>, pid: i32) -> Owner {
    Owner::Process { table: Arc::as_ptr(files) as *const u8 as u64, pid }
}

impl Kernel {
    pub(crate) fn file_limit(&self, tid: Tid) -> Result<u64> {
        Ok(self.process(tid)?.limits[NOFILE].0)
    }

    /// Give a file the lowest free descriptor.
    pub(crate) fn install(&self, tid: Tid, file: Arc<OpenFile>, close_on_exec: bool) -> Result<i32> {
        let limit = self.file_limit(tid)?;
        self.process(tid)?.files.lock().insert(file, close_on_exec, 0, limit)
    }

    /// What the guest could not be told of, it does not have.
    pub(crate) fn unless_told(&self, tid: Tid, fds: &[i32], told: Result<()>) -> Result<()> {
        if told.is_err() {
            fds.iter().for_each(|fd| drop(self.process(tid).map(|process| process.files.lock().remove(*fd))));
        }
        told
    }

    /// A descriptor of the caller's is gone: so are its POSIX locks on that file.
    pub(crate) fn closed(&self, tid: Tid, file: &OpenFile) -> Result<()> {
        if let (Some(path), Owner::Process { table, .. }) = (file.path(), lock_owner(self.process(tid)?)) {
            path.inode().attachment().locks.release_process(table);
        }
        mq::closed(file, self.pid(tid));
        Ok(())
    }
}

/// The process no longer uses its descriptors: if nobody else does, its POSIX locks are gone.
pub(crate) fn leave_locks(process: &Process) {
    if Arc::strong_count(&process.files) > 1 {
        return;
    }
    let Owner::Process { table, .. } = lock_owner(process) else { return };
    let files = process.files.lock();
    let paths = files.iter().filter_map(|(_, file)| file.path());
    paths.for_each(|path| path.inode().attachment().locks.release_process(table));
}

pub fn close(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.process(tid)?.files.lock().remove(args[0] as i32)?;
    kernel.closed(tid, &file)?;
    Ok(Done::Value(0))
}

pub fn close_range(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const UNSHARE: u64 = 2;
    const CLOEXEC: u64 = 4;
    let (first, last, flags) = (args[0] as u32, args[1] as u32, args[2]);
    if first > last || flags & !(UNSHARE | CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    if flags & UNSHARE != 0 {
        let process = kernel.process_mut(tid)?;
        let own = process.files.lock().clone();
        process.files = Arc::new(drupe_appkernel_vfs::sync::Mutex::new(own));
    }
    let files = Arc::clone(&kernel.process(tid)?.files);
    if flags & CLOEXEC != 0 {
        files.lock().mark_range(first, last);
        return Ok(Done::Value(0));
    }
    let closed = files.lock().remove_range(first, last);
    closed.iter().try_for_each(|file| kernel.closed(tid, file))?;
    Ok(Done::Value(0))
}

fn duplicate(kernel: &mut Kernel, tid: Tid, fd: u64, minimum: u64, close_on_exec: bool) -> Result<Done> {
    let (file, limit) = (kernel.any_file(tid, fd)?, kernel.file_limit(tid)?);
    if minimum >= limit {
        return Err(Errno::INVAL);
    }
    let minimum = i32::try_from(minimum).map_err(|_| Errno::INVAL)?;
    let fd = kernel.process(tid)?.files.lock().insert(file, close_on_exec, minimum, limit)?;
    Ok(Done::Value(fd.into()))
}

pub fn dup(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    duplicate(kernel, tid, args[0], 0, false)
}

pub fn dup2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[0] as i32 == args[1] as i32 {
        kernel.any_file(tid, args[0])?;
        return Ok(Done::Value(i64::from(args[1] as i32)));
    }
    dup3(kernel, tid, &[args[0], args[1], 0, 0, 0, 0])
}

pub fn dup3(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (from, to, flags) = (args[0], args[1] as i32, args[2]);
    if from as i32 == to || flags & !u64::from(OpenFlags::CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    let (file, limit) = (kernel.any_file(tid, from)?, kernel.file_limit(tid)?);
    let old = kernel.process(tid)?.files.lock().replace(file, flags != 0, to, limit)?;
    if let Some(old) = old {
        kernel.closed(tid, &old)?;
    }
    Ok(Done::Value(to.into()))
}

pub fn fcntl(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, command, argument, ..] = *args;
    // A place has flags and can be doubled, and that is all.
    let file = if matches!(command, 0..=3 | 1030) { kernel.any_file(tid, fd)? } else { kernel.file(tid, fd)? };
    let table = Arc::clone(&kernel.process(tid)?.files);
    let value = match command {
        0 => return duplicate(kernel, tid, fd, argument, false),
        1030 => return duplicate(kernel, tid, fd, argument, true),
        1 => i64::from(table.lock().close_on_exec(fd as i32)?),
        2 => {
            table.lock().set_close_on_exec(fd as i32, argument & FD_CLOEXEC != 0)?;
            0
        }
        3 => i64::from(file.flags().0),
        4 => {
            file.set_flags(argument as u32);
            0
        }
        5..=7 | 36..=38 => return locks::record(kernel, tid, &file, command, argument),
        8 => {
            check_owner(kernel, argument as i32)?;
            file.owner.lock().0 = argument as i32;
            0
        }
        9 => i64::from(file.owner.lock().0),
        10 if argument > crate::signal::COUNT as u64 => return Err(Errno::INVAL),
        10 => {
            file.owner.lock().1 = argument as i32;
            0
        }
        11 => i64::from(file.owner.lock().1),
        15 | 16 => return owner_ex(kernel, tid, &file, command == 15, argument),
        1035 | 1036 => return life_hint(kernel, tid, &file, command == 1036, argument),
        1031 | 1032 => return pipe_size(kernel, tid, &file, command == 1031, argument),
        1033 | 1034 => return seals(kernel, &file, command == 1033, argument),
        _ => return Err(Errno::INVAL),
    };
    Ok(Done::Value(value))
}

/// F_GET_RW_HINT, F_SET_RW_HINT: kept with the file while it is known. EINVAL for hints that there are none of.
fn life_hint(kernel: &Kernel, tid: Tid, file: &OpenFile, set: bool, address: u64) -> Result<Done> {
    const LONGEST: u64 = 5; // RWH_WRITE_LIFE_EXTREME
    let hint = &file.path().ok_or(Errno::INVAL)?.inode().attachment().life_hint;
    if set {
        let value = kernel.get_u64(tid, address)?;
        hint.store((value <= LONGEST).then_some(value).ok_or(Errno::INVAL)?, Ordering::Relaxed);
    } else {
        kernel.put_words(tid, address, &[hint.load(Ordering::Relaxed)])?;
    }
    Ok(Done::Value(0))
}

/// ESRCH for a process or group (negative) that is not there.
fn check_owner(kernel: &Kernel, owner: i32) -> Result<()> {
    let number = owner.unsigned_abs();
    let there = match owner {
        0 => true,
        i32::MIN => return Err(Errno::INVAL),
        n if n > 0 => kernel.tasks.tasks.contains_key(&number) || kernel.tasks.processes.contains_key(&number),
        _ => kernel.tasks.processes.values().any(|process| process.group == number),
    };
    there.then_some(()).ok_or(Errno::SRCH)
}

/// F_SETOWN_EX, F_GETOWN_EX: struct f_owner_ex, a kind (0 thread, 1 process, 2 group) and a number.
fn owner_ex(kernel: &Kernel, tid: Tid, file: &OpenFile, set: bool, address: u64) -> Result<Done> {
    const GROUP: u64 = 2;
    let view = kernel.view(tid);
    if set {
        let word = kernel.get_u64(tid, address)?;
        let number = pids::known(view, (word >> 32) as u32) as i32;
        let owner = match word & 0xffff_ffff {
            0 | 1 => number,
            GROUP => -number,
            _ => return Err(Errno::INVAL),
        };
        check_owner(kernel, if word >> 32 == 0 { 0 } else { owner })?;
        file.owner.lock().0 = owner;
        return Ok(Done::Value(0));
    }
    let owner = file.owner.lock().0;
    let kind = if owner < 0 { GROUP } else { 1 };
    kernel.put_words(tid, address, &[u64::from(pids::seen(owner.unsigned_abs())) << 32 | kind])?;
    Ok(Done::Value(0))
}

/// Whether somebody could still change the file by memory that it has mapped.
fn is_mapped_for_writing(kernel: &Kernel, file: &TmpFile) -> bool {
    let same = |open: &OpenFile| {
        open.flags().writes() && open.downcast::<TmpFile>().is_some_and(|other| Arc::ptr_eq(other.node(), file.node()))
    };
    let mut areas = kernel.mms.values().flat_map(|mm| mm.areas.values());
    areas.any(|area| area.shared && area.file.as_ref().is_some_and(|(open, _)| same(open)))
}

fn seals(kernel: &Kernel, file: &OpenFile, add: bool, argument: u64) -> Result<Done> {
    const SEAL_WRITE: u64 = 8;
    let writes = file.flags().writes();
    let file = file.downcast::<TmpFile>().ok_or(Errno::INVAL)?;
    if add && !writes {
        return Err(Errno::PERM);
    }
    if add {
        if argument & SEAL_WRITE != 0 && is_mapped_for_writing(kernel, file) {
            return Err(Errno::BUSY);
        }
        file.add_seals(argument as u32)?;
        return Ok(Done::Value(0));
    }
    Ok(Done::Value(file.seals().into()))
}

/// F_SETPIPE_SZ, F_GETPIPE_SZ.
fn pipe_size(kernel: &Kernel, tid: Tid, file: &OpenFile, set: bool, argument: u64) -> Result<Done> {
    let pipe = file.downcast::<PipeEnd>().ok_or(Errno::BADF)?;
    if set {
        let size = kernel.with_context(tid, |context| pipe.set_capacity(context, argument as u32 as usize))?;
        return Ok(Done::Value(size as i64));
    }
    Ok(Done::Value(pipe.capacity_bytes() as i64))
}

/// How many bytes lie at the argument of an ioctl (asm-generic/ioctls.h; the rest say it in their number).
const TIOCGPGRP: u32 = 0x540f;
const TIOCSPGRP: u32 = 0x5410;
const TIOCGSID: u32 = 0x5429;

fn ioctl_size(request: u32) -> usize {
    match request {
        0x5401..=0x5404 => 36,                                    // struct termios
        0x5405..=0x5408 => 18,                                    // struct termio
        0x5413 | 0x5414 => 8,                                     // struct winsize
        0x540f | 0x5410 | 0x5411 | 0x541b | 0x5424 | 0x5429 => 4, // TIOCGPGRP, SPGRP, OUTQ, FIONREAD, GETD, GSID
        0x5421 | 0x5423 | 0x5452 | 0x5420 | 0x5415..=0x5418 => 4,
        0x5412 => 1, // TIOCSTI
        0x5400..=0x54ff => 0,
        0x8905 => 4,
        0x8910..=0x8971 => 40, // struct ifreq
        _ => (request >> 16 & 0x3fff) as usize,
    }
}

pub fn ioctl(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (fd, request, argument) = (args[0], args[1] as u32, args[2]);
    let file = kernel.file(tid, fd)?;
    match request {
        FIOCLEX | FIONCLEX => {
            kernel.process(tid)?.files.lock().set_close_on_exec(fd as i32, request == FIOCLEX)?;
            return Ok(Done::Value(0));
        }
        FIONBIO | FIOASYNC => {
            let on = kernel.get_u32(tid, argument)? != 0;
            let bit = if request == FIONBIO { OpenFlags::NONBLOCK } else { OpenFlags::ASYNC };
            file.set_flags(if on { file.flags().0 | bit } else { file.flags().0 & !bit });
            return Ok(Done::Value(0));
        }
        _ => {}
    }
    if request == 0x8912 {
        return messages::interfaces(kernel, tid, fd, argument);
    }
    let file = if messages::is_about_interfaces(request) { messages::knowing(kernel, tid, file)? } else { file };
    kernel.before_terminal(tid, &file, true);
    let size = ioctl_size(request);
    let given = kernel.get_bytes(tid, argument, size).unwrap_or_default();
    let mut data = given.clone();
    if request == TIOCSPGRP {
        pids::take(kernel.view(tid), &mut data);
    }
    let value = kernel.with_context(tid, |context| file.file().ioctl(context, request, argument, &mut data))?;
    match request {
        TIOCSPGRP => data.clone_from(&given),
        TIOCGPGRP | TIOCGSID => pids::show(kernel.view(tid), &mut data),
        _ => {}
    }
    if data != given || given.is_empty() {
        kernel.put(tid, argument, &data)?;
    }
    Ok(Done::Value(value))
}

/// What most directories need.
const LISTING_BYTES: usize = 8 << 10;

fn list(kernel: &mut Kernel, tid: Tid, args: &Args, add: Encoder) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    let room = (args[2] as u32 as usize).min(crate::guest::IO_MAX);
    let (mut out, mut any) = (Vec::with_capacity(room.min(LISTING_BYTES)), false);
    file.read_dir(&mut |entry| {
        any = true;
        add(&entry, room, &mut out)
    })?;
    if out.is_empty() && any {
        return Err(Errno::INVAL);
    }
    kernel.put(tid, args[1], &out)?;
    Ok(Done::Value(out.len() as i64))
}

type Encoder = fn(&drupe_appkernel_vfs::inode::DirEntry<'_>, usize, &mut Vec<u8>) -> bool;

pub fn getdents64(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    list(kernel, tid, args, encode::dirent64)
}

pub fn getdents(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    list(kernel, tid, args, encode::dirent)
}

pub fn ftruncate(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    if (args[1] as i64) < 0 {
        return Err(Errno::INVAL);
    }
    if file.flags().writes() && file.file().can_seek() {
        kernel.check_file_size(tid, args[1])?;
    }
    kernel.with_context(tid, |context| file.truncate(context, args[1]))?;
    Ok(Done::Value(0))
}

pub fn fallocate(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    if !file.flags().writes() {
        return Err(Errno::BADF);
    }
    if (args[2] as i64) < 0 || (args[3] as i64) <= 0 {
        return Err(Errno::INVAL);
    }
    if file.file().can_seek() && args[1] & 1 == 0 {
        kernel.check_file_size(tid, args[2].saturating_add(args[3]))?; // without FALLOC_FL_KEEP_SIZE it may grow
    }
    kernel.with_context(tid, |context| file.file().allocate(context, args[1] as u32, args[2], args[3]))?;
    Ok(Done::Value(0))
}

pub fn fsync(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    kernel.file(tid, args[0])?.file().sync()?;
    Ok(Done::Value(0))
}

/// sync_file_range(2), fadvise64(2), readahead(2): hints.
pub fn hint(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    file.file().can_seek().then_some(Done::Value(0)).ok_or(Errno::SPIPE)
}

/// sync_file_range(2): files are memory, but nonsense is refused.
pub fn sync_file_range(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [_, offset, size, flags, ..] = *args;
    let end = (offset as i64).checked_add(size as i64).filter(|_| (offset | size) as i64 >= 0);
    if flags & !7 != 0 || end.is_none() {
        return Err(Errno::INVAL);
    }
    let kind = kernel.file(tid, args[0])?.metadata()?.kind();
    let is_kept = matches!(kind, FileType::Regular | FileType::Directory | FileType::BlockDevice);
    is_kept.then_some(Done::Value(0)).ok_or(Errno::SPIPE)
}

/// readahead(2), of regular files that may be read.
pub fn readahead(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    if !file.flags().reads() {
        return Err(Errno::BADF);
    }
    let regular = file.metadata()?.kind() == drupe_appkernel_vfs::FileType::Regular && file.file().can_seek();
    regular.then_some(Done::Value(0)).ok_or(Errno::INVAL)
}

/// fadvise64(2): advice 0 to 5, of no effect.
pub fn fadvise(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let done = hint(kernel, tid, args)?;
    (args[3] <= 5 && args[2] as i64 >= 0).then_some(done).ok_or(Errno::INVAL)
}

/// memfd_create(2) without huge pages.
pub fn memfd_create(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const CLOEXEC: u64 = 1;
    const ALLOW_SEALING: u64 = 2;
    const EXEC: u64 = 0x18; // NOEXEC_SEAL, EXEC
    let name = kernel.text(tid, args[0], 250, Errno::INVAL)?;
    if args[1] & !(CLOEXEC | ALLOW_SEALING | EXEC) != 0 {
        return Err(Errno::INVAL);
    }
    let file = kernel.new_memfd(tid, &name, args[1] & ALLOW_SEALING != 0)?;
    let fd = kernel.install(tid, file, args[1] & CLOEXEC != 0)?;
    Ok(Done::Value(fd.into()))
}

impl Kernel {
    pub(crate) fn new_memfd(&self, tid: Tid, name: &[u8], sealable: bool) -> Result<Arc<OpenFile>> {
        use drupe_appkernel_vfs::inode::NewNode;
        use drupe_appkernel_vfs::tmpfs::{Limits, Tmpfs};
        use drupe_appkernel_vfs::{FileType, Inode, Mount, Path};
        let seat = self.seat(tid)?;
        let root = NewNode::new(FileType::Directory, 0o755, 0, 0);
        let home = Tmpfs::new(Limits::default(), self.host.backings(), &root, seat.now)?;
        let node = NewNode::new(FileType::Regular, 0o777, seat.credentials.uid, seat.credentials.gid);
        let node = home.memfd(&node, sealable, seat.now)?;
        let flags = OpenFlags(OpenFlags::RDWR);
        let file = node.open(&seat.context(), flags)?;
        let mount = Mount::new(home, b"memfd", 0);
        let name = [b"memfd:", name].concat();
        let dentry = mount.root().unnamed(node, &name);
        Ok(OpenFile::new(file, Some(Path::new(mount, dentry)), flags))
    }
}
