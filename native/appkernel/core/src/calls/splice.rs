//! splice(2), tee(2), vmsplice(2): by copies within the kernel.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::pipe::PipeEnd;
use drupe_appkernel_vfs::{wait, Events, FileType, OpenFile, OpenFlags};

use super::io::{self, offset};
use super::Args;
use crate::kernel::{Done, Kernel};
use crate::task::Tid;

const CHUNK_BYTES: usize = 64 << 10;
const NONBLOCK: u64 = 2;
const KNOWN: u64 = 0xf;

/// Wait for a file, unless somebody said not to. Who has moved something already does not wait.
fn wait_for(kernel: &mut Kernel, tid: Tid, file: &OpenFile, events: Events, flags: u64) -> Result<Done> {
    if flags & NONBLOCK != 0 || file.is_nonblocking() {
        return Err(Errno::AGAIN);
    }
    kernel.wait_for_file(tid, file, events)
}

/// Whether what is read of a file or written to it is bytes: not so of directories, events, processes.
fn has_bytes(file: &OpenFile) -> bool {
    match file.metadata().map(|metadata| metadata.kind()) {
        Ok(FileType::Directory) => false,
        Ok(FileType::Regular) => file.file().can_seek(),
        _ => true,
    }
}

fn position(kernel: &Kernel, tid: Tid, file: &OpenFile, address: u64) -> Result<Option<u64>> {
    match address {
        0 => Ok(None),
        _ if file.downcast::<PipeEnd>().is_some() => Err(Errno::SPIPE),
        _ => Ok(Some(offset(kernel.get_u64(tid, address)?)?)),
    }
}

pub fn splice(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [from, from_position, to, to_position, size, flags] = *args;
    let (from, to) = (kernel.file(tid, from)?, kernel.file(tid, to)?);
    if flags & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    if !from.flags().reads() || !to.flags().writes() {
        return Err(Errno::BADF);
    }
    let pipes = (from.downcast::<PipeEnd>(), to.downcast::<PipeEnd>());
    let appends = pipes.1.is_none() && to.flags().has(OpenFlags::APPEND);
    if appends || !has_bytes(&from) || !has_bytes(&to) {
        return Err(Errno::INVAL);
    }
    let from_at = position(kernel, tid, &from, from_position)?;
    let to_at = position(kernel, tid, &to, to_position)?;
    let size = size.min(CHUNK_BYTES as u64) as usize;
    let moved = match pipes {
        (None, None) => return Err(Errno::INVAL),
        (Some(one), Some(two)) if one.same_pipe(two) => return Err(Errno::INVAL),
        _ if size == 0 => return Ok(Done::Value(0)),
        (Some(pipe), _) => from_pipe(kernel, tid, pipe, &to, to_at, size),
        (None, Some(pipe)) => into_pipe(kernel, tid, &from, from_at, pipe, &to, size),
    };
    match moved {
        Ok(count) => {
            for (at, address) in [(from_at, from_position), (to_at, to_position)] {
                if let Some(at) = at {
                    kernel.put_words(tid, address, &[at + count as u64])?;
                }
            }
            Ok(Done::Value(count as i64))
        }
        Err(Errno::PIPE) => Err(kernel.broken_pipe(tid)),
        Err(Errno::AGAIN) if from.poll(wait::IN | wait::HUP) == 0 => {
            wait_for(kernel, tid, &from, wait::READABLE, flags)
        }
        Err(Errno::AGAIN) => wait_for(kernel, tid, &to, wait::WRITABLE, flags),
        Err(errno) => Err(errno),
    }
}

/// What the other side takes leaves the pipe.
fn from_pipe(
    kernel: &Kernel,
    tid: Tid,
    pipe: &PipeEnd,
    to: &Arc<OpenFile>,
    at: Option<u64>,
    size: usize,
) -> Result<usize> {
    let mut bytes = vec![0; size];
    let count = pipe.peek(&mut bytes)?;
    if count == 0 {
        return Ok(0);
    }
    let taken = kernel.with_context(tid, |context| match at {
        Some(offset) => to.pwrite(context, offset, &bytes[..count]),
        None => to.write(context, &bytes[..count]),
    })?;
    pipe.consume(taken);
    Ok(taken)
}

/// No more is read than the pipe has room for.
fn into_pipe(
    kernel: &Kernel,
    tid: Tid,
    from: &Arc<OpenFile>,
    at: Option<u64>,
    pipe: &PipeEnd,
    to: &Arc<OpenFile>,
    size: usize,
) -> Result<usize> {
    let room = size.min(pipe.free_bytes());
    if room == 0 {
        return if to.poll(wait::ERR) != 0 { Err(Errno::PIPE) } else { Err(Errno::AGAIN) };
    }
    let mut bytes = vec![0; room];
    kernel.with_context(tid, |context| {
        let count = match at {
            Some(offset) => from.pread(context, offset, &mut bytes)?,
            None => from.read(context, &mut bytes)?,
        };
        if count == 0 {
            return Ok(0);
        }
        to.write(context, &bytes[..count])
    })
}

pub fn tee(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [from, to, size, flags, ..] = *args;
    let (from, to) = (kernel.file(tid, from)?, kernel.file(tid, to)?);
    let (Some(one), Some(two)) = (from.downcast::<PipeEnd>(), to.downcast::<PipeEnd>()) else {
        return Err(Errno::INVAL);
    };
    if one.same_pipe(two) || flags & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    let mut bytes = vec![0; size.min(CHUNK_BYTES as u64) as usize];
    match one.peek(&mut bytes) {
        Ok(0) => return Ok(Done::Value(0)),
        Ok(count) => bytes.truncate(count),
        Err(Errno::AGAIN) => return wait_for(kernel, tid, &from, wait::READABLE, flags),
        Err(errno) => return Err(errno),
    }
    bytes.truncate(two.free_bytes().max(1));
    match kernel.with_context(tid, |context| to.write(context, &bytes)) {
        Ok(count) => Ok(Done::Value(count as i64)),
        Err(Errno::AGAIN) => wait_for(kernel, tid, &to, wait::WRITABLE, flags),
        Err(Errno::PIPE) => Err(kernel.broken_pipe(tid)),
        Err(errno) => Err(errno),
    }
}

/// vmsplice(2): pages are copied, not given.
pub fn vmsplice(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    if file.downcast::<PipeEnd>().is_none() {
        return Err(Errno::BADF);
    }
    if args[3] & !KNOWN != 0 {
        return Err(Errno::INVAL);
    }
    if file.flags().writes() {
        return give(kernel, tid, &file, args);
    }
    if args[3] & NONBLOCK != 0 && file.poll(wait::IN | wait::HUP) == 0 {
        return Err(Errno::AGAIN);
    }
    io::readv(kernel, tid, args)
}

/// As much as there is room for: only a full pipe is waited for.
fn give(kernel: &mut Kernel, tid: Tid, file: &Arc<OpenFile>, args: &Args) -> Result<Done> {
    let pieces = kernel.get_pieces(tid, args[1], args[2])?;
    let room = file.downcast::<PipeEnd>().map_or(0, PipeEnd::free_bytes);
    if room == 0 && file.poll(wait::ERR) == 0 && pieces.iter().any(|piece| piece.size > 0) {
        return wait_for(kernel, tid, file, wait::WRITABLE, args[3]);
    }
    let bytes = kernel.gather(tid, &pieces, 0, room.max(1))?;
    match kernel.with_context(tid, |context| file.write(context, &bytes)) {
        Ok(count) => Ok(Done::Value(count as i64)),
        Err(Errno::PIPE) => Err(kernel.broken_pipe(tid)),
        Err(errno) => Err(errno),
    }
}
