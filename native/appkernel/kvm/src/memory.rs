//! The memory of all spaces: what is mapped, and pages put in where guest code touches them.
//!
//! A fork shares pages, which neither may write; who writes gets a copy (or the page itself, if nobody else has it).
//! Whenever an entry of a page table comes to mean something else, or allows less, processors are made to forget the page
//! (`Frames::shoot`): the host then takes it away from the machine for a moment, whatever keeps translations there.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_core::platform::{MemoryOp, SpaceId};
use drupe_appkernel_hostsys::arena::PAGE;
use drupe_appkernel_hostsys::memory::with_fd;
use drupe_appkernel_vfs::HostFile;

use crate::area::{Area, Areas, Backing, Window, PROT_EXEC, PROT_WRITE};
use crate::cpu::Hook;
use crate::frames::{Frames, FILES_AT, FILES_BYTES};
use crate::tables::{entry_of, page_of, store, Slot, Tables, HELD, NO_EXECUTE, OF_FILE, PRESENT, TOUCHED, USER, WRITE};

/// Where the guest's addresses end.
pub const GUEST_END: u64 = 0x7dff_0000_0000;
/// Pages of a file that are put in together: it costs no memory.
const AROUND: u64 = 16;

/// Why an address cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing is mapped there.
    Nothing,
    /// Not in this way.
    Denied,
    /// The file ends before.
    BeyondFile,
    /// The pod's memory is used up.
    NoMemory,
}

impl From<Errno> for Refusal {
    fn from(_: Errno) -> Refusal {
        Refusal::NoMemory
    }
}

/// One space.
struct Space {
    tables: Tables,
    areas: Areas,
    /// More than one thread may know its translations at once.
    threads: u32,
    held_pages: u64,
    /// The most of them, and how often one was asked for that was not there.
    peak_pages: u64,
    faults: u64,
}

/// All of them.
pub struct Memory {
    frames: Frames,
    spaces: BTreeMap<SpaceId, Space>,
    /// The entry by which every space has the kernel's part.
    kernel: u64,
    /// Free ranges of the arena's part for files: start, size.
    windows: BTreeMap<u64, u64>,
    cpus: Vec<Arc<Hook>>,
}

/// Pages that processors must forget, and those that become free by it.
#[derive(Default)]
struct Changed {
    pages: Vec<u64>,
    of_files: [Vec<u64>; 2],
    free: Vec<u64>,
}

impl Changed {
    fn page(&mut self, page: u64, shared_file: Option<bool>) {
        match shared_file {
            None => self.pages.push(page),
            Some(shared) => self.of_files[usize::from(shared)].push(page),
        }
    }
}

/// What an entry says, if the area allows it. `write`: this page may be written, as far as the area allows that.
fn entry(area: &Area, page: u64, file: bool, write: bool) -> u64 {
    let allowed = if area.protection == 0 { 0 } else { PRESENT };
    let write = if write && area.protection & PROT_WRITE != 0 { WRITE } else { 0 };
    let execute = if area.protection & PROT_EXEC != 0 { 0 } else { NO_EXECUTE };
    entry_of(page) | allowed | write | execute | USER | TOUCHED | HELD | if file { OF_FILE } else { 0 }
}

impl Memory {
    pub fn new(frames: Frames, kernel: u64, cpus: Vec<Arc<Hook>>) -> Memory {
        let windows = BTreeMap::from([(FILES_AT, FILES_BYTES)]);
        Memory { frames, spaces: BTreeMap::new(), kernel, windows, cpus }
    }

    pub fn frames(&self) -> &Frames {
        &self.frames
    }

    fn space(&self, id: SpaceId) -> Result<&Space> {
        self.spaces.get(&id).ok_or(Errno::SRCH)
    }

    fn space_mut(&mut self, id: SpaceId) -> Result<&mut Space> {
        self.spaces.get_mut(&id).ok_or(Errno::SRCH)
    }

    pub fn cr3(&self, id: SpaceId) -> Result<u64> {
        Ok(self.space(id)?.tables.cr3())
    }

    pub fn add_thread(&mut self, id: SpaceId) {
        if let Ok(space) = self.space_mut(id) {
            space.threads += 1;
        }
    }

    pub fn remove_thread(&mut self, id: SpaceId) {
        if let Ok(space) = self.space_mut(id) {
            space.threads = space.threads.saturating_sub(1);
        }
    }

    pub fn resident_bytes(&self, id: SpaceId) -> u64 {
        self.space(id).map_or(0, |space| space.held_pages * PAGE)
    }

    /// The most that it has had, and its page faults.
    pub fn use_of(&self, id: SpaceId) -> (u64, u64) {
        self.space(id).map_or((0, 0), |space| (space.peak_pages * PAGE, space.faults))
    }

    /// Which space has most.
    pub fn largest(&self) -> Option<SpaceId> {
        self.spaces.iter().max_by_key(|(_, space)| space.held_pages).map(|(id, _)| *id)
    }

    pub fn create(&mut self, id: SpaceId) -> Result<()> {
        let tables = Tables::new(&mut self.frames, self.kernel)?;
        self.spaces
            .insert(id, Space { tables, areas: Areas::default(), threads: 1, held_pages: 0, peak_pages: 0, faults: 0 });
        Ok(())
    }

    /// A copy: pages of its own are shared until one of the two writes.
    pub fn fork(&mut self, from: SpaceId, id: SpaceId) -> Result<()> {
        self.create(id)?;
        let copied = self.copy_pages(from, id);
        if copied.is_err() {
            self.end(id);
        }
        copied
    }

    fn copy_pages(&mut self, from: SpaceId, id: SpaceId) -> Result<()> {
        let parent = self.spaces.get(&from).ok_or(Errno::SRCH)?;
        let areas = parent.areas.clone();
        let own: Vec<(u64, u64)> =
            areas.0.iter().filter(|(_, a)| !a.shared).map(|(start, a)| (*start, a.end)).collect();
        let mut slots = Vec::new();
        for (start, end) in own {
            let held = parent.tables.held(&self.frames, start, end)?;
            slots.extend(held.into_iter().filter(|slot| slot.entry & OF_FILE == 0));
        }
        let child = self.spaces.get_mut(&id).ok_or(Errno::SRCH)?;
        child.areas = areas;
        let mut changed = Changed::default();
        for slot in slots {
            let entry = slot.entry & !WRITE;
            let place = child.tables.slot(&mut self.frames, slot.address)?;
            store(&self.frames, place.at, entry)?;
            child.held_pages += 1;
            child.peak_pages = child.held_pages;
            self.frames.share(page_of(entry));
            if entry != slot.entry {
                store(&self.frames, slot.at, entry)?;
                changed.page(page_of(entry), None);
            }
        }
        self.settle(changed)
    }

    /// A space that no processor runs any more.
    pub fn end(&mut self, id: SpaceId) {
        let Some(space) = self.spaces.remove(&id) else { return };
        let held = space.tables.held(&self.frames, 0, GUEST_END).unwrap_or_default();
        let shared = |address| space.areas.at(address).is_some_and(|(_, area)| area.shared);
        let own = held.into_iter().filter(|slot| slot.entry & OF_FILE == 0 && !shared(slot.address));
        let own = own.map(|slot| page_of(slot.entry));
        let free: Vec<u64> = own.filter(|&page| self.frames.leave(page)).collect();
        let _kept = self.frames.free(&free).and_then(|()| {
            let in_use = |root| self.cpus.iter().any(|cpu| cpu.roots.iter().any(|r| r.load(Ordering::SeqCst) == root));
            self.frames.retire(space.tables.pages, in_use)
        });
        space.areas.0.into_values().for_each(|area| self.let_go(area));
    }

    /// Do what follows from changed entries.
    fn settle(&mut self, changed: Changed) -> Result<()> {
        self.frames.discard(changed.free)?;
        self.frames.shoot(changed.pages, None)?;
        let [private, shared] = changed.of_files;
        self.frames.shoot(private, Some(false))?;
        self.frames.shoot(shared, Some(true))
    }

    /// An area that a space has no more.
    fn let_go(&mut self, area: Area) {
        match area.backing {
            Backing::Shared(pages, _) => {
                let Some(pages) = Arc::into_inner(pages) else { return };
                let free: Vec<u64> = pages.take().into_iter().filter(|&page| self.frames.leave(page)).collect();
                let _kept = self.frames.discard(free);
            }
            Backing::File(window, _) => {
                let Some(window) = Arc::into_inner(window) else { return };
                if self.frames.arena.unmap(window.at, window.size).is_ok() {
                    self.give_back(window.at, window.size);
                }
            }
            Backing::Fresh => {}
        }
    }

    fn give_back(&mut self, at: u64, size: u64) {
        let (mut at, mut size) = (at, size);
        if let Some(after) = self.windows.remove(&(at + size)) {
            size += after;
        }
        if let Some((&before, &length)) = self.windows.range(..at).next_back() {
            if before + length == at {
                self.windows.remove(&before);
                (at, size) = (before, size + length);
            }
        }
        self.windows.insert(at, size);
    }

    fn window(&mut self, file: Arc<dyn HostFile>, from: u64, size: u64, shared: bool) -> Result<Arc<Window>> {
        let fits = self.windows.iter().find(|(_, &free)| free >= size);
        let (&at, &free) = fits.ok_or(Errno::NOMEM)?;
        self.frames.tell(at, size)?;
        let mapped = with_fd(file.raw_fd(), |fd| self.frames.arena.map_file(at, size, fd, from, shared));
        mapped.map_err(|error| Errno(error.raw_os_error().unwrap_or(Errno::IO.0)))?;
        let window = Window::new(file, at, from, size, shared)?;
        self.windows.remove(&at);
        if free > size {
            self.windows.insert(at + size, free - size);
        }
        Ok(Arc::new(window))
    }

    /// Take the pages of the range away.
    fn clear(&mut self, id: SpaceId, start: u64, end: u64, changed: &mut Changed) -> Result<()> {
        let Memory { frames, spaces, .. } = self;
        let space = spaces.get_mut(&id).ok_or(Errno::SRCH)?;
        for slot in space.tables.held(frames, start, end)? {
            store(frames, slot.at, 0)?;
            space.held_pages = space.held_pages.saturating_sub(1);
            let page = page_of(slot.entry);
            let area = space.areas.at(slot.address).map(|(_, area)| area);
            match area {
                _ if slot.entry & OF_FILE != 0 => {
                    let shared = area.is_some_and(|area| area.shared);
                    changed.page(page, Some(shared));
                }
                // Others have it too, or the area, which outlives its page.
                Some(Area { shared: true, .. }) => changed.page(page, None),
                _ if frames.leave(page) => changed.free.push(page),
                _ => changed.page(page, None),
            }
        }
        Ok(())
    }

    fn unmap(&mut self, id: SpaceId, start: u64, end: u64) -> Result<()> {
        let mut changed = Changed::default();
        self.clear(id, start, end, &mut changed)?;
        self.settle(changed)?;
        let gone = self.space_mut(id)?.areas.remove(start, end);
        gone.into_iter().for_each(|(_, area)| self.let_go(area));
        Ok(())
    }

    fn map(&mut self, id: SpaceId, start: u64, area: Area) -> Result<()> {
        self.unmap(id, start, area.end)?;
        self.space_mut(id)?.areas.0.insert(start, area);
        Ok(())
    }

    fn protect(&mut self, id: SpaceId, start: u64, end: u64, protection: u32) -> Result<()> {
        let Memory { frames, spaces, .. } = self;
        let space = spaces.get_mut(&id).ok_or(Errno::SRCH)?;
        space.areas.protect(start, end, protection)?;
        let mut changed = Changed::default();
        for Slot { address, at, entry: old } in space.tables.held(frames, start, end)? {
            let Some((_, area)) = space.areas.at(address) else { continue };
            let file = old & OF_FILE != 0;
            let new = entry(area, page_of(old), file, area.shared || old & WRITE != 0);
            store(frames, at, new)?;
            let lost = old & !new & (PRESENT | WRITE) | new & !old & NO_EXECUTE;
            if lost != 0 && old & PRESENT != 0 {
                changed.page(page_of(old), file.then_some(area.shared));
            }
        }
        self.settle(changed)
    }

    /// mremap(2): the pages go along.
    fn shift(&mut self, id: SpaceId, from: u64, from_size: u64, to: u64, to_size: u64) -> Result<()> {
        let area = self.space(id)?.areas.at(from).ok_or(Errno::FAULT)?.1.clone();
        if from == to {
            return self.lengthen(id, from, from_size, to_size);
        }
        self.unmap(id, to, to + to_size)?;
        let Memory { frames, spaces, .. } = self;
        let space = spaces.get_mut(&id).ok_or(Errno::SRCH)?;
        let mut changed = Changed::default();
        for slot in space.tables.held(frames, from, from + from_size)? {
            let place = space.tables.slot(frames, slot.address - from + to)?;
            store(frames, place.at, slot.entry)?;
            store(frames, slot.at, 0)?;
            let file = slot.entry & OF_FILE != 0;
            changed.page(page_of(slot.entry), file.then_some(area.shared));
        }
        let moved = space.areas.remove(from, from + from_size);
        moved.into_iter().for_each(|(start, part)| {
            space.areas.0.insert(start - from + to, Area { end: part.end - from + to, ..part });
        });
        self.settle(changed)?;
        self.lengthen(id, to, from_size, to_size)
    }

    /// The area at `start` gets longer. A file's has a new window for what is beyond.
    fn lengthen(&mut self, id: SpaceId, start: u64, old: u64, new: u64) -> Result<()> {
        if new <= old {
            return Ok(());
        }
        let (_, last) = self.space(id)?.areas.at(start + old - 1).ok_or(Errno::FAULT)?;
        let (last, at) = (last.clone(), start + old);
        let offset = |area: &Area| {
            let begin = self.space(id).ok().and_then(|space| space.areas.at(start + old - 1)).map_or(at, |(s, _)| s);
            match &area.backing {
                Backing::Shared(_, offset) | Backing::File(_, offset) => offset + (at - begin),
                Backing::Fresh => 0,
            }
        };
        let offset = offset(&last);
        let backing = match &last.backing {
            Backing::Fresh => Backing::Fresh,
            Backing::Shared(pages, _) => Backing::Shared(Arc::clone(pages), offset),
            Backing::File(window, _) => {
                let (file, from) = (window.file(), window.from + offset);
                Backing::File(self.window(file, from, new - old, window.shared)?, 0)
            }
        };
        self.map(id, at, Area { end: start + new, backing, ..last })
    }

    /// A change of the space, as `Platform::change` has them; those of threads are none of it.
    pub fn apply(&mut self, id: SpaceId, op: &MemoryOp) -> Result<()> {
        match *op {
            MemoryOp::MapAnonymous { address, size, protection, shared } => {
                let backing = if shared { Backing::Shared(Arc::default(), 0) } else { Backing::Fresh };
                let end = range(address, size)?;
                self.map(id, address, Area { end, protection, shared, backing })
            }
            MemoryOp::MapFile { address, size, protection, shared, ref file, offset } => {
                let end = range(address, size)?;
                let window = self.window(Arc::clone(file), offset, size, shared)?;
                self.map(id, address, Area { end, protection, shared, backing: Backing::File(window, 0) })
            }
            MemoryOp::Unmap { address, size } => self.unmap(id, address, range(address, size)?),
            MemoryOp::Protect { address, size, protection } => {
                self.protect(id, address, range(address, size)?, protection)
            }
            MemoryOp::Move { from, from_size, to, to_size } => {
                range(from, from_size)?;
                range(to, to_size)?;
                self.shift(id, from, from_size, to, to_size)
            }
            _ => Ok(()),
        }
    }

    /// Forget what is in the pages of the range (MADV_DONTNEED). ENOMEM where something is not mapped.
    pub fn forget(&mut self, id: SpaceId, address: u64, size: u64) -> Result<()> {
        let end = range(address, size)?;
        self.space(id)?.areas.covers(address, end)?;
        let mut changed = Changed::default();
        self.clear(id, address, end, &mut changed)?;
        self.settle(changed)
    }

    /// Make sure that the page of an address can be used so; its entry. `faulted`: a thread has found that it cannot, and
    /// will look again.
    pub fn touch(
        &mut self,
        id: SpaceId,
        address: u64,
        access: u32,
        faulted: bool,
    ) -> std::result::Result<u64, Refusal> {
        let Memory { frames, spaces, .. } = self;
        let space = spaces.get_mut(&id).ok_or(Refusal::Nothing)?;
        let (start, area) = space.areas.at(address).ok_or(Refusal::Nothing)?;
        if !area.allows(access) {
            return Err(Refusal::Denied);
        }
        let (area, write) = (area.clone(), access == PROT_WRITE);
        let slot = space.tables.slot(frames, address)?;
        let mut changed = Changed::default();
        let new = if slot.entry & HELD == 0 {
            space.held_pages += 1;
            match first(frames, &area, slot.address - start, write) {
                Ok(new) => new,
                Err(refusal) => {
                    space.held_pages -= 1;
                    return Err(refusal);
                }
            }
        } else if write && !area.shared && slot.entry & WRITE == 0 {
            own(frames, &area, slot.entry, !faulted || space.threads > 1, &mut changed)?
        } else {
            let file = slot.entry & OF_FILE != 0;
            entry(&area, page_of(slot.entry), file, area.shared || slot.entry & WRITE != 0)
        };
        store(frames, slot.at, new)?;
        if new & OF_FILE != 0 && slot.entry & HELD == 0 {
            space.held_pages += around(frames, &mut space.tables, &area, start, slot.address)?;
        }
        space.peak_pages = space.peak_pages.max(space.held_pages);
        space.faults += u64::from(faulted);
        self.settle(changed)?;
        Ok(new)
    }

    /// Take away what files no longer have: they were cut.
    pub fn look_at_files(&mut self, id: SpaceId) -> Result<()> {
        let areas = self.space(id)?.areas.clone();
        let mut changed = Changed::default();
        for (start, area) in areas.0 {
            if let Backing::File(window, offset) = &area.backing {
                let reach = window.reach().saturating_sub(*offset);
                if start + reach < area.end {
                    self.clear_of_file(id, start + reach, area.end, &mut changed)?;
                }
            }
        }
        self.settle(changed)
    }

    /// As `clear`, but copies of a file's pages stay.
    fn clear_of_file(&mut self, id: SpaceId, start: u64, end: u64, changed: &mut Changed) -> Result<()> {
        for slot in self.space(id)?.tables.held(&self.frames, start, end)? {
            if slot.entry & OF_FILE != 0 {
                self.clear(id, slot.address, slot.address + PAGE, changed)?;
            }
        }
        Ok(())
    }

    /// Where an address lies in the arena, and whether that is a file's page; for use of it as the guest may.
    pub fn find(&mut self, id: SpaceId, address: u64, access: u32) -> std::result::Result<(u64, bool), Refusal> {
        let space = self.spaces.get(&id).ok_or(Refusal::Nothing)?;
        let mut entry = space.tables.look(&self.frames, address);
        let suits = match access {
            PROT_WRITE => PRESENT | WRITE,
            _ => PRESENT,
        };
        if entry & suits != suits || entry & HELD == 0 {
            entry = self.touch(id, address, access, false)?;
        }
        Ok((page_of(entry) + address % PAGE, entry & OF_FILE != 0))
    }

    /// By what all who have this word in common know it: its object (0: the space), and where in it.
    pub fn word_key(&self, id: SpaceId, address: u64, private: bool) -> (u64, u64, u64) {
        let area = self.space(id).ok().and_then(|space| space.areas.at(address));
        match area {
            Some((start, Area { backing: Backing::Shared(pages, offset), .. })) if !private => {
                (Arc::as_ptr(pages) as u64, 0, offset + (address - start))
            }
            Some((start, Area { backing: Backing::File(window, offset), shared: true, .. })) if !private => {
                let (device, inode) = window.identity;
                (device | 1 << 63, inode, window.from + offset + (address - start))
            }
            _ => (0, id.0.into(), address),
        }
    }
}

fn range(address: u64, size: u64) -> Result<u64> {
    let end = address.checked_add(size).filter(|&end| end <= GUEST_END && size > 0).ok_or(Errno::NOMEM)?;
    (address % PAGE == 0 && size % PAGE == 0).then_some(end).ok_or(Errno::INVAL)
}

/// A page where none was.
fn first(frames: &mut Frames, area: &Area, skipped: u64, write: bool) -> std::result::Result<u64, Refusal> {
    match &area.backing {
        Backing::Fresh => Ok(entry(area, frames.take(true)?, false, true)),
        Backing::Shared(pages, offset) => {
            let index = (offset + skipped) / PAGE;
            let page = match pages.get(index) {
                Some(page) => page,
                None => {
                    let page = frames.take(true)?;
                    pages.put(index, page);
                    page
                }
            };
            Ok(entry(area, page, false, true))
        }
        Backing::File(window, offset) => {
            let at = offset + skipped;
            if at >= window.reach() {
                return Err(Refusal::BeyondFile);
            }
            let page = window.at + at;
            if write && !area.shared {
                return copy(frames, area, page, true);
            }
            Ok(entry(area, page, true, area.shared))
        }
    }
}

fn copy(frames: &mut Frames, area: &Area, page: u64, file: bool) -> std::result::Result<u64, Refusal> {
    let new = frames.take(false)?;
    let mut bytes = [0; PAGE as usize];
    let copied = frames.arena.read(page, &mut bytes, file).and_then(|()| frames.arena.write(new, &bytes, false));
    if copied.is_err() {
        frames.leave(new);
        frames.free(&[new])?;
        return Err(Refusal::BeyondFile);
    }
    Ok(entry(area, new, false, true))
}

/// A page that is to be written, and may be another's too.
fn own(
    frames: &mut Frames,
    area: &Area,
    old: u64,
    known: bool,
    changed: &mut Changed,
) -> std::result::Result<u64, Refusal> {
    let (page, file) = (page_of(old), old & OF_FILE != 0);
    if !file && frames.count(page) == 1 {
        return Ok(entry(area, page, false, true));
    }
    let new = copy(frames, area, page, file)?;
    if !file && frames.leave(page) {
        changed.free.push(page);
    } else if known {
        changed.page(page, file.then_some(false));
    }
    Ok(new)
}

/// Pages of the file beside one that was wanted; how many.
fn around(frames: &mut Frames, tables: &mut Tables, area: &Area, start: u64, address: u64) -> Result<u64> {
    let Backing::File(window, offset) = &area.backing else { return Ok(0) };
    let group = address & !(AROUND * PAGE - 1);
    let end = area.end.min(start + window.reach().saturating_sub(*offset)).min(group + AROUND * PAGE);
    let mut more = 0;
    for at in (group.max(start)..end).step_by(PAGE as usize) {
        let slot = tables.slot(frames, at)?;
        if slot.entry & HELD == 0 {
            store(frames, slot.at, entry(area, window.at + offset + (at - start), true, area.shared))?;
            more += 1;
        }
    }
    Ok(more)
}
