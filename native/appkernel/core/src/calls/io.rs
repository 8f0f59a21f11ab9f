//! Reading and writing.

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::event::SignalFd;
use drupe_appkernel_vfs::tty::Slave;
use drupe_appkernel_vfs::{wait, OpenFile, OpenFlags, SeekFrom};

use super::{signalfd, Args};
use crate::guest::{total, Piece, IO_MAX};
use crate::kernel::{Done, Kernel};
use crate::signal::{Info, SIGPIPE, SI_USER};
use crate::task::Tid;

/// As Linux: what one call moves at most.
const RW_MAX: u64 = 0x7fff_f000;
const LIMIT_FSIZE: usize = 1;
const SIGXFSZ: i32 = 25;

fn one(address: u64, size: u64) -> [Piece; 1] {
    [Piece { address, size: size.min(RW_MAX) as usize }]
}

pub(super) fn offset(value: u64) -> Result<u64> {
    ((value as i64) >= 0).then_some(value).ok_or(Errno::INVAL)
}

fn read_into(kernel: &mut Kernel, tid: Tid, fd: u64, pieces: &[Piece], at: Option<u64>) -> Result<Done> {
    let file = kernel.file(tid, fd)?;
    kernel.before_terminal(tid, &file, false);
    if file.downcast::<SignalFd>().is_some() {
        return signalfd::read(kernel, tid, &file, pieces);
    }
    let want = total(pieces).min(RW_MAX);
    let mut done = 0;
    loop {
        let mut buffer = vec![0; (want - done).min(IO_MAX as u64) as usize];
        let got = kernel.with_context(tid, |context| match at {
            Some(offset) => file.pread(context, offset + done, &mut buffer),
            None => file.read(context, &mut buffer),
        });
        match got {
            Ok(count) => {
                kernel.scatter(tid, pieces, done, &buffer[..count])?;
                done += count as u64;
                if count < buffer.len() || done >= want || !file.file().can_seek() {
                    return Ok(Done::Value(done as i64));
                }
            }
            Err(_) if done > 0 => return Ok(Done::Value(done as i64)),
            Err(Errno::AGAIN) if !file.is_nonblocking() => return wait_to_read(kernel, tid, &file),
            Err(errno) => return Err(errno),
        }
    }
}

/// A terminal may be set to wait for a while only.
fn wait_to_read(kernel: &mut Kernel, tid: Tid, file: &OpenFile) -> Result<Done> {
    let limit = file.downcast::<Slave>().and_then(Slave::read_limit);
    if kernel.is_over(tid) {
        return Ok(Done::Value(0));
    }
    kernel.wait_for_file(tid, file, wait::READABLE)?;
    let deadline = match (kernel.pending(tid)?.deadline_ns, limit) {
        (None, Some(limit)) => Some(kernel.timers.now_ns() + limit.as_nanos() as u64),
        (known, _) => known,
    };
    kernel.wait_until(tid, deadline)
}

fn write_from(kernel: &mut Kernel, tid: Tid, fd: u64, pieces: &[Piece], at: Option<u64>) -> Result<Done> {
    let file = kernel.file(tid, fd)?;
    kernel.before_terminal(tid, &file, false);
    let want = total(pieces).min(RW_MAX);
    loop {
        let done = kernel.pending(tid)?.progress;
        let limit = kernel.room_in_file(tid, &file, at.map(|offset| offset + done))?;
        if limit == 0 && want > done {
            if done > 0 {
                return Ok(Done::Value(done as i64));
            }
            kernel.check_file_size(tid, u64::MAX)?;
        }
        let data = match kernel.gather(tid, pieces, done, ((want - done).min(limit) as usize).min(IO_MAX)) {
            Err(_) if done > 0 => return Ok(Done::Value(done as i64)),
            data => data?,
        };
        let wrote = kernel.with_context(tid, |context| match at {
            Some(offset) => file.pwrite(context, offset + done, &data),
            None => file.write(context, &data),
        });
        match wrote {
            Ok(count) => {
                let done = done + count as u64;
                kernel.pending(tid)?.progress = done;
                if done >= want || count == 0 || (count < data.len() && file.file().queue().is_none()) {
                    return Ok(Done::Value(done as i64));
                }
            }
            Err(Errno::AGAIN) if !file.is_nonblocking() => return kernel.wait_for_file(tid, &file, wait::WRITABLE),
            Err(_) if done > 0 => return Ok(Done::Value(done as i64)),
            Err(Errno::PIPE) => return Err(kernel.broken_pipe(tid)),
            Err(errno) => return Err(errno),
        }
    }
}

impl Kernel {
    /// What may be written to a file at this offset (None: its own) before it gets larger than RLIMIT_FSIZE.
    fn room_in_file(&self, tid: Tid, file: &OpenFile, at: Option<u64>) -> Result<u64> {
        let limit = self.process(tid)?.limits[LIMIT_FSIZE].0;
        if limit == u64::MAX || !file.file().can_seek() {
            return Ok(u64::MAX);
        }
        let appends = file.flags().has(OpenFlags::APPEND);
        let start = if appends { file.file().size_bytes()? } else { at.unwrap_or(file.position()) };
        Ok(limit.saturating_sub(start))
    }

    /// EFBIG, with SIGXFSZ, for a size beyond RLIMIT_FSIZE.
    pub(crate) fn check_file_size(&mut self, tid: Tid, size_bytes: u64) -> Result<()> {
        if size_bytes <= self.process(tid)?.limits[LIMIT_FSIZE].0 {
            return Ok(());
        }
        let process = self.process(tid)?;
        let info = Info::from_process(SIGXFSZ, SI_USER, process.pid, process.ids.uid);
        self.send_to_task(tid, info);
        Err(Errno::FBIG)
    }

    pub(crate) fn broken_pipe(&mut self, tid: Tid) -> Errno {
        let from = self.process(tid).map_or((0, 0), |p| (p.pid, p.ids.uid));
        self.send_to_task(tid, Info::from_process(SIGPIPE, SI_USER, from.0, from.1));
        Errno::PIPE
    }
}

pub fn read(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    read_into(kernel, tid, args[0], &one(args[1], args[2]), None)
}

pub fn write(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    write_from(kernel, tid, args[0], &one(args[1], args[2]), None)
}

pub fn pread64(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    read_into(kernel, tid, args[0], &one(args[1], args[2]), Some(offset(args[3])?))
}

pub fn pwrite64(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    write_from(kernel, tid, args[0], &one(args[1], args[2]), Some(offset(args[3])?))
}

pub fn readv(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let pieces = kernel.get_pieces(tid, args[1], args[2])?;
    read_into(kernel, tid, args[0], &pieces, None)
}

pub fn writev(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let pieces = kernel.get_pieces(tid, args[1], args[2])?;
    write_from(kernel, tid, args[0], &pieces, None)
}

pub fn preadv(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let pieces = kernel.get_pieces(tid, args[1], args[2])?;
    read_into(kernel, tid, args[0], &pieces, Some(offset(args[3])?))
}

pub fn pwritev(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let pieces = kernel.get_pieces(tid, args[1], args[2])?;
    write_from(kernel, tid, args[0], &pieces, Some(offset(args[3])?))
}

/// RWF_HIPRI, RWF_DSYNC, RWF_SYNC: what is written is written.
const RWF_KNOWN: u64 = 7;

/// preadv2(2); offset -1 is the file's own.
pub fn preadv2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[5] & !RWF_KNOWN != 0 {
        return Err(Errno::NOTSUP);
    }
    if args[3] == u64::MAX {
        return readv(kernel, tid, args);
    }
    preadv(kernel, tid, args)
}

pub fn pwritev2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[5] & !RWF_KNOWN != 0 {
        return Err(Errno::NOTSUP);
    }
    if args[3] == u64::MAX {
        return writev(kernel, tid, args);
    }
    pwritev(kernel, tid, args)
}

pub fn lseek(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    let distance = args[1] as i64;
    if file.file().stays_at_start() && args[2] <= 4 {
        return Ok(Done::Value(file.seek(SeekFrom::Current(0))? as i64));
    }
    let position = |value: i64| u64::try_from(value).map_err(|_| Errno::INVAL);
    let data = |value: i64| u64::try_from(value).map_err(|_| Errno::NXIO);
    let to = match args[2] {
        0 => SeekFrom::Start(position(distance)?),
        1 => SeekFrom::Current(distance),
        2 => SeekFrom::End(distance),
        3 => SeekFrom::Data(data(distance)?),
        4 => SeekFrom::Hole(data(distance)?),
        _ => return Err(Errno::INVAL),
    };
    Ok(Done::Value(file.seek(to)? as i64))
}

struct Copy<'a> {
    from: &'a OpenFile,
    from_at: Option<u64>,
    to: &'a OpenFile,
    to_at: Option<u64>,
}

/// Move bytes between files within the kernel. How many; EAGAIN when nothing could be moved.
fn copy(kernel: &mut Kernel, tid: Tid, copy: &Copy<'_>, size: u64) -> Result<u64> {
    let mut done = 0;
    while done < size {
        let mut buffer = vec![0; (size - done).min(IO_MAX as u64 / 8) as usize];
        let at = |start: Option<u64>| start.map(|start| start + done);
        let moved = kernel.with_context(tid, |context| {
            let got = match at(copy.from_at) {
                Some(offset) => copy.from.pread(context, offset, &mut buffer)?,
                None => copy.from.read(context, &mut buffer)?,
            };
            let wrote = match at(copy.to_at) {
                Some(offset) => copy.to.pwrite(context, offset, &buffer[..got]),
                None => copy.to.write(context, &buffer[..got]),
            };
            let wrote = wrote.or_else(|errno| give_back(copy, got).and(Err(errno)))?;
            if wrote < got {
                give_back(copy, got - wrote)?;
            }
            Ok((got, wrote))
        });
        match moved {
            Ok((0, _)) => break,
            Ok((got, wrote)) => {
                done += wrote as u64;
                if wrote < got {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

/// What was read and could not be written is read again the next time.
fn give_back(copy: &Copy<'_>, count: usize) -> Result<()> {
    if copy.from_at.is_none() {
        copy.from.seek(SeekFrom::Current(-(count as i64)))?;
    }
    Ok(())
}

/// sendfile(2): from what can be mapped, as there.
pub fn sendfile(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [to, from, position, size, ..] = *args;
    let (to, from) = (kernel.file(tid, to)?, kernel.file(tid, from)?);
    if !from.file().can_seek() {
        return Err(Errno::INVAL);
    }
    let from_at = if position == 0 { None } else { Some(offset(kernel.get_u64(tid, position)?)?) };
    let order = Copy { from: &from, from_at, to: &to, to_at: None };
    match copy(kernel, tid, &order, size.min(RW_MAX)) {
        Ok(done) => {
            if let Some(start) = from_at {
                kernel.put_words(tid, position, &[start + done])?;
            }
            Ok(Done::Value(done as i64))
        }
        Err(Errno::AGAIN) if !to.is_nonblocking() => kernel.wait_for_file(tid, &to, wait::WRITABLE),
        Err(Errno::PIPE) => Err(kernel.broken_pipe(tid)),
        Err(errno) => Err(errno),
    }
}

/// copy_file_range(2) between regular files.
/// EINVAL for ranges of one file that overlap.
fn check_apart(order: &Copy<'_>, size: u64) -> Result<()> {
    let (from, to) = (order.from.metadata()?, order.to.metadata()?);
    if (from.device, from.inode) != (to.device, to.inode) {
        return Ok(());
    }
    let source = order.from_at.unwrap_or_else(|| order.from.position());
    let target = order.to_at.unwrap_or_else(|| order.to.position());
    let size = size.min(from.size_bytes.saturating_sub(source));
    let apart = target.saturating_add(size) <= source || source.saturating_add(size) <= target;
    apart.then_some(()).ok_or(Errno::INVAL)
}

pub fn copy_file_range(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [from, from_position, to, to_position, size, flags] = *args;
    let (from, to) = (kernel.file(tid, from)?, kernel.file(tid, to)?);
    let regular = |file: &OpenFile| file.file().can_seek() && file.file().queue().is_none();
    if flags != 0 || !regular(&from) || !regular(&to) {
        return Err(Errno::INVAL);
    }
    let mut starts = [None, None];
    for (start, position) in starts.iter_mut().zip([from_position, to_position]) {
        if position != 0 {
            *start = Some(offset(kernel.get_u64(tid, position)?)?);
        }
    }
    let order = Copy { from: &from, from_at: starts[0], to: &to, to_at: starts[1] };
    check_apart(&order, size.min(RW_MAX))?;
    let done = copy(kernel, tid, &order, size.min(RW_MAX))?;
    for (start, position) in starts.iter().zip([from_position, to_position]) {
        if let Some(start) = start {
            kernel.put_words(tid, position, &[start + done])?;
        }
    }
    Ok(Done::Value(done as i64))
}
