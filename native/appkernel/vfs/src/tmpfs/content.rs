//! The bytes of a regular file: pages on the heap until it is mapped, then a backing of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::Shared;
use crate::backing::Backing;

pub const PAGE_BYTES: usize = 4096;
/// What one fallocate(2) reserves at most, of a file system without a limit of its own too: each page is taken at once.
pub(super) const MAX_RESERVED_PAGES: u64 = 1 << 20;
const MAX_SIZE_BYTES: u64 = i64::MAX as u64;

enum Store {
    Heap(BTreeMap<u64, Box<[u8; PAGE_BYTES]>>),
    /// The pages that are counted, and what holds them.
    Host(BTreeSet<u64>, Arc<dyn Backing>),
}

/// Size and bytes.
pub(super) struct Content {
    size_bytes: u64,
    store: Store,
}

/// A piece of a range within one page.
struct Piece {
    page: u64,
    start: usize,
    length: usize,
}

fn pieces(offset: u64, length: usize) -> impl Iterator<Item = Piece> {
    let end = offset + length as u64;
    let first = offset / PAGE_BYTES as u64;
    (first..end.div_ceil(PAGE_BYTES as u64)).map(move |page| {
        let base = page * PAGE_BYTES as u64;
        let start = offset.max(base) - base;
        let stop = end.min(base + PAGE_BYTES as u64) - base;
        Piece { page, start: start as usize, length: (stop - start) as usize }
    })
}

impl Content {
    pub fn new() -> Self {
        Self { size_bytes: 0, store: Store::Heap(BTreeMap::new()) }
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub fn pages(&self) -> u64 {
        match &self.store {
            Store::Heap(pages) => pages.len() as u64,
            Store::Host(pages, _) => pages.len() as u64,
        }
    }

    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let available = self.size_bytes.saturating_sub(offset).min(out.len() as u64) as usize;
        let out = &mut out[..available];
        match &self.store {
            Store::Host(_, backing) => backing.read_at(offset, out)?,
            Store::Heap(pages) => {
                let mut done = 0;
                for piece in pieces(offset, available) {
                    let target = &mut out[done..done + piece.length];
                    match pages.get(&piece.page) {
                        Some(page) => target.copy_from_slice(&page[piece.start..piece.start + piece.length]),
                        None => target.fill(0),
                    }
                    done += piece.length;
                }
            }
        }
        Ok(available)
    }

    /// Bytes written; fewer when there is room for some only. ENOSPC, EFBIG.
    pub fn write(&mut self, shared: &Shared, offset: u64, data: &[u8]) -> Result<usize> {
        let room = MAX_SIZE_BYTES.saturating_sub(offset);
        if room == 0 && !data.is_empty() {
            return Err(Errno::FBIG);
        }
        let data = &data[..data.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let mut done = 0;
        for piece in pieces(offset, data.len()) {
            match self.write_piece(shared, &piece, &data[done..done + piece.length]) {
                Ok(()) => done += piece.length,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        self.grow(offset + done as u64)?;
        Ok(done)
    }

    fn write_piece(&mut self, shared: &Shared, piece: &Piece, data: &[u8]) -> Result<()> {
        self.reserve(shared, piece.page)?;
        match &mut self.store {
            Store::Host(_, backing) => backing.write_at(piece.page * PAGE_BYTES as u64 + piece.start as u64, data),
            Store::Heap(pages) => {
                let page = pages.get_mut(&piece.page).ok_or(Errno::IO)?;
                page[piece.start..piece.start + piece.length].copy_from_slice(data);
                Ok(())
            }
        }
    }

    /// Have this page. ENOSPC.
    fn reserve(&mut self, shared: &Shared, index: u64) -> Result<()> {
        match &mut self.store {
            Store::Host(pages, _) if pages.contains(&index) => {}
            Store::Heap(pages) if pages.contains_key(&index) => {}
            Store::Host(pages, _) => {
                shared.charge(1)?;
                pages.insert(index);
            }
            Store::Heap(pages) => {
                shared.charge(1)?;
                pages.insert(index, Box::new([0; PAGE_BYTES]));
            }
        }
        Ok(())
    }

    fn grow(&mut self, end: u64) -> Result<()> {
        if end > self.size_bytes {
            if let Store::Host(_, backing) = &self.store {
                backing.set_size(end)?;
            }
            self.size_bytes = end;
        }
        Ok(())
    }

    pub fn set_size(&mut self, shared: &Shared, size_bytes: u64) -> Result<()> {
        if size_bytes > MAX_SIZE_BYTES {
            return Err(Errno::FBIG);
        }
        if size_bytes < self.size_bytes {
            self.drop_pages(shared, size_bytes.div_ceil(PAGE_BYTES as u64), u64::MAX);
            self.zero_tail(size_bytes);
        }
        if let Store::Host(_, backing) = &self.store {
            backing.set_size(size_bytes)?;
        }
        self.size_bytes = size_bytes;
        Ok(())
    }

    fn zero_tail(&mut self, from: u64) {
        let Store::Heap(pages) = &mut self.store else { return };
        if let Some(page) = pages.get_mut(&(from / PAGE_BYTES as u64)) {
            page[(from % PAGE_BYTES as u64) as usize..].fill(0);
        }
    }

    fn drop_pages(&mut self, shared: &Shared, first: u64, end: u64) {
        let before = self.pages();
        match &mut self.store {
            Store::Heap(pages) => pages.retain(|index, _| !(first..end).contains(index)),
            Store::Host(pages, _) => pages.retain(|index| !(first..end).contains(index)),
        }
        shared.uncharge(before - self.pages());
    }

    /// The pages that it has, by their numbers.
    pub fn page_numbers(&self) -> Vec<u64> {
        match &self.store {
            Store::Heap(pages) => pages.keys().copied().collect(),
            Store::Host(pages, _) => pages.iter().copied().collect(),
        }
    }

    /// fallocate(2) FALLOC_FL_PUNCH_HOLE.
    pub fn punch(&mut self, shared: &Shared, offset: u64, length_bytes: u64) -> Result<()> {
        let end = offset.checked_add(length_bytes).ok_or(Errno::INVAL)?;
        if let Store::Host(_, backing) = &self.store {
            backing.punch(offset, length_bytes)?;
        }
        let (first, stop) = (offset.div_ceil(PAGE_BYTES as u64), end / PAGE_BYTES as u64);
        self.drop_pages(shared, first, stop);
        self.zero(offset, end.min(first.saturating_mul(PAGE_BYTES as u64)));
        self.zero(offset.max(stop * PAGE_BYTES as u64), end);
        Ok(())
    }

    fn zero(&mut self, from: u64, to: u64) {
        let Store::Heap(pages) = &mut self.store else { return };
        let within_page = from < to && to - from <= PAGE_BYTES as u64;
        for piece in pieces(from, if within_page { (to - from) as usize } else { 0 }) {
            if let Some(page) = pages.get_mut(&piece.page) {
                page[piece.start..piece.start + piece.length].fill(0);
            }
        }
    }

    /// fallocate(2) without flags: room for the range; `keep_size` does not move the end. ENOSPC: nothing was reserved.
    pub fn reserve_range(&mut self, shared: &Shared, offset: u64, length_bytes: u64, keep_size: bool) -> Result<()> {
        let end = offset.checked_add(length_bytes).filter(|&end| end <= MAX_SIZE_BYTES).ok_or(Errno::FBIG)?;
        let range = offset / PAGE_BYTES as u64..end.div_ceil(PAGE_BYTES as u64);
        let has = |index: &u64| match &self.store {
            Store::Heap(pages) => pages.contains_key(index),
            Store::Host(pages, _) => pages.contains(index),
        };
        let count = range.end - range.start;
        if count > MAX_RESERVED_PAGES {
            return Err(Errno::NOSPC);
        }
        shared.charge(count)?; // all or none; what was there already is given back
        let missing: Vec<u64> = range.filter(|index| !has(index)).collect();
        shared.uncharge(count - missing.len() as u64);
        match &mut self.store {
            Store::Heap(pages) => pages.extend(missing.into_iter().map(|index| (index, Box::new([0; PAGE_BYTES])))),
            Store::Host(pages, _) => pages.extend(missing),
        }
        if keep_size {
            return Ok(());
        }
        self.grow(end)
    }

    /// The next byte of data, or of a hole, from `offset` on. ENXIO.
    pub fn seek_hole(&self, offset: u64, hole: bool) -> Result<u64> {
        if offset >= self.size_bytes {
            return Err(Errno::NXIO);
        }
        let has = |index: &u64| match &self.store {
            Store::Heap(pages) => pages.contains_key(index),
            Store::Host(pages, _) => pages.contains(index),
        };
        let first = offset / PAGE_BYTES as u64;
        let found = if hole { (first..).find(|index| !has(index)) } else { self.next_page(first) };
        let position = found.map(|index| (index * PAGE_BYTES as u64).max(offset));
        match position {
            Some(position) if position < self.size_bytes => Ok(position),
            _ if hole => Ok(self.size_bytes),
            _ => Err(Errno::NXIO),
        }
    }

    fn next_page(&self, first: u64) -> Option<u64> {
        match &self.store {
            Store::Heap(pages) => pages.range(first..).next().map(|(index, _)| *index),
            Store::Host(pages, _) => pages.range(first..).next().copied(),
        }
    }

    /// The backing, which from now on holds the bytes. `range`: pages that a writable mapping may fill, counted now.
    pub fn backing(&mut self, shared: &Shared, range: Option<(u64, u64)>) -> Result<Arc<dyn Backing>> {
        if let Store::Heap(pages) = &self.store {
            let backing = shared.backings.create()?;
            backing.set_size(self.size_bytes)?;
            for (&index, page) in pages {
                let start = index * PAGE_BYTES as u64;
                let length = self.size_bytes.saturating_sub(start).min(PAGE_BYTES as u64) as usize;
                backing.write_at(start, &page[..length])?;
            }
            self.store = Store::Host(pages.keys().copied().collect(), backing);
        }
        if let Some((offset, length_bytes)) = range {
            let inside = self.size_bytes.saturating_sub(offset).min(length_bytes);
            self.reserve_range(shared, offset, inside, true)?;
        }
        match &self.store {
            Store::Host(_, backing) => Ok(Arc::clone(backing)),
            Store::Heap(_) => Err(Errno::IO),
        }
    }
}
