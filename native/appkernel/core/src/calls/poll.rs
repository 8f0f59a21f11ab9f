//! poll(2), select(2) and their kin.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::{wait, Events, OpenFile};

use super::Args;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::task::Tid;
use crate::timers::timestamp;

const ALWAYS: Events = wait::ERR | wait::HUP;
const READ_SET: Events = wait::IN | wait::RDNORM | wait::HUP | wait::ERR;
const WRITE_SET: Events = wait::OUT | wait::WRNORM | wait::ERR;
const EXCEPT_SET: Events = wait::PRI;

/// Register with all files, to be tried again.
fn wait_for_all(
    kernel: &mut Kernel,
    tid: Tid,
    files: &[(Arc<OpenFile>, Events)],
    deadline: Option<u64>,
) -> Result<Done> {
    let waker = kernel.waker(tid);
    for (file, events) in files {
        if let Some(queue) = file.file().queue() {
            let registration = queue.register(events | ALWAYS, waker.clone());
            kernel.pending(tid)?.registrations.push(registration);
        }
    }
    kernel.wait_until(tid, deadline)
}

/// The deadline of the call: kept from the first try.
fn deadline(kernel: &mut Kernel, tid: Tid, first: impl FnOnce(&Kernel) -> Result<Option<u64>>) -> Result<Option<u64>> {
    match kernel.pending(tid)?.deadline_ns {
        Some(deadline) => Ok(Some(deadline)),
        None => first(kernel),
    }
}

fn is_past(kernel: &Kernel, deadline: Option<u64>) -> bool {
    deadline.is_some_and(|deadline| kernel.timers.now_ns() >= deadline)
}

fn poll_files(kernel: &mut Kernel, tid: Tid, address: u64, count: u64, deadline: Option<u64>) -> Result<Done> {
    if count > kernel.file_limit(tid)? {
        return Err(Errno::INVAL);
    }
    let mut entries = kernel.get_bytes(tid, address, 8 * count as usize)?;
    let (mut ready, mut files) = (0, Vec::new());
    for entry in entries.chunks_exact_mut(8) {
        let fd = i32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
        let wanted = Events::from(u16::from_le_bytes([entry[4], entry[5]]));
        let seen = match kernel.file(tid, fd as u64) {
            _ if fd < 0 => 0,
            Ok(file) => {
                let seen = file.poll(wanted | ALWAYS);
                files.push((file, wanted));
                seen
            }
            Err(_) => wait::NVAL,
        };
        ready += i64::from(seen != 0);
        entry[6..8].copy_from_slice(&(seen as u16).to_le_bytes());
    }
    if ready == 0 && !is_past(kernel, deadline) {
        return wait_for_all(kernel, tid, &files, deadline);
    }
    kernel.put(tid, address, &entries)?;
    Ok(Done::Value(ready))
}

pub fn poll(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let milliseconds = args[2] as i32;
    let deadline =
        deadline(kernel, tid, |k| Ok(u64::try_from(milliseconds).ok().map(|ms| k.timers.now_ns() + ms * 1_000_000)))?;
    poll_files(kernel, tid, args[0], args[1] & 0xffff_ffff, deadline)
}

pub fn ppoll(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let deadline = deadline(kernel, tid, |k| k.get_deadline(tid, args[2]))?;
    kernel.swap_mask(tid, args[3])?;
    let done = poll_files(kernel, tid, args[0], args[1] & 0xffff_ffff, deadline)?;
    tell_rest(kernel, tid, args[2], deadline, &done)?;
    Ok(done)
}

/// Linux says in the timeout how much of it was left.
fn tell_rest(kernel: &Kernel, tid: Tid, address: u64, deadline: Option<u64>, done: &Done) -> Result<()> {
    let (Some(deadline), Done::Value(_)) = (deadline, done) else { return Ok(()) };
    let left = deadline.saturating_sub(kernel.timers.now_ns());
    kernel.put(tid, address, &encode::timespec(timestamp(left)))
}

struct Sets {
    addresses: [u64; 3],
    given: [Vec<u8>; 3],
    count: usize,
}

impl Sets {
    fn read(kernel: &Kernel, tid: Tid, count: u64, addresses: [u64; 3]) -> Result<Sets> {
        let count = usize::try_from(count as i32).map_err(|_| Errno::INVAL)?.min(1 << 20);
        let bytes = count.div_ceil(64) * 8;
        let mut given = [Vec::new(), Vec::new(), Vec::new()];
        for (set, address) in given.iter_mut().zip(addresses) {
            *set = if address == 0 { vec![0; bytes] } else { kernel.get_bytes(tid, address, bytes)? };
        }
        Ok(Sets { addresses, given, count })
    }

    fn wants(&self, set: usize, fd: usize) -> bool {
        self.given[set][fd / 8] >> (fd % 8) & 1 == 1
    }
}

fn select_files(kernel: &mut Kernel, tid: Tid, sets: &Sets, deadline: Option<u64>) -> Result<Done> {
    let (mut out, mut ready, mut files) = (sets.given.clone().map(|set| vec![0u8; set.len()]), 0, Vec::new());
    let masks = [READ_SET, WRITE_SET, EXCEPT_SET];
    for fd in 0..sets.count {
        let wanted: Events = (0..3).filter(|&set| sets.wants(set, fd)).map(|set| masks[set]).fold(0, |a, b| a | b);
        if wanted == 0 {
            continue;
        }
        let file = kernel.file(tid, fd as u64)?;
        let seen = file.poll(wanted | ALWAYS);
        for set in (0..3).filter(|&set| sets.wants(set, fd) && seen & masks[set] != 0) {
            out[set][fd / 8] |= 1 << (fd % 8);
            ready += 1;
        }
        files.push((file, wanted));
    }
    if ready == 0 && !is_past(kernel, deadline) {
        return wait_for_all(kernel, tid, &files, deadline);
    }
    for (set, address) in out.iter().zip(sets.addresses) {
        kernel.put_if(tid, address, set)?;
    }
    Ok(Done::Value(ready))
}

pub fn select(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let sets = Sets::read(kernel, tid, args[0], [args[1], args[2], args[3]])?;
    let deadline = deadline(kernel, tid, |k| {
        if args[4] == 0 {
            return Ok(None);
        }
        let [seconds, micro] = k.get_words(tid, args[4])?;
        if (seconds as i64) < 0 || (micro as i64) < 0 {
            return Err(Errno::INVAL);
        }
        Ok(Some(k.timers.now_ns().saturating_add(seconds.saturating_mul(1_000_000_000)).saturating_add(micro * 1000)))
    })?;
    select_files(kernel, tid, &sets, deadline)
}

pub fn pselect6(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let sets = Sets::read(kernel, tid, args[0], [args[1], args[2], args[3]])?;
    let deadline = deadline(kernel, tid, |k| k.get_deadline(tid, args[4]))?;
    if args[5] != 0 {
        let [mask, _] = kernel.get_words(tid, args[5])?;
        kernel.swap_mask(tid, mask)?;
    }
    let done = select_files(kernel, tid, &sets, deadline)?;
    tell_rest(kernel, tid, args[4], deadline, &done)?;
    Ok(done)
}
