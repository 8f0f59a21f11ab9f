//! Pages of a space, as they are written down.

use std::collections::{BTreeMap, HashMap};

use drupe_appkernel_abi::Result;

use super::state::{Piece, SavedObject};
use super::Pages;
use crate::kernel::Kernel;
use crate::mm::{Area, PAGE, PROT_READ};
use crate::platform::{MemoryOp, SpaceId, ThreadId};

/// What is read at once.
const STEP_BYTES: u64 = 1 << 20;
/// So few untouched pages between others are written as zeros, for each piece is a mapping of the host's later.
const GAP_BYTES: u64 = 16 * PAGE;

/// Memory that processes share without a file, by what the host calls it.
#[derive(Default)]
pub(super) struct Objects {
    numbers: HashMap<(u64, u64), u32>,
    /// Offsets of which the pages were written: starts and ends.
    known: Vec<Vec<(u64, u64)>>,
    pub saved: Vec<SavedObject>,
}

impl Kernel {
    /// The pages of a shared area, unless they were written already: the object's number, and the area's offset in it.
    pub(super) fn save_object(
        &mut self,
        (space, thread): (SpaceId, ThreadId),
        (start, area): (u64, &Area),
        pages: &mut Pages<'_>,
        objects: &mut Objects,
    ) -> Result<(u32, u64)> {
        let (name, offset) = self.platform.shared_object(space, start)?;
        let number = *objects.numbers.entry(name).or_insert_with(|| {
            objects.saved.push((0, Vec::new()));
            objects.known.push(Vec::new());
            objects.saved.len() as u32 - 1
        });
        let at = number as usize;
        let end = offset + (area.end - start);
        objects.saved[at].0 = objects.saved[at].0.max(end);
        if objects.known[at].iter().any(|(from, to)| *from <= offset && end <= *to) {
            return Ok((number, offset));
        }
        objects.known[at].push((offset, end));
        let mut pieces = Vec::new();
        self.readable((start, area), thread, |kernel| {
            kernel.save_run(space, (start, area.end), true, pages, &mut pieces)
        })?;
        let moved = pieces.into_iter().map(|(address, size, place)| (address - start + offset, size, place));
        objects.saved[at].1.extend(moved);
        Ok((number, offset))
    }

    /// Do something while an area can be read.
    fn readable(
        &mut self,
        (start, area): (u64, &Area),
        thread: ThreadId,
        act: impl FnOnce(&mut Kernel) -> Result<()>,
    ) -> Result<()> {
        let hidden = area.protection & PROT_READ == 0;
        let protect = |protection| [MemoryOp::Protect { address: start, size: area.end - start, protection }];
        if hidden {
            self.platform.change(thread, &protect(area.protection | PROT_READ))?;
        }
        let done = act(self);
        if hidden {
            self.platform.change(thread, &protect(area.protection))?;
        }
        done
    }

    /// The pages of a private area that are not its file's. pieces: what came from an earlier snapshot, which the host takes for
    /// a file's as long as nobody has written to it.
    pub(super) fn save_pages(
        &mut self,
        (space, thread): (SpaceId, ThreadId),
        (start, area): (u64, &Area),
        pieces: &BTreeMap<u64, u64>,
        pages: &mut Pages<'_>,
        saved: &mut Vec<Piece>,
    ) -> Result<()> {
        let mut own = self.platform.own_pages(space, start, area.end)?;
        add_all(&mut own, pieces, (start, area.end));
        let is_zero_before = area.file.is_none();
        if is_zero_before {
            join_near(&mut own);
        }
        if own.is_empty() {
            return Ok(());
        }
        let mut pieces = Vec::new(); // of this area alone: its neighbour may be mapped in another way
        self.readable((start, area), thread, |kernel| {
            own.into_iter().try_for_each(|run| kernel.save_run(space, run, is_zero_before, pages, &mut pieces))
        })?;
        saved.extend(pieces);
        Ok(())
    }

    fn save_run(
        &self,
        space: SpaceId,
        (mut at, end): (u64, u64),
        skip_zeros: bool,
        pages: &mut Pages<'_>,
        saved: &mut Vec<Piece>,
    ) -> Result<()> {
        while at < end {
            let mut bytes = vec![0; STEP_BYTES.min(end - at) as usize];
            let got = self.platform.read(space, at, &mut bytes)?;
            bytes.truncate(got / PAGE as usize * PAGE as usize);
            if bytes.is_empty() {
                return Err(drupe_appkernel_abi::Errno::FAULT);
            }
            let (skipped, kept) = if skip_zeros { trim(&bytes) } else { (0, &bytes[..]) };
            if !kept.is_empty() {
                let (address, place) = (at + skipped as u64, pages.append(kept)?);
                match saved.last_mut() {
                    Some(last) if last.0 + last.1 == address && last.2 + last.1 == place => last.1 += kept.len() as u64,
                    _ => saved.push((address, kept.len() as u64, place)),
                }
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Those of `pieces` that lie in the area, too.
fn add_all(runs: &mut Vec<(u64, u64)>, pieces: &BTreeMap<u64, u64>, (start, end): (u64, u64)) {
    let inside = pieces.iter().map(|(from, to)| ((*from).max(start), (*to).min(end)));
    runs.extend(inside.filter(|(from, to)| from < to));
    runs.sort_unstable();
    runs.dedup_by(|next, last| {
        let joins = next.0 <= last.1;
        if joins {
            last.1 = last.1.max(next.1);
        }
        joins
    });
}

fn join_near(runs: &mut Vec<(u64, u64)>) {
    runs.dedup_by(|next, last| {
        let near = next.0 - last.1 <= GAP_BYTES;
        if near {
            last.1 = next.1;
        }
        near
    });
}

/// Without the zero pages at both ends; how many bytes were taken away before.
fn trim(bytes: &[u8]) -> (usize, &[u8]) {
    let is_zero = |page: &&[u8]| page.iter().all(|byte| *byte == 0);
    let page = PAGE as usize;
    let before = bytes.chunks(page).take_while(is_zero).count() * page;
    let after = bytes[before..].rchunks(page).take_while(is_zero).count() * page;
    (before, &bytes[before..bytes.len() - after])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_at_the_ends_are_left_out() {
        let page = PAGE as usize;
        let mut bytes = vec![0; 5 * page];
        assert!(trim(&bytes).1.is_empty());
        (bytes[page + 7], bytes[3 * page]) = (1, 1);
        let (before, kept) = trim(&bytes);
        assert_eq!((before, kept.len(), kept[7]), (page, 3 * page, 1));
    }

    #[test]
    fn what_came_from_a_snapshot_is_saved_again() {
        let pieces = BTreeMap::from([(0, 0x3000), (0x8000, 0xa000), (0x20000, 0x21000)]);
        let mut runs = vec![(0x2000, 0x4000), (0x9000, 0x9800)];
        add_all(&mut runs, &pieces, (0x1000, 0x20000));
        assert_eq!(runs, [(0x1000, 0x4000), (0x8000, 0xa000)]);
    }

    #[test]
    fn runs_that_are_near_become_one() {
        let mut runs = vec![(0, 4096), (3 * 4096, 4 * 4096), (1 << 20, (1 << 20) + 4096)];
        join_near(&mut runs);
        assert_eq!(runs, [(0, 4 * 4096), (1 << 20, (1 << 20) + 4096)]);
    }
}
