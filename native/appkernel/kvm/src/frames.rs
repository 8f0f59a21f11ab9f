//! Pages of the machine's memory: who has them, how often, and which are free.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::arena::{Arena, PAGE};
use drupe_appkernel_hostsys::kvm::Vm;

/// The machine's addresses begin there: what lies below belongs to processors.
pub const MACHINE_BASE: u64 = 4 << 30;
/// Offsets in the arena: pages of memory, then pages of files.
const MEMORY_BYTES: u64 = 64 << 30;
pub const FILES_AT: u64 = MEMORY_BYTES;
pub const FILES_BYTES: u64 = 64 << 30;
/// The machine is told of memory in pieces of this size; the host keeps a table for each.
const CHUNK: u64 = 32 << 20;
/// Free pages that keep their memory, at most.
const KEPT: usize = 4096;
/// Pages of page tables that nobody uses, before the machine is made to forget all that it knows of them.
const RETIRED_MAX: usize = 512;
/// A piece of memory that comes and goes, to that end.
const FLUSH_SLOT: u32 = 0x7000;
const FLUSH_ADDRESS: u64 = 0x10_0000;

fn errno(error: io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(Errno::IO.0))
}

/// The machine's memory, by offsets in the arena.
pub struct Frames {
    pub arena: Arc<Arena>,
    vm: Vm,
    /// Chunks that the machine has.
    chunks: BTreeSet<u64>,
    counts: Vec<u32>,
    /// Free: of zeros, and of what somebody has left there.
    clean: Vec<u64>,
    dirty: Vec<u64>,
    retired: Vec<u64>,
    used: u64,
    pub limit: u64,
}

impl Frames {
    /// `limit`: pages that there may be.
    pub fn new(vm: Vm, limit: u64) -> io::Result<Frames> {
        let arena = Arc::new(Arena::reserve(MEMORY_BYTES + FILES_BYTES)?);
        let limit = limit.min(MEMORY_BYTES / PAGE);
        Ok(Frames {
            arena,
            vm,
            chunks: BTreeSet::new(),
            counts: Vec::new(),
            clean: Vec::new(),
            dirty: Vec::new(),
            retired: Vec::new(),
            used: 0,
            limit,
        })
    }

    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Have the machine know the range.
    pub fn tell(&mut self, offset: u64, size: u64) -> Result<()> {
        for chunk in offset / CHUNK..=(offset + size - 1) / CHUNK {
            if self.chunks.contains(&chunk) {
                continue;
            }
            let at = chunk * CHUNK;
            if at < MEMORY_BYTES {
                self.arena.back(at, CHUNK).map_err(errno)?;
            }
            self.vm.set_memory(chunk as u32, MACHINE_BASE + at, CHUNK, &self.arena, at).map_err(errno)?;
            self.chunks.insert(chunk);
        }
        Ok(())
    }

    /// A page that is the caller's alone, of zeros unless it will be written whole. ENOMEM.
    pub fn take(&mut self, zeros: bool) -> Result<u64> {
        if self.used >= self.limit {
            return Err(Errno::NOMEM);
        }
        let frame = match (self.dirty.pop(), self.clean.pop()) {
            (Some(dirty), clean) => {
                self.clean.extend(clean);
                if zeros {
                    self.arena.zero(dirty, PAGE).map_err(errno)?;
                }
                dirty
            }
            (None, Some(clean)) => clean,
            (None, None) => self.fresh()?,
        };
        self.counts[(frame / PAGE) as usize] = 1;
        self.used += 1;
        Ok(frame)
    }

    fn fresh(&mut self) -> Result<u64> {
        let frame = self.counts.len() as u64 * PAGE;
        if frame >= MEMORY_BYTES {
            return Err(Errno::NOMEM);
        }
        self.tell(frame, PAGE)?;
        self.counts.push(0);
        Ok(frame)
    }

    pub fn count(&self, frame: u64) -> u32 {
        self.counts.get((frame / PAGE) as usize).copied().unwrap_or(0)
    }

    /// One more has it.
    pub fn share(&mut self, frame: u64) {
        self.counts[(frame / PAGE) as usize] += 1;
    }

    /// One less has it. True: nobody has it, and the caller is to say how it becomes free.
    pub fn leave(&mut self, frame: u64) -> bool {
        let count = &mut self.counts[(frame / PAGE) as usize];
        *count = count.saturating_sub(1);
        let last = *count == 0;
        if last {
            self.used -= 1;
        }
        last
    }

    /// Pages that nobody has, and that no processor will look for: those of a space that is gone.
    pub fn free(&mut self, frames: &[u64]) -> Result<()> {
        self.dirty.extend(frames);
        if self.dirty.len() > KEPT {
            let rest = self.dirty.split_off(KEPT / 2);
            self.discard(rest)?;
        }
        Ok(())
    }

    /// Pages that nobody has any more; processors that know them forget them now.
    pub fn discard(&mut self, mut frames: Vec<u64>) -> Result<()> {
        frames.sort_unstable();
        for (offset, size) in runs(&frames) {
            self.arena.discard(offset, size).map_err(errno)?;
        }
        self.clean.extend(frames);
        Ok(())
    }

    /// Pages whose translations have changed: processors forget them. `shared` of pages of files: as they were mapped.
    pub fn shoot(&self, mut pages: Vec<u64>, shared: Option<bool>) -> Result<()> {
        pages.sort_unstable();
        pages.dedup();
        runs(&pages).into_iter().try_for_each(|(offset, size)| self.arena.shoot(offset, size, shared).map_err(errno))
    }

    /// Pages of the page tables of a space that is gone. Processors may know them until all is forgotten at once: a host that
    /// keeps page tables of its own learns nothing of what we write to ours.
    /// `in_use`: roots that processors have loaded still, though they run nothing there.
    pub fn retire(&mut self, tables: Vec<u64>, in_use: impl Fn(u64) -> bool) -> Result<()> {
        self.retired.extend(tables);
        if self.retired.len() < RETIRED_MAX {
            return Ok(());
        }
        self.vm.set_memory(FLUSH_SLOT, FLUSH_ADDRESS, PAGE, &self.arena, 0).map_err(errno)?;
        self.vm.set_memory(FLUSH_SLOT, FLUSH_ADDRESS, 0, &self.arena, 0).map_err(errno)?;
        let (kept, free) =
            std::mem::take(&mut self.retired).into_iter().partition(|&table| in_use(MACHINE_BASE + table));
        self.retired = kept;
        let free: Vec<u64> = free;
        let unused: Vec<u64> = free.into_iter().filter(|&table| self.leave(table)).collect();
        self.free(&unused)
    }
}

/// Sorted pages as ranges.
fn runs(pages: &[u64]) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    for &page in pages {
        match all.last_mut() {
            Some((start, size)) if *start + *size == page => *size += PAGE,
            _ => all.push((page, PAGE)),
        }
    }
    all
}
