//! Spaces made again: what is mapped where, and their own pages.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::{Backing, OpenFile};

use super::state::{SavedArea, SavedMm, SavedObject};
use super::{damaged, Refusal};
use crate::auxv::Texts;
use crate::calls::memory::mapping;
use crate::kernel::Kernel;
use crate::mm::{Area, Mm, LOWEST, PAGE, PROT_EXEC, PROT_READ, PROT_WRITE};
use crate::platform::{MemoryOp, SpaceId, ThreadId};

const NAMES: [&str; 4] = ["", "[heap]", "[stack]", "[calls]"];
const COPY_BYTES: u64 = 1 << 20;

impl Kernel {
    /// A space with one thread, which stands still.
    pub(super) fn restore_mm(
        &mut self,
        saved: &SavedMm,
        files: &[Arc<OpenFile>],
        objects: &[Arc<dyn Backing>],
        memory: &Arc<dyn Backing>,
    ) -> std::result::Result<(Mm, ThreadId), Refusal> {
        let (space, thread) = self.platform.new_space().map_err(|errno| format!("a process of the host: {errno}"))?;
        let mut mm = book(saved, space, self.platform.address_end(), files)?;
        let ops = mm.areas.iter().map(|(start, area)| mapping(*start, area)).collect::<Result<Vec<_>>>();
        let mapped = ops.and_then(|ops| self.platform.change(thread, &ops));
        mapped.map_err(|errno| format!("memory of a process cannot be mapped: {errno}"))?;
        for area in &saved.areas {
            self.map_object(thread, area, objects)?;
        }
        for (address, size, place) in &saved.pages {
            let area = area_of(&mm, *address, *size)?;
            let last = place.checked_add(size - 1).filter(|_| place % PAGE == 0).ok_or(Errno::INVAL);
            let there = last.and_then(|last| memory.read_at(last, &mut [0]));
            there.map_err(|_| damaged("pages that are not there"))?;
            let done = match area.protection & PROT_EXEC {
                // A file on a file system where nothing may be executed would do for the others.
                0 => self.map_pages(thread, (*address, *size, *place), area.protection, memory),
                _ => self.copy_pages((space, thread), (*address, *size, *place), area.protection, memory.as_ref()),
            };
            done.map_err(|errno| format!("pages of a process at {address:#x}: {errno}"))?;
            if area.protection & PROT_EXEC == 0 {
                mm.pieces.insert(*address, address + size);
            }
        }
        Ok((mm, thread))
    }

    /// Memory that is shared without a file.
    fn map_object(
        &mut self,
        thread: ThreadId,
        area: &SavedArea,
        objects: &[Arc<dyn Backing>],
    ) -> std::result::Result<(), Refusal> {
        let Some((number, offset)) = area.object else { return Ok(()) };
        let object = objects.get(number as usize).filter(|_| area.shared && area.file.is_none() && offset % PAGE == 0);
        let file = Arc::clone(object.ok_or_else(|| damaged("shared memory that is not there"))?).as_host_file();
        let (address, size, protection) = (area.start, area.end - area.start, area.protection);
        let op = MemoryOp::MapFile { address, size, protection, shared: true, file, offset };
        let mapped = self.platform.change(thread, &[op]);
        mapped.map_err(|errno| format!("shared memory cannot be mapped: {errno}"))
    }

    /// Memory that processes share without a file, with what was in it.
    pub(super) fn restore_objects(
        &self,
        saved: &[SavedObject],
        memory: &dyn Backing,
    ) -> std::result::Result<Vec<Arc<dyn Backing>>, Refusal> {
        let one = |(size, pieces): &SavedObject| {
            let object = self.host.backings().create()?;
            object.set_size(*size)?;
            for (offset, bytes, place) in pieces {
                let end = offset.checked_add(*bytes).filter(|end| end <= size);
                end.ok_or(Errno::INVAL)?;
                copy(memory, *place, object.as_ref(), *offset, *bytes)?;
            }
            Ok(object)
        };
        let made = saved.iter().map(one).collect::<Result<Vec<_>>>();
        made.map_err(|errno| format!("shared memory: {errno}"))
    }

    fn map_pages(
        &mut self,
        thread: ThreadId,
        (address, size, offset): (u64, u64, u64),
        protection: u32,
        memory: &Arc<dyn Backing>,
    ) -> Result<()> {
        let file = Arc::clone(memory).as_host_file();
        self.platform.change(thread, &[MemoryOp::MapFile { address, size, protection, shared: false, file, offset }])
    }

    fn copy_pages(
        &mut self,
        (space, thread): (SpaceId, ThreadId),
        (address, size, place): (u64, u64, u64),
        protection: u32,
        memory: &dyn Backing,
    ) -> Result<()> {
        let protect = |protection| [MemoryOp::Protect { address, size, protection }];
        self.platform.change(thread, &protect(protection | PROT_READ | PROT_WRITE))?;
        let mut done = 0;
        while done < size {
            let mut bytes = vec![0; COPY_BYTES.min(size - done) as usize];
            memory.read_at(place + done, &mut bytes)?;
            if self.platform.write(space, address + done, &bytes)? < bytes.len() {
                return Err(Errno::FAULT);
            }
            done += bytes.len() as u64;
        }
        self.platform.change(thread, &protect(protection))
    }
}

/// The private area that pages belong to, all of them.
fn area_of(mm: &Mm, address: u64, size: u64) -> std::result::Result<Area, Refusal> {
    let end = address.checked_add(size).filter(|_| size > 0 && (address | size) % PAGE == 0);
    let found = end.and_then(|end| {
        let (start, area) = mm.overlapping(address, end).next()?;
        (start <= address && area.end >= end && !area.shared).then(|| area.clone())
    });
    found.ok_or_else(|| damaged("pages outside of what is mapped"))
}

/// The book-keeping, checked.
fn book(saved: &SavedMm, space: SpaceId, end: u64, files: &[Arc<OpenFile>]) -> std::result::Result<Mm, Refusal> {
    let mut mm = Mm::new(space, end);
    for area in &saved.areas {
        let whole = (area.start | area.end) % PAGE == 0 && area.start < area.end && area.start >= LOWEST;
        let name = NAMES.iter().find(|name| **name == area.name);
        // In this order: what is not whole is no range to look for.
        let fits = whole && area.end <= end && mm.is_free(area.start, area.end);
        let (Some(name), true) = (name, fits) else {
            return Err(damaged("what is mapped"));
        };
        let file = match area.file {
            None if area.shared && area.object.is_none() => return Err(damaged("shared memory without a file")),
            None => None,
            Some((number, offset)) => {
                let file = files.get(number as usize).filter(|_| offset % PAGE == 0);
                Some((Arc::clone(file.ok_or_else(|| damaged("a mapped file that is not there"))?), offset))
            }
        };
        let protection = area.protection & (PROT_READ | PROT_WRITE | PROT_EXEC);
        mm.insert(area.start, Area { end: area.end, protection, shared: area.shared, file, name });
    }
    (mm.brk_start, mm.brk, mm.top) = (saved.brk_start, saved.brk, saved.top.min(end));
    mm.auxiliary.clone_from(&saved.auxiliary);
    mm.texts = Texts { arguments: saved.texts.0, environment: saved.texts.1 };
    mm.growing = saved.growing.iter().copied().collect();
    mm.sites.restore(&saved.sites, &saved.regions).ok_or_else(|| damaged("rewritten places"))?;
    Ok(mm)
}

fn copy(from: &dyn Backing, at: u64, to: &dyn Backing, offset: u64, bytes: u64) -> Result<()> {
    let mut done = 0;
    while done < bytes {
        let mut piece = vec![0; COPY_BYTES.min(bytes - done) as usize];
        from.read_at(at.checked_add(done).ok_or(Errno::INVAL)?, &mut piece)?;
        to.write_at(offset + done, &piece)?;
        done += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(start: u64, end: u64) -> SavedMm {
        let name = String::new();
        SavedMm {
            areas: vec![SavedArea { start, end, protection: PROT_READ, shared: false, file: None, object: None, name }],
            brk_start: 0,
            brk: 0,
            top: 0,
            auxiliary: Vec::new(),
            texts: ((0, 0), (0, 0)),
            growing: Vec::new(),
            pages: Vec::new(),
            sites: Vec::new(),
            regions: Vec::new(),
        }
    }

    #[test]
    fn an_area_that_is_none_is_refused() {
        let taken = |start, end| book(&with(start, end), SpaceId(1), 1 << 47, &[]).is_ok();
        assert!(taken(LOWEST, LOWEST + PAGE));
        assert!(!taken(LOWEST + 2 * PAGE, LOWEST));
        assert!(!taken(LOWEST, LOWEST));
        assert!(!taken(0, PAGE));
        assert!(!taken(LOWEST, (1 << 47) + PAGE));
    }
}
