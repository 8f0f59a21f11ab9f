//! What a range of a space's addresses is: fresh memory, memory that forks share, pages of a file.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::arena::PAGE;
use drupe_appkernel_hostsys::{files, memory};
use drupe_appkernel_vfs::HostFile;

pub const PROT_READ: u32 = 1;
pub const PROT_WRITE: u32 = 2;
pub const PROT_EXEC: u32 = 4;

/// Pages that are the same in all spaces that have the area, by their number.
#[derive(Default)]
pub struct SharedPages(Mutex<BTreeMap<u64, u64>>);

impl SharedPages {
    pub fn get(&self, index: u64) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&index).copied()
    }

    pub fn put(&self, index: u64, frame: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(index, frame);
    }

    /// All of them, which are the caller's now.
    pub fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_values().collect()
    }
}

/// Pages of a file in the arena.
pub struct Window {
    /// Where in the arena, and where in the file.
    pub at: u64,
    pub from: u64,
    pub size: u64,
    /// What is written reaches the file.
    pub shared: bool,
    /// Device and inode: the same for all that map it.
    pub identity: (u64, u64),
    file: Arc<dyn HostFile>,
}

impl Window {
    pub fn new(file: Arc<dyn HostFile>, at: u64, from: u64, size: u64, shared: bool) -> Result<Window> {
        let stat = memory::with_fd(file.raw_fd(), |fd| files::stat(fd.as_fd(), b"")).map_err(|_| Errno::BADF)?;
        Ok(Window { at, from, size, shared, identity: (stat.device, stat.inode), file })
    }

    pub fn file(&self) -> Arc<dyn HostFile> {
        Arc::clone(&self.file)
    }

    /// How many of its bytes there are, as far as the page in which the file ends.
    pub fn reach(&self) -> u64 {
        let stat = memory::with_fd(self.file.raw_fd(), |fd| files::stat(fd.as_fd(), b""));
        let size = stat.map_or(0, |stat| stat.size_bytes.next_multiple_of(PAGE));
        size.saturating_sub(self.from).min(self.size)
    }
}

/// With the offset at which the area begins.
#[derive(Clone)]
pub enum Backing {
    Fresh,
    Shared(Arc<SharedPages>, u64),
    File(Arc<Window>, u64),
}

/// A range that is the same everywhere.
#[derive(Clone)]
pub struct Area {
    pub end: u64,
    pub protection: u32,
    pub shared: bool,
    pub backing: Backing,
}

impl Area {
    pub fn allows(&self, access: u32) -> bool {
        match access {
            // Pages that may be written or executed can be read.
            PROT_READ => self.protection != 0,
            other => self.protection & other != 0,
        }
    }

    /// The same, `skipped` bytes in.
    fn later(&self, skipped: u64) -> Area {
        let backing = match &self.backing {
            Backing::Fresh => Backing::Fresh,
            Backing::Shared(pages, offset) => Backing::Shared(Arc::clone(pages), offset + skipped),
            Backing::File(window, offset) => Backing::File(Arc::clone(window), offset + skipped),
        };
        Area { backing, ..self.clone() }
    }
}

/// The areas of a space, by their start.
#[derive(Clone, Default)]
pub struct Areas(pub BTreeMap<u64, Area>);

impl Areas {
    pub fn at(&self, address: u64) -> Option<(u64, &Area)> {
        let (start, area) = self.0.range(..=address).next_back()?;
        (address < area.end).then_some((*start, area))
    }

    fn split(&mut self, at: u64) {
        let Some((&start, area)) = self.0.range_mut(..at).next_back() else { return };
        if area.end > at {
            let upper = area.later(at - start);
            area.end = at;
            self.0.insert(at, upper);
        }
    }

    /// Those in the range, cut to it.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<(u64, Area)> {
        self.split(start);
        self.split(end);
        let inside: Vec<u64> = self.0.range(start..end).map(|(at, _)| *at).collect();
        inside.into_iter().filter_map(|at| Some((at, self.0.remove(&at)?))).collect()
    }

    /// ENOMEM where a page of the range is in no area.
    pub fn protect(&mut self, start: u64, end: u64, protection: u32) -> Result<()> {
        self.covers(start, end)?;
        self.split(start);
        self.split(end);
        self.0.range_mut(start..end).for_each(|(_, area)| area.protection = protection);
        Ok(())
    }

    pub fn covers(&self, start: u64, end: u64) -> Result<()> {
        let mut at = start;
        while at < end {
            at = self.at(at).ok_or(Errno::NOMEM)?.1.end;
        }
        Ok(())
    }
}
