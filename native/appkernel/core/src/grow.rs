//! Areas that grow downwards where they are used: the stack, and mappings made with MAP_GROWSDOWN (mmap(2)).

use crate::kernel::Kernel;
use crate::mm::{Area, Mm, LOWEST, PAGE, STACK};
use crate::platform::MemoryOp;
use crate::task::Tid;

const LIMIT_STACK: usize = 3;
const LIMIT_AS: usize = 9;
const SIGSEGV: i32 = 11;
/// Nothing is there.
const SEGV_MAPERR: i32 = 1;
/// What stays free below (stack_guard_gap).
const GAP_BYTES: u64 = 256 * PAGE;
/// Who has come this far down will go further: a stack grows by so much at once, where it may.
const STEP_BYTES: u64 = 1 << 20;

impl Kernel {
    /// Have an area grow down to where a fault was, if it was one of these and may (RLIMIT_STACK). False: it is a fault.
    pub(crate) fn grow(&mut self, tid: Tid, (signal, code, address): (i32, i32, u64)) -> bool {
        if (signal, code) != (SIGSEGV, SEGV_MAPERR) {
            return false;
        }
        self.grown(tid, address & !(PAGE - 1)).is_some()
    }

    fn grown(&mut self, tid: Tid, page: u64) -> Option<()> {
        let (thread, limits) = (self.thread(tid).ok()?, self.process(tid).ok()?.limits);
        let mm = self.mm_mut(tid).ok()?;
        let (old, area) = above(mm, page)?;
        let top = if area.name == STACK { area.end } else { top_of(mm, old, &area)? };
        let lowest = lowest(mm, old).max(top.saturating_sub(limits[LIMIT_STACK].0)).next_multiple_of(PAGE);
        let step = if area.name == STACK { STEP_BYTES } else { PAGE };
        let start = (page & !(step - 1)).max(lowest);
        let fits = mm.size_bytes().saturating_add(old.saturating_sub(start)) <= limits[LIMIT_AS].0;
        if page < lowest || !fits || mm.is_full() {
            return None;
        }
        let (protection, size) = (area.protection, old - start);
        mm.insert(start, Area { end: old, ..area });
        let op = MemoryOp::MapAnonymous { address: start, size, protection, shared: false };
        if self.platform.change(thread, &[op]).is_err() {
            self.mm_mut(tid).ok()?.remove(start, old);
            return None;
        }
        Some(())
    }
}

/// The next area above a place where there is none, if it is one that grows.
fn above(mm: &Mm, page: u64) -> Option<(u64, Area)> {
    if !mm.is_free(page, page.checked_add(PAGE)?) {
        return None;
    }
    let (start, area) = mm.areas.range(page..).next()?;
    let grows = area.name == STACK || top_of(mm, *start, area).is_some();
    (grows && !area.shared && area.file.is_none()).then(|| (*start, area.clone()))
}

/// Where what grows ends; what lies above it may have become one area with it.
fn top_of(mm: &Mm, start: u64, area: &Area) -> Option<u64> {
    mm.growing.range(start + 1..=area.end).next().copied()
}

/// How far down what lies below lets an area grow; what nobody may touch needs no gap.
fn lowest(mm: &Mm, start: u64) -> u64 {
    let below = mm.areas.range(..start).next_back();
    below.map_or(LOWEST, |(_, area)| if area.protection == 0 { area.end } else { area.end + GAP_BYTES })
}
