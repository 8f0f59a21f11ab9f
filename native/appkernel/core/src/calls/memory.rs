//! Memory: brk, mmap and its kin. The book-keeping is changed at once, the space itself on the way back to the guest.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::devices::MemoryDevice;
use drupe_appkernel_vfs::OpenFile;

use super::Args;
use crate::kernel::{Done, Kernel};
use crate::mm::{round_up, Area, Mm, LOWEST, PAGE, PROT_READ, PROT_WRITE};
use crate::platform::MemoryOp;
use crate::task::Tid;

pub(super) const MAP_SHARED: u64 = 1;
const MAP_PRIVATE: u64 = 2;
const MAP_SHARED_VALIDATE: u64 = 3;
pub(super) const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_GROWSDOWN: u64 = 0x100;
const MAP_LOCKED: u64 = 0x2000;
pub(super) const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const PROTECTIONS: u64 = 7;
const LIMIT_DATA: usize = 2;
const LIMIT_AS: usize = 9;
const COPY_BYTES: usize = 1 << 20;

pub fn brk(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let wanted = args[0];
    let limit = kernel.process(tid)?.limits[LIMIT_DATA].0;
    let growth = wanted.saturating_sub(kernel.mm(tid)?.brk);
    let locks = kernel.check_future_lock(tid, false, growth);
    let mm = kernel.mm_mut(tid)?;
    let (old, refused) = (mm.brk, Ok(Done::Value(mm.brk as i64)));
    if wanted < mm.brk_start || wanted - mm.brk_start > limit || locks.is_err() {
        return refused;
    }
    let (Some(old_end), Some(end)) = (round_up(old), round_up(wanted)) else { return refused };
    if end > old_end && (end > mm.top || !mm.is_free(old_end, end)) {
        return refused;
    }
    mm.brk = wanted;
    let mut ops = Vec::new();
    if end > old_end {
        let protection = PROT_READ | PROT_WRITE;
        mm.insert(old_end, Area { end, protection, shared: false, file: None, name: "[heap]" });
        if locks == Ok(true) {
            mm.locked.insert(old_end, end);
        }
        ops.push(MemoryOp::MapAnonymous { address: old_end, size: end - old_end, protection, shared: false });
    } else if end < old_end {
        mm.remove(end, old_end);
        ops.push(MemoryOp::Unmap { address: end, size: old_end - end });
    }
    Ok(Done::Change(wanted as i64, ops))
}

/// Where a mapping goes. EINVAL, ENOMEM, EEXIST.
fn choose(mm: &Mm, hint: u64, size: u64, flags: u64) -> Result<u64> {
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
        let (start, end) = mm.range(hint, size)?;
        if start < LOWEST {
            return Err(Errno::PERM);
        }
        if flags & MAP_FIXED_NOREPLACE != 0 && !mm.is_free(start, end) {
            return Err(Errno::EXIST);
        }
        return Ok(start);
    }
    let hint = hint & !(PAGE - 1);
    let fits = hint >= LOWEST && hint.checked_add(size).is_some_and(|end| end <= mm.end && mm.is_free(hint, end));
    if fits {
        return Ok(hint);
    }
    mm.place(size)
}

/// May a file be mapped so? EACCES.
fn check_file(file: &OpenFile, protection: u32, shared: bool) -> Result<()> {
    let flags = file.flags();
    let writes = shared && protection & PROT_WRITE != 0;
    (flags.reads() && (!writes || flags.writes())).then_some(()).ok_or(Errno::ACCES)
}

/// Flags that Linux knows (mmap(2)); others it takes for nothing, except with MAP_SHARED_VALIDATE.
const KNOWN_FLAGS: u64 = 0x1f_f9f3 & !0x8_0000; // without MAP_SYNC

pub fn mmap(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = if args[3] & MAP_ANONYMOUS == 0 { Some(kernel.file(tid, args[4])?) } else { None };
    map(kernel, tid, args, file)
}

/// mmap(2) of this file, whatever its descriptor.
pub(super) fn map(kernel: &mut Kernel, tid: Tid, args: &Args, file: Option<Arc<OpenFile>>) -> Result<Done> {
    let [hint, size, protection, flags, _, offset] = *args;
    if flags & 3 == MAP_SHARED_VALIDATE && (file.is_none() || flags & !KNOWN_FLAGS != 0) {
        return Err(if file.is_none() { Errno::INVAL } else { Errno::NOTSUP });
    }
    let shared = match flags & 3 {
        MAP_SHARED | MAP_SHARED_VALIDATE => true,
        MAP_PRIVATE => false,
        _ => return Err(Errno::INVAL),
    };
    let size = round_up(size).filter(|&size| size > 0).ok_or(if size == 0 { Errno::INVAL } else { Errno::NOMEM })?;
    if offset % PAGE != 0 {
        return Err(Errno::INVAL);
    }
    let protection = (protection & PROTECTIONS) as u32;
    if let Some(file) = &file {
        check_file(file, protection, shared)?;
    }
    // /dev/zero is memory without a file.
    let file = file.filter(|file| !file.downcast::<MemoryDevice>().is_some_and(MemoryDevice::maps_zeros));
    let limit = kernel.process(tid)?.limits[LIMIT_AS].0;
    let locks = kernel.check_future_lock(tid, flags & MAP_LOCKED != 0, size)?;
    let mm = kernel.mm_mut(tid)?;
    if mm.size_bytes().saturating_add(size) > limit || mm.is_full() {
        return Err(Errno::NOMEM);
    }
    let address = choose(mm, hint, size, flags)?;
    let done = place(kernel, tid, (address, size), (protection, shared), file.map(|file| (file, offset)))?;
    let mm = kernel.mm_mut(tid)?;
    if locks {
        mm.locked.insert(address, address + size);
    }
    if flags & MAP_GROWSDOWN != 0 && !shared {
        mm.growing.insert(address + size);
    }
    Ok(done)
}

fn place(
    kernel: &mut Kernel,
    tid: Tid,
    (address, size): (u64, u64),
    (protection, shared): (u32, bool),
    file: Option<(Arc<OpenFile>, u64)>,
) -> Result<Done> {
    let area = Area { end: address + size, protection, shared, file: file.clone(), name: "" };
    let Some((file, offset)) = file else {
        kernel.mm_mut(tid)?.insert(address, area);
        let op = MemoryOp::MapAnonymous { address, size, protection, shared };
        return Ok(Done::Change(address as i64, vec![op]));
    };
    map_file(kernel, tid, &file, address, area, offset)
}

fn map_file(
    kernel: &mut Kernel,
    tid: Tid,
    file: &Arc<OpenFile>,
    address: u64,
    area: Area,
    offset: u64,
) -> Result<Done> {
    let (size, protection, shared) = (area.end - address, area.protection, area.shared);
    match file.file().mapping(offset, size, shared && file.flags().writes()) {
        Ok(mapping) => {
            kernel.mm_mut(tid)?.insert(address, area);
            let (host, offset) = (mapping.host, mapping.offset);
            // What may only be read is the same either way, and guest code that raises the protection itself, by a jump into
            // the stub, then changes a copy of its own.
            let shared = shared && file.flags().writes();
            let file = host;
            let op = MemoryOp::MapFile { address, size, protection, shared, file, offset };
            Ok(Done::Change(address as i64, vec![op]))
        }
        Err(errno) if shared || errno == Errno::ACCES || errno == Errno::NODEV => Err(errno),
        Err(_) => {
            kernel.mm_mut(tid)?.insert(address, area);
            copy_in(kernel, tid, file, (address, size, protection), offset)?;
            Ok(Done::Value(address as i64))
        }
    }
}

/// A private mapping of what the host cannot map: a copy.
fn copy_in(
    kernel: &mut Kernel,
    tid: Tid,
    file: &OpenFile,
    (address, size, protection): (u64, u64, u32),
    offset: u64,
) -> Result<()> {
    let (thread, space) = (kernel.thread(tid)?, kernel.space(tid)?);
    let writable = protection | PROT_READ | PROT_WRITE;
    kernel.platform.change(thread, &[MemoryOp::MapAnonymous { address, size, protection: writable, shared: false }])?;
    let mut done = 0;
    while done < size {
        let mut bytes = vec![0; COPY_BYTES.min((size - done) as usize)];
        let got = kernel.with_context(tid, |context| file.file().read(context, offset + done, &mut bytes))?;
        if got == 0 {
            break;
        }
        kernel.platform.write(space, address + done, &bytes[..got])?;
        done += got as u64;
    }
    kernel.platform.change(thread, &[MemoryOp::Protect { address, size, protection }])
}

pub fn munmap(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let mm = kernel.mm_mut(tid)?;
    let (address, end) = mm.range(args[0], args[1]).map_err(|_| Errno::INVAL)?;
    if mm.remove(address, end).is_empty() {
        return Ok(Done::Value(0));
    }
    Ok(Done::Change(0, vec![MemoryOp::Unmap { address, size: end - address }]))
}

pub fn mprotect(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const GROWS: u64 = 0x300_0000;
    if args[2] & !(PROTECTIONS | GROWS | 8) != 0 {
        return Err(Errno::INVAL);
    }
    let protection = (args[2] & PROTECTIONS) as u32;
    let mm = kernel.mm_mut(tid)?;
    if args[1] == 0 && args[0] % PAGE == 0 {
        return Ok(Done::Value(0));
    }
    let (mut address, end) = mm.range(args[0], args[1])?;
    if args[2] & GROWS == 0x100_0000 {
        // PROT_GROWSDOWN: the whole of what grows, which is the stack.
        address = mm.overlapping(address, end).next().map_or(address, |(start, _)| start);
    }
    if !mm.is_mapped(address, end) || mm.is_full() {
        return Err(Errno::NOMEM);
    }
    for (_, area) in mm.overlapping(address, end) {
        if let (true, Some((file, _))) = (area.shared, &area.file) {
            check_file(file, protection, true)?;
        }
    }
    mm.protect(address, end, protection);
    Ok(Done::Change(0, vec![MemoryOp::Protect { address, size: end - address, protection }]))
}

pub fn mremap(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const MAYMOVE: u64 = 1;
    const FIXED: u64 = 2;
    let [from, old_size, new_size, flags, wanted, _] = *args;
    let mm = kernel.mm_mut(tid)?;
    let (_, old_end) = mm.range(from, old_size)?;
    let (old_size, new_size) = (old_end - from, round_up(new_size).filter(|&s| s > 0).ok_or(Errno::INVAL)?);
    if flags & !3 != 0 || (flags & FIXED != 0 && flags & MAYMOVE == 0) {
        return Err(Errno::INVAL);
    }
    let (start, area) = mm.overlapping(from, old_end).next().ok_or(Errno::FAULT)?;
    if start > from || area.end < old_end {
        return Err(Errno::FAULT);
    }
    let mut moved = area.clone();
    if let Some((_, offset)) = &mut moved.file {
        *offset += from - start;
    }
    let fixed = flags & FIXED != 0;
    if !fixed && new_size <= old_size {
        if new_size == old_size {
            return Ok(Done::Value(from as i64));
        }
        mm.remove(from + new_size, old_end);
        let op = MemoryOp::Unmap { address: from + new_size, size: old_size - new_size };
        return Ok(Done::Change(from as i64, vec![op]));
    }
    let to = new_place(mm, (from, old_end), new_size, fixed.then_some(wanted), flags & MAYMOVE != 0)?;
    let mut ops = Vec::new();
    if new_size < old_size {
        ops.push(MemoryOp::Unmap { address: from + new_size, size: old_size - new_size });
    }
    match moved.shared || mm.pieces.is_empty() {
        true => ops.push(MemoryOp::Move { from, from_size: old_size.min(new_size), to, to_size: new_size }),
        false => ops.extend(move_pieces(mm, &moved, (from, old_size.min(new_size)), (to, new_size))?),
    }
    mm.remove(from, old_end);
    mm.insert(to, Area { end: to + new_size, ..moved });
    Ok(Done::Change(to as i64, ops))
}

/// A move of what the host has in pieces, which it would refuse as a whole: each of them, then what is new behind them.
fn move_pieces(
    mm: &mut Mm,
    area: &Area,
    (from, size): (u64, u64),
    (to, new_size): (u64, u64),
) -> Result<Vec<MemoryOp>> {
    let end = from + size;
    let mut cuts: Vec<u64> = mm.pieces.iter().flat_map(|(start, end)| [*start, *end]).collect();
    cuts.extend([from, end]);
    cuts.retain(|cut| (from..=end).contains(cut));
    cuts.sort_unstable();
    cuts.dedup();
    let mut ops = Vec::new();
    for part in cuts.windows(2).filter(|_| from != to) {
        let (part_size, there) = (part[1] - part[0], part[0] - from + to);
        ops.push(MemoryOp::Move { from: part[0], from_size: part_size, to: there, to_size: part_size });
        mm.pieces.insert(there, there + part_size);
    }
    if new_size > size {
        let new = Area {
            file: area.file.as_ref().map(|(file, offset)| (Arc::clone(file), offset + size)),
            end: to + new_size,
            ..area.clone()
        };
        ops.push(mapping(to + size, &new)?);
    }
    Ok(ops)
}

/// As mmap(2) has mapped an area; what was copied is memory without a file.
pub(crate) fn mapping(address: u64, area: &Area) -> Result<MemoryOp> {
    let (size, protection) = (area.end - address, area.protection);
    let anonymous = MemoryOp::MapAnonymous { address, size, protection, shared: area.shared };
    let Some((file, offset)) = &area.file else { return Ok(anonymous) };
    let shared = area.shared && file.flags().writes();
    match file.file().mapping(*offset, size, shared) {
        Ok(found) => {
            Ok(MemoryOp::MapFile { address, size, protection, shared, file: found.host, offset: found.offset })
        }
        Err(errno) if area.shared => Err(errno),
        Err(_) => Ok(anonymous),
    }
}

fn new_place(mm: &Mm, old: (u64, u64), size: u64, wanted: Option<u64>, may_move: bool) -> Result<u64> {
    if let Some(to) = wanted {
        let (to, end) = mm.range(to, size)?;
        let apart = end <= old.0 || to >= old.1;
        return (apart && to >= LOWEST).then_some(to).ok_or(Errno::INVAL);
    }
    let end = old.0.checked_add(size).ok_or(Errno::NOMEM)?;
    if end <= mm.end && mm.is_free(old.1, end) {
        return Ok(old.0);
    }
    if !may_move {
        return Err(Errno::NOMEM);
    }
    mm.place(size)
}

/// MADV_DONTNEED and MADV_FREE of what may be a snapshot's pages: without them the file's are there, or zeros. (Others are the
/// host's to do, and so are these where no snapshot was.)
fn forget(kernel: &mut Kernel, tid: Tid, start: u64, end: u64) -> Result<Done> {
    let mm = kernel.mm_mut(tid)?;
    let private: Vec<(u64, Area)> =
        mm.overlapping(start, end).filter(|(_, area)| !area.shared).map(|(at, area)| (at, area.clone())).collect();
    let mut ops = Vec::new();
    for (at, area) in private {
        let (from, to) = (at.max(start), area.end.min(end));
        let file = area.file.as_ref().map(|(file, offset)| (Arc::clone(file), offset + (from - at)));
        ops.push(mapping(from, &Area { end: to, file, ..area })?);
        mm.pieces.insert(from, to);
    }
    Ok(Done::Change(0, ops))
}

/// madvise(2): what is not passed to the host is advice that may be ignored.
pub fn madvise(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[1] == 0 {
        return Ok(Done::Value(0));
    }
    let mm = kernel.mm_mut(tid)?;
    let (start, end) = mm.range(args[0], args[1])?;
    if !mm.is_mapped(start, end) {
        return Err(Errno::NOMEM);
    }
    match args[2] {
        4 | 8 => forget(kernel, tid, start, end),
        3 => Ok(Done::Value(0)),
        0..=2 | 12..=17 | 20..=23 | 25 => Ok(Done::Value(0)),
        _ => Err(Errno::INVAL),
    }
}

pub fn msync(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let mm = kernel.mm_mut(tid)?;
    if args[2] & !7 != 0 || args[2] & 5 == 5 || args[0] % PAGE != 0 {
        return Err(Errno::INVAL);
    }
    if args[1] == 0 {
        return Ok(Done::Value(0));
    }
    let (start, end) = mm.range(args[0], args[1])?;
    mm.is_mapped(start, end).then_some(Done::Value(0)).ok_or(Errno::NOMEM)
}

pub fn arch_prctl(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [code, address, ..] = *args;
    let end = kernel.platform.address_end();
    let op = match code {
        0x1001 | 0x1002 if address >= end => return Err(Errno::PERM),
        0x1001 => MemoryOp::SetGs(address),
        0x1002 => MemoryOp::SetFs(address),
        0x1003 => MemoryOp::GetFs(address),
        0x1004 if !kernel.platform.owns_gs(kernel.thread(tid)?) => {
            kernel.put(tid, address, &[0; 8])?;
            return Ok(Done::Value(0));
        }
        0x1004 => MemoryOp::GetGs(address),
        0x1011 => return Ok(Done::Value(1)), // ARCH_GET_CPUID: it may be asked
        0x1012 => return Err(Errno::NODEV),  // and is not to be had otherwise
        _ => return Err(Errno::INVAL),
    };
    Ok(Done::Change(0, vec![op]))
}
