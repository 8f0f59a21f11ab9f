//! Page tables, as the processor reads them (Intel SDM volume 3, 4.5): four levels, pages of 4 KiB.

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::arena::PAGE;

use crate::frames::{Frames, MACHINE_BASE};
use crate::text;

pub const PRESENT: u64 = 1;
pub const WRITE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
/// Accessed and dirty, so that the processor has nothing to write.
pub const TOUCHED: u64 = 1 << 5 | 1 << 6;
pub const NO_EXECUTE: u64 = 1 << 63;
/// Ours: a page belongs to the address, whether it may be used or not.
pub const HELD: u64 = 1 << 9;
/// Ours: a page of a file.
pub const OF_FILE: u64 = 1 << 10;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub address: u64,
    pub at: u64,
    pub entry: u64,
}

/// The page that an entry names, as an offset in the arena.
pub fn page_of(entry: u64) -> u64 {
    (entry & ADDRESS).wrapping_sub(MACHINE_BASE)
}

pub fn entry_of(page: u64) -> u64 {
    page + MACHINE_BASE
}

/// The tables of one space.
pub struct Tables {
    pub root: u64,
    /// All pages that they take, but for those of the kernel's part.
    pub pages: Vec<u64>,
}

fn load(frames: &Frames, at: u64) -> Result<u64> {
    frames.arena.load(at).map_err(|_| Errno::FAULT)
}

pub fn store(frames: &Frames, at: u64, entry: u64) -> Result<()> {
    frames.arena.store(at, entry).map_err(|_| Errno::FAULT)
}

impl Tables {
    /// `kernel`: the entry of the kernel's part.
    pub fn new(frames: &mut Frames, kernel: u64) -> Result<Tables> {
        let root = frames.take(true)?;
        store(frames, root + (text::KERNEL >> 39 & 0x1ff) * 8, kernel)?;
        Ok(Tables { root, pages: vec![root] })
    }

    /// What cr3 is to be.
    pub fn cr3(&self) -> u64 {
        entry_of(self.root)
    }

    /// Where an address's entry lies; tables are made where they are missing.
    pub fn slot(&mut self, frames: &mut Frames, address: u64) -> Result<Slot> {
        let mut table = self.root;
        for shift in [39, 30, 21] {
            let at = table + (address >> shift & 0x1ff) * 8;
            let mut entry = load(frames, at)?;
            if entry & PRESENT == 0 {
                let page = frames.take(true)?;
                self.pages.push(page);
                entry = entry_of(page) | PRESENT | WRITE | USER | TOUCHED;
                store(frames, at, entry)?;
            }
            table = page_of(entry);
        }
        let at = table + (address >> 12 & 0x1ff) * 8;
        Ok(Slot { address: address & !(PAGE - 1), at, entry: load(frames, at)? })
    }

    /// The entry of an address; 0 where there is none.
    pub fn look(&self, frames: &Frames, address: u64) -> u64 {
        let mut table = self.root;
        for shift in [39, 30, 21] {
            match load(frames, table + (address >> shift & 0x1ff) * 8) {
                Ok(entry) if entry & PRESENT != 0 => table = page_of(entry),
                _ => return 0,
            }
        }
        load(frames, table + (address >> 12 & 0x1ff) * 8).unwrap_or(0)
    }

    /// Entries of the range that hold a page.
    pub fn held(&self, frames: &Frames, start: u64, end: u64) -> Result<Vec<Slot>> {
        let mut found = Vec::new();
        visit(frames, self.root, 39, start, end, &mut found)?;
        Ok(found)
    }
}

fn visit(frames: &Frames, table: u64, shift: u32, start: u64, end: u64, found: &mut Vec<Slot>) -> Result<()> {
    let mut address = start;
    while address < end {
        let next = ((address >> shift) + 1) << shift;
        let at = table + (address >> shift & 0x1ff) * 8;
        let entry = load(frames, at)?;
        if shift == 12 && entry & HELD != 0 {
            found.push(Slot { address, at, entry });
        } else if shift > 12 && entry & PRESENT != 0 {
            visit(frames, page_of(entry), shift - 9, address, end.min(next), found)?;
        }
        address = next;
    }
    Ok(())
}
