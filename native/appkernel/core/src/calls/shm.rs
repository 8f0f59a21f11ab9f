//! System V shared memory: shmget(2), shmat(2), shmdt(2), shmctl(2). A segment is a nameless file in memory.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::OpenFile;

use super::{memory, Args};
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::mm::{round_up, PAGE};
use crate::pids;
use crate::platform::MemoryOp;
use crate::sysv::{IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, MAY_READ, MAY_WRITE};
use crate::task::{Pid, Tid};

const SHM_RDONLY: u64 = 0o10_000;
const SHM_RND: u64 = 0o20_000;
const SHM_REMAP: u64 = 0o40_000;
const SHM_EXEC: u64 = 0o100_000;
const SHM_DEST: u32 = 0o1000;
const SHM_STAT: u64 = 13;
const SHM_INFO: u64 = 14;
const SHM_STAT_ANY: u64 = 15;

/// One segment; its file lives as long as somebody has it attached.
pub struct Segment {
    file: Arc<OpenFile>,
    size_bytes: u64,
    creator: Pid,
    last: Pid,
    /// Of the last attach, detach and change.
    times: [u64; 3],
    is_removed: bool,
}

pub fn shmget(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [key, size, flags, ..] = *args;
    let (by, pid, now) = (kernel.credentials(tid)?, kernel.pid(tid), kernel.seconds());
    let fits = |segment: &Segment| (size <= segment.size_bytes).then_some(()).ok_or(Errno::INVAL);
    let (limits, pages) = (kernel.ipc, |bytes: u64| bytes.div_ceil(PAGE));
    let taken: u64 = kernel.sysv.segments.values().map(|segment| pages(segment.size_bytes)).sum();
    let room = (kernel.sysv.segments.values().count() as u64) < limits.segments
        && taken.saturating_add(pages(size)) <= limits.segment_pages;
    let mut sysv = std::mem::take(&mut kernel.sysv);
    let made = sysv.segments.find(key as u32, flags, &by, fits, || {
        let whole = round_up(size).filter(|&whole| whole > 0 && size <= limits.segment_bytes).ok_or(Errno::INVAL)?;
        if !room {
            return Err(Errno::NOSPC);
        }
        let file = kernel.new_memfd(tid, format!("SYSV{:08x}", key as u32).as_bytes(), false)?;
        kernel.with_context(tid, |context| file.truncate(context, whole))?;
        let (creator, times) = (pid, [0, 0, now]);
        Ok(Segment { file, size_bytes: size, creator, last: 0, times, is_removed: false })
    });
    kernel.sysv = sysv;
    made.map(|id| Done::Value(id.into()))
}

pub fn shmat(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [id, address, flags, ..] = *args;
    let (by, pid, now) = (kernel.credentials(tid)?, kernel.pid(tid), kernel.seconds());
    let writes = flags & SHM_RDONLY == 0;
    let (permissions, segment) = kernel.sysv.segments.get_mut(id)?;
    permissions.check(&by, MAY_READ | if writes { MAY_WRITE } else { 0 })?;
    (segment.last, segment.times[0]) = (pid, now);
    let (file, size) = (Arc::clone(&segment.file), segment.size_bytes);
    let address = match flags & SHM_RND {
        0 if address % PAGE != 0 => return Err(Errno::INVAL),
        _ => address & !(PAGE - 1),
    };
    let place = match (address, flags & SHM_REMAP) {
        (0, 0) => 0,
        (0, _) => return Err(Errno::INVAL),
        (_, 0) => memory::MAP_FIXED_NOREPLACE,
        _ => memory::MAP_FIXED,
    };
    let protection = 1 | if writes { 2 } else { 0 } | if flags & SHM_EXEC != 0 { 4 } else { 0 };
    let order = [address, size, protection, memory::MAP_SHARED | place, 0, 0];
    let mapped = memory::map(kernel, tid, &order, Some(file));
    mapped.map_err(|errno| if errno == Errno::EXIST { Errno::INVAL } else { errno })
}

/// Parts of the caller's space that belong to the segment attached at this address.
pub fn shmdt(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let at = args[0];
    let area = kernel.mm(tid)?.areas.get(&at).and_then(|area| area.file.clone());
    let (file, offset) = area.ok_or(Errno::INVAL)?;
    let (pid, now) = (kernel.pid(tid), kernel.seconds());
    let is_it = |segment: &&mut Segment| offset == 0 && Arc::ptr_eq(&segment.file, &file);
    let segment = kernel.sysv.segments.values_mut().find(is_it);
    let segment = segment.ok_or(Errno::INVAL)?;
    (segment.last, segment.times[1]) = (pid, now);
    let size = round_up(segment.size_bytes).ok_or(Errno::INVAL)?;
    let mm = kernel.mm_mut(tid)?;
    let mut ops = Vec::new();
    for (start, area) in mm.remove(at, at + size) {
        match &area.file {
            Some((other, _)) if Arc::ptr_eq(other, &file) => {
                ops.push(MemoryOp::Unmap { address: start, size: area.end - start });
            }
            _ => mm.insert(start, area),
        }
    }
    kernel.drop_removed_segments();
    Ok(Done::Change(0, ops))
}

impl Kernel {
    fn attached(&self, segment: &Segment) -> u64 {
        let areas = self.mms.values().flat_map(|mm| mm.areas.values());
        let of = |file: &Option<(Arc<OpenFile>, u64)>| {
            file.as_ref().is_some_and(|(file, offset)| *offset == 0 && Arc::ptr_eq(file, &segment.file))
        };
        areas.filter(|area| of(&area.file)).count() as u64
    }

    /// Removed segments that nobody has attached any more are gone.
    pub(crate) fn drop_removed_segments(&mut self) {
        if self.sysv.segments.values().any(|segment| segment.is_removed) {
            let mut sysv = std::mem::take(&mut self.sysv);
            sysv.segments.retain(|segment| !segment.is_removed || self.attached(segment) > 0);
            self.sysv = sysv;
        }
    }
}

/// struct shmid_ds.
fn shown(kernel: &Kernel, tid: Tid, id: u64) -> Result<Vec<u8>> {
    let (permissions, segment) = kernel.sysv.segments.get(id)?;
    let mut bytes = permissions.encode(if segment.is_removed { SHM_DEST } else { 0 });
    bytes.extend(encode::words(&[segment.size_bytes]));
    bytes.extend(encode::words(&segment.times));
    let seen = |pid| pids::seen_from(kernel.view(tid), pid).to_le_bytes();
    bytes.extend([segment.creator, segment.last].into_iter().flat_map(seen));
    bytes.extend(encode::words(&[kernel.attached(segment), 0, 0]));
    Ok(bytes)
}

/// IPC_INFO: struct shminfo, the limits; SHM_INFO: struct shm_info, what there is, all of it in memory.
fn information(kernel: &Kernel, command: u64) -> Vec<u8> {
    let limits = kernel.ipc;
    if command == IPC_INFO {
        let most = [limits.segment_bytes, 1, limits.segments, limits.segments, limits.segment_pages];
        return encode::words(&[&most[..], &[0; 4]].concat());
    }
    let segments = &kernel.sysv.segments;
    let pages: u64 = segments.values().map(|segment| segment.size_bytes.div_ceil(PAGE)).sum();
    encode::words(&[segments.values().count() as u64, pages, pages, 0, 0, 0])
}

pub fn shmctl(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const SHM_LOCK: u64 = 11;
    const SHM_UNLOCK: u64 = 12;
    let [id, command, address, ..] = *args;
    let by = kernel.credentials(tid)?;
    let now = kernel.seconds();
    if matches!(command, IPC_INFO | SHM_INFO) {
        kernel.put(tid, address, &information(kernel, command))?;
        return Ok(Done::Value(kernel.sysv.segments.last_place()));
    }
    let by_place = matches!(command, SHM_STAT | SHM_STAT_ANY);
    let id = if by_place { kernel.sysv.segments.at(id)? as u64 } else { id };
    let (permissions, _) = kernel.sysv.segments.get(id)?;
    match command {
        IPC_STAT | SHM_STAT | SHM_STAT_ANY => {
            if command != SHM_STAT_ANY {
                permissions.check(&by, MAY_READ)?;
            }
            kernel.put(tid, address, &shown(kernel, tid, id)?)?;
            return Ok(Done::Value(if by_place { id as i64 } else { 0 }));
        }
        IPC_SET => {
            permissions.check_owner(&by)?;
            let given = kernel.get_bytes(tid, address, 48)?;
            let (permissions, segment) = kernel.sysv.segments.get_mut(id)?;
            permissions.set(&given);
            segment.times[2] = now;
        }
        IPC_RMID => {
            permissions.check_owner(&by)?;
            let (permissions, segment) = kernel.sysv.segments.get_mut(id)?;
            segment.is_removed = true;
            permissions.key = 0;
            kernel.drop_removed_segments();
        }
        SHM_LOCK | SHM_UNLOCK => permissions.check_owner(&by)?,
        _ => return Err(Errno::INVAL),
    }
    Ok(Done::Value(0))
}
