//! What is mapped where: the book-keeping of an address space. The platform does the mapping itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::OpenFile;

use crate::auxv::Texts;
use crate::platform::SpaceId;
use crate::rewrite::Sites;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MmId(pub u32);

/// Linux's vm.max_map_count, which the host's is too.
pub const MAX_AREAS: usize = 65_530;
pub const PAGE: u64 = 4096;
/// vm.mmap_min_addr
pub const LOWEST: u64 = 0x1_0000;

/// The name of the first thread's stack.
pub const STACK: &str = "[stack]";

pub const PROT_READ: u32 = 1;
pub const PROT_WRITE: u32 = 2;
pub const PROT_EXEC: u32 = 4;

pub fn round_up(value: u64) -> Option<u64> {
    Some(value.checked_add(PAGE - 1)? & !(PAGE - 1))
}

/// A range mapped in one way.
#[derive(Clone)]
pub struct Area {
    pub end: u64,
    pub protection: u32,
    pub shared: bool,
    /// The file, and the offset at the range's start.
    pub file: Option<(Arc<OpenFile>, u64)>,
    pub name: &'static str,
}

/// An address space's areas, its heap and its stack.
#[derive(Clone)]
pub struct Mm {
    pub space: SpaceId,
    pub areas: BTreeMap<u64, Area>,
    pub brk_start: u64,
    pub brk: u64,
    /// Mappings without an address are placed below this one.
    pub top: u64,
    pub end: u64,
    pub users: u32,
    pub auxiliary: Vec<u8>,
    pub texts: Texts,
    pub sites: Sites,
    /// Starts and ends of what is mapped in pieces of the host's that the areas do not know of: of a snapshot's pages.
    pub pieces: BTreeMap<u64, u64>,
    pub locked: Locked,
    /// Ends of areas that grow downwards where they are used (MAP_GROWSDOWN); the stack does by its name.
    pub growing: BTreeSet<u64>,
}

/// What is locked (mlock(2)), as starts and ends, and whether all that will be mapped is to be (mlockall(2)).
#[derive(Clone, Default)]
pub struct Locked {
    pub ranges: BTreeMap<u64, u64>,
    pub future: bool,
}

impl Locked {
    pub fn remove(&mut self, start: u64, end: u64) {
        let of = |(from, to): (&u64, &u64)| (*from, *to);
        let inside: Vec<(u64, u64)> = self.ranges.range(..end).map(of).filter(|(_, to)| *to > start).collect();
        for (from, to) in inside {
            self.ranges.remove(&from);
            if from < start {
                self.ranges.insert(from, start);
            }
            if to > end {
                self.ranges.insert(end, to);
            }
        }
    }

    pub fn insert(&mut self, start: u64, end: u64) {
        self.remove(start, end);
        self.ranges.insert(start, end);
    }

    pub fn size_bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }
}

impl Mm {
    pub fn new(space: SpaceId, end: u64) -> Mm {
        let top = end - (1 << 34);
        Mm {
            space,
            areas: BTreeMap::new(),
            brk_start: 0,
            brk: 0,
            top,
            end,
            users: 1,
            auxiliary: Vec::new(),
            texts: Texts::default(),
            sites: Sites::default(),
            pieces: BTreeMap::new(),
            locked: Locked::default(),
            growing: BTreeSet::new(),
        }
    }

    /// A whole, non-empty range of pages of the guest's. EINVAL, ENOMEM.
    pub fn range(&self, address: u64, size: u64) -> Result<(u64, u64)> {
        let size = round_up(size).filter(|&size| size > 0).ok_or(Errno::INVAL)?;
        if address % PAGE != 0 {
            return Err(Errno::INVAL);
        }
        let end = address.checked_add(size).filter(|&end| end <= self.end).ok_or(Errno::NOMEM)?;
        Ok((address, end))
    }

    pub fn is_free(&self, start: u64, end: u64) -> bool {
        self.overlapping(start, end).next().is_none()
    }

    /// Areas that share a page with the range.
    pub fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, &Area)> {
        let before = self.areas.range(..start).next_back().filter(move |(_, area)| area.end > start);
        before.into_iter().chain(self.areas.range(start..end)).map(|(start, area)| (*start, area))
    }

    /// Whether every page of the range is mapped.
    pub fn is_mapped(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for (from, area) in self.overlapping(start, end) {
            if from > at {
                return false;
            }
            at = area.end;
        }
        at >= end
    }

    /// The highest free place of this size below `top`.
    pub fn place(&self, size: u64) -> Result<u64> {
        let mut ceiling = self.top;
        for (start, area) in self.areas.range(..self.top).rev() {
            if area.end <= ceiling && ceiling - area.end >= size {
                return Ok(ceiling - size);
            }
            ceiling = ceiling.min(*start);
        }
        ceiling.checked_sub(size).filter(|&at| at >= LOWEST).ok_or(Errno::NOMEM)
    }

    fn split(&mut self, at: u64) {
        let Some((start, area)) = self.areas.range_mut(..at).next_back() else { return };
        if area.end <= at {
            return;
        }
        let start = *start;
        let mut upper = area.clone();
        area.end = at;
        if let Some((_, offset)) = &mut upper.file {
            *offset += at - start;
        }
        self.areas.insert(at, upper);
    }

    /// Forget what is in the range.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<(u64, Area)> {
        self.sites.forget(start, end);
        if !self.locked.ranges.is_empty() {
            self.locked.remove(start, end);
        }
        self.growing.retain(|at| *at <= start || *at > end);
        self.split(start);
        self.split(end);
        let inside: Vec<u64> = self.areas.range(start..end).map(|(at, _)| *at).collect();
        inside.into_iter().filter_map(|at| Some((at, self.areas.remove(&at)?))).collect()
    }

    /// Put an area in place of what is in the range.
    pub fn insert(&mut self, start: u64, area: Area) {
        let end = area.end;
        self.remove(start, end);
        self.areas.insert(start, area);
        self.join(start);
        self.join(end);
    }

    /// Make one area of the two that meet here, if they are alike, as Linux does.
    fn join(&mut self, at: u64) {
        let (Some(upper), Some((start, lower))) = (self.areas.get(&at), self.areas.range(..at).next_back()) else {
            return;
        };
        if lower.end != at || !lower.continues(*start, upper) {
            return;
        }
        let (start, end) = (*start, upper.end);
        self.areas.remove(&at);
        self.areas.get_mut(&start).into_iter().for_each(|lower| lower.end = end);
    }

    /// Whether there are as many areas as a process may have (vm.max_map_count).
    pub fn is_full(&self) -> bool {
        self.areas.len() >= MAX_AREAS
    }

    pub fn protect(&mut self, start: u64, end: u64, protection: u32) {
        self.split(start);
        self.split(end);
        let inside: Vec<u64> = self.areas.range(start..end).map(|(at, _)| *at).collect();
        for at in inside {
            self.areas.get_mut(&at).into_iter().for_each(|area| area.protection = protection);
            self.join(at);
        }
        self.join(end);
    }

    pub fn size_bytes(&self) -> u64 {
        self.areas.iter().map(|(start, area)| area.end - start).sum()
    }
}

impl Area {
    /// Whether `upper`, which lies right above, is more of the same.
    fn continues(&self, start: u64, upper: &Area) -> bool {
        let alike = (self.protection, self.shared, self.name) == (upper.protection, upper.shared, upper.name);
        alike
            && match (&self.file, &upper.file) {
                (None, None) => !self.shared,
                (Some((file, offset)), Some((other, above))) => {
                    Arc::ptr_eq(file, other) && offset.checked_add(self.end - start) == Some(*above)
                }
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(end: u64) -> Area {
        Area { end, protection: 3, shared: false, file: None, name: "" }
    }

    #[test]
    fn removing_the_middle_leaves_both_ends() {
        let mut mm = Mm::new(SpaceId(1), 1 << 46);
        mm.insert(0x10_0000, area(0x20_0000));
        mm.remove(0x14_0000, 0x15_0000);
        let left: Vec<_> = mm.areas.iter().map(|(s, a)| (*s, a.end)).collect();
        assert_eq!(left, [(0x10_0000, 0x14_0000), (0x15_0000, 0x20_0000)]);
        assert!(mm.is_mapped(0x15_0000, 0x20_0000) && !mm.is_mapped(0x13_0000, 0x16_0000));
    }

    #[test]
    fn what_is_alike_is_one_area() {
        let mut mm = Mm::new(SpaceId(1), 1 << 46);
        mm.insert(0x11_0000, area(0x12_0000));
        mm.insert(0x10_0000, area(0x11_0000));
        mm.insert(0x12_0000, area(0x13_0000));
        assert_eq!(mm.areas.len(), 1);
        mm.protect(0x11_0000, 0x12_0000, 1);
        assert_eq!(mm.areas.len(), 3);
        mm.protect(0x11_0000, 0x12_0000, 3);
        let left: Vec<_> = mm.areas.iter().map(|(s, a)| (*s, a.end)).collect();
        assert_eq!(left, [(0x10_0000, 0x13_0000)]);
        mm.insert(0x13_0000, Area { shared: true, ..area(0x14_0000) });
        mm.insert(0x14_0000, Area { shared: true, ..area(0x15_0000) });
        assert_eq!(mm.areas.len(), 3, "what is shared has memory of its own");
    }

    #[test]
    fn what_is_locked_is_counted_once_and_goes_with_what_is_unmapped() {
        let mut mm = Mm::new(SpaceId(1), 1 << 46);
        mm.insert(0x10_0000, area(0x20_0000));
        mm.locked.insert(0x10_0000, 0x12_0000);
        mm.locked.insert(0x11_0000, 0x14_0000);
        assert_eq!(mm.locked.size_bytes(), 0x4_0000);
        mm.remove(0x11_8000, 0x12_8000);
        assert_eq!(mm.locked.size_bytes(), 0x3_0000);
        mm.locked.remove(0, 1 << 46);
        assert_eq!(mm.locked.size_bytes(), 0);
    }

    #[test]
    fn places_go_down_from_the_top_and_fill_gaps() {
        let mut mm = Mm::new(SpaceId(1), 1 << 46);
        let first = mm.place(0x3000).unwrap();
        assert_eq!(first, mm.top - 0x3000);
        mm.insert(first, area(mm.top));
        let second = mm.place(0x1000).unwrap();
        assert_eq!(second, first - 0x1000);
        mm.insert(second, area(first));
        mm.remove(first, first + 0x1000);
        assert_eq!(mm.place(0x1000), Ok(first));
        assert_eq!(mm.place(0x2000), Ok(second - 0x2000));
        assert_eq!(mm.place(1 << 60), Err(Errno::NOMEM));
    }
}
