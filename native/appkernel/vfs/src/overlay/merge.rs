//! Reading a directory of several layers: the lower ones first, then what only the upper one has. So an entry stays where
//! it is when it is copied up meanwhile.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::node::OverlayNode;
use super::{entry, is_whiteout, number_in, LAYER_BITS};
use crate::inode::{DirEntry, Inode, InodeRef};
use crate::kind::FileType;

/// The step in a cookie of the upper layer, which comes last.
const UPPER_STEP: u64 = (1 << LAYER_BITS) - 1;

type Sink<'s> = &'s mut dyn FnMut(DirEntry<'_>) -> bool;

impl OverlayNode {
    /// As `Inode::read_dir`. A cookie is the layer's own, and the step in the low bits.
    pub(super) fn merged_entries(&self, cookie: u64, sink: Sink<'_>) -> Result<()> {
        let (mut after, from) = (cookie >> LAYER_BITS, cookie & UPPER_STEP);
        for (index, (layer, lower)) in self.lowers.iter().enumerate() {
            if (index as u64) < from {
                continue;
            }
            let more = self.lower_listing(index, *layer, lower, after, sink)?;
            after = 0;
            if !more {
                return Ok(());
            }
        }
        match self.upper() {
            Some(upper) => self.upper_listing(&upper, after, sink),
            None => Ok(()),
        }
    }

    /// False when `sink` has had enough.
    fn lower_listing(&self, index: usize, layer: usize, lower: &InodeRef, after: u64, sink: Sink<'_>) -> Result<bool> {
        let (mut more, mut failed) = (true, None);
        // Most directories have nothing above: then there is no name to look for.
        let upper = self.upper().filter(has_entries);
        lower.read_dir(after, &mut |found| {
            more = match self.shown(upper.as_ref(), index, layer, &found) {
                Ok(Some((inode, kind))) => match cookie(found.next_cookie, index as u64) {
                    Ok(next_cookie) => sink(DirEntry { inode, kind, next_cookie, ..found }),
                    Err(error) => failed.replace(error).is_some(),
                },
                Ok(None) => true,
                Err(error) => failed.replace(error).is_some(),
            };
            more
        })?;
        failed.map_or(Ok(more), Err)
    }

    /// Number and kind of a lower layer's entry as it is seen; None: hidden by a layer above.
    fn shown(
        &self,
        upper: Option<&InodeRef>,
        index: usize,
        layer: usize,
        found: &DirEntry<'_>,
    ) -> Result<Option<(u64, FileType)>> {
        for (_, above) in &self.lowers[..index] {
            if entry(above, found.name)?.is_some() {
                return Ok(None);
            }
        }
        match upper.map_or(Ok(None), |upper| entry(upper, found.name))? {
            Some(upper) if is_whiteout(&upper) => Ok(None),
            Some(_) => {
                let child = self.child(found.name)?;
                Ok(Some((child.number, child.kind())))
            }
            None if found.kind == FileType::CharDevice && is_whiteout(&self.lowers[index].1.lookup(found.name)?) => {
                Ok(None)
            }
            None => Ok(Some((number_in(layer, found.inode), found.kind))),
        }
    }

    fn upper_listing(&self, upper: &InodeRef, after: u64, sink: Sink<'_>) -> Result<()> {
        let mut failed = None;
        upper.read_dir(after, &mut |found| match self.upper_entry(upper, &found) {
            Ok(Some(entry)) => sink(entry),
            Ok(None) => true,
            Err(error) => failed.replace(error).is_some(),
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// The entry as it is seen; None: a whiteout, or one that was shown with the lower layers.
    fn upper_entry<'e>(&self, upper: &InodeRef, found: &DirEntry<'e>) -> Result<Option<DirEntry<'e>>> {
        for (_, lower) in &self.lowers {
            if entry(lower, found.name)?.is_some_and(|inode| !is_whiteout(&inode)) {
                return Ok(None);
            }
        }
        if found.kind == FileType::CharDevice && is_whiteout(&upper.lookup(found.name)?) {
            return Ok(None);
        }
        let number = number_in(0, found.inode);
        let inode = self.shared.origins.lock().get(&number).copied().unwrap_or(number);
        Ok(Some(DirEntry { inode, next_cookie: cookie(found.next_cookie, UPPER_STEP)?, ..*found }))
    }

    /// ENOTEMPTY unless nothing is seen in this directory.
    pub(super) fn check_empty(&self) -> Result<()> {
        let mut empty = true;
        self.merged_entries(0, &mut |_| {
            empty = false;
            false
        })?;
        empty.then_some(()).ok_or(Errno::NOTEMPTY)
    }

    /// The names of whiteouts that lie in the upper directory.
    pub(super) fn whiteouts(upper: &Arc<dyn Inode>) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        upper.read_dir(0, &mut |found| {
            names.push(found.name.to_vec());
            true
        })?;
        names.retain(|name| upper.lookup(name).is_ok_and(|inode| is_whiteout(&inode)));
        Ok(names)
    }
}

/// Also when it cannot be told.
fn has_entries(directory: &InodeRef) -> bool {
    let mut any = false;
    let listed = directory.read_dir(0, &mut |_| {
        any = true;
        false
    });
    any || listed.is_err()
}

/// EOVERFLOW where a layer's own cookies are too large to carry the step.
fn cookie(own: u64, step: u64) -> Result<u64> {
    let fits = own.leading_zeros() > LAYER_BITS + 1;
    fits.then_some(own << LAYER_BITS | step).ok_or(Errno::OVERFLOW)
}
