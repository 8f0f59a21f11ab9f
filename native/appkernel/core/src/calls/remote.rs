//! Memory of other processes: process_vm_readv(2), process_vm_writev(2).

use drupe_appkernel_abi::{Errno, Result};

use super::Args;
use crate::guest::{total, Piece, IO_MAX};
use crate::kernel::{Done, Kernel};
use crate::platform::SpaceId;
use crate::task::Tid;

/// The space of another process that the caller may look into. ESRCH, EPERM.
fn space(kernel: &Kernel, tid: Tid, number: u64) -> Result<SpaceId> {
    let pid = kernel.task(number as u32)?.pid;
    kernel.check_look(tid, pid)?;
    let mm = kernel.tasks.processes.get(&pid).ok_or(Errno::SRCH)?.mm;
    Ok(kernel.mms.get(&mm).ok_or(Errno::SRCH)?.space)
}

/// Both lists of pieces, cut to what one call moves. EINVAL, EFAULT.
fn lists(kernel: &Kernel, tid: Tid, args: &Args) -> Result<(Vec<Piece>, Vec<Piece>, usize)> {
    if args[5] != 0 {
        return Err(Errno::INVAL);
    }
    let (own, other) = (kernel.get_pieces(tid, args[1], args[2])?, kernel.get_pieces(tid, args[3], args[4])?);
    let size = total(&own).min(total(&other)).min(IO_MAX as u64) as usize;
    Ok((own, other, size))
}

/// Do `step` with each piece of the other's memory, from the offset in the whole on, until one gives less than was asked. How much it was; EFAULT.
fn walk(pieces: &[Piece], size: usize, mut step: impl FnMut(u64, usize, usize) -> usize) -> Result<usize> {
    let mut done = 0;
    for piece in pieces {
        let part = piece.size.min(size - done);
        let moved = if part == 0 { 0 } else { step(piece.address, done, part) };
        done += moved;
        if moved < part {
            break;
        }
    }
    (done > 0 || size == 0).then_some(done).ok_or(Errno::FAULT)
}

pub fn process_vm_readv(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (own, other, size) = lists(kernel, tid, args)?;
    let space = space(kernel, tid, args[0])?;
    let mut bytes = vec![0; size];
    let platform = &kernel.platform;
    let got =
        walk(&other, size, |address, at, part| platform.read(space, address, &mut bytes[at..at + part]).unwrap_or(0))?;
    kernel.scatter(tid, &own, 0, &bytes[..got])?;
    Ok(Done::Value(got as i64))
}

pub fn process_vm_writev(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (own, other, size) = lists(kernel, tid, args)?;
    let space = space(kernel, tid, args[0])?;
    let bytes = kernel.gather(tid, &own, 0, size)?;
    let platform = &kernel.platform;
    let put = walk(&other, bytes.len(), |address, at, part| {
        platform.write(space, address, &bytes[at..at + part]).unwrap_or(0)
    })?;
    Ok(Done::Value(put as i64))
}
