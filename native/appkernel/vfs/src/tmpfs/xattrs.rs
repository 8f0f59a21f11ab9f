//! Extended attributes of nodes. They lie in the kernel's memory, so the pod's files in memory have so much less.

use std::collections::BTreeMap;

use drupe_appkernel_abi::{Errno, Result};

use super::node::Node;
use crate::file::Context;
use crate::inode::{XattrMode, Xattrs};

const NAME_MAX: usize = 255;
const SIZE_MAX: usize = 65_536;

pub(super) type Attached = BTreeMap<Vec<u8>, Vec<u8>>;

/// What one takes, with what keeps it.
fn cost(name: &[u8], value: &[u8]) -> u64 {
    const OVERHEAD: usize = 128;
    (OVERHEAD + name.len() + value.len()) as u64
}

impl Node {
    /// Have these, of a node that has none. ENOSPC.
    pub(super) fn attach(&self, xattrs: Attached) -> Result<()> {
        let bytes = xattrs.iter().map(|(name, value)| cost(name, value)).sum();
        self.shared.backings.reserve(bytes)?;
        *self.xattrs.lock() = xattrs;
        Ok(())
    }

    pub(super) fn release_xattrs(&self) {
        let xattrs = std::mem::take(&mut *self.xattrs.lock());
        if !xattrs.is_empty() {
            self.shared.backings.release(xattrs.iter().map(|(name, value)| cost(name, value)).sum());
        }
    }
}

impl Xattrs for Node {
    fn get(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.xattrs.lock().get(name).cloned().ok_or(Errno::NODATA)
    }

    fn list(&self) -> Result<Vec<Vec<u8>>> {
        Ok(self.xattrs.lock().keys().cloned().collect())
    }

    fn set(&self, context: &Context, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        if name.len() > NAME_MAX || value.len() > SIZE_MAX {
            return Err(if value.len() > SIZE_MAX { Errno::TOOBIG } else { Errno::RANGE });
        }
        let mut xattrs = self.xattrs.lock();
        match (xattrs.contains_key(name), mode) {
            (true, XattrMode::Create) => return Err(Errno::EXIST),
            (false, XattrMode::Replace) => return Err(Errno::NODATA),
            _ => {}
        }
        self.shared.backings.reserve(cost(name, value))?;
        if let Some(old) = xattrs.insert(name.to_vec(), value.to_vec()) {
            self.shared.backings.release(cost(name, &old));
        }
        drop(xattrs);
        self.attributes.lock().changed = context.now;
        Ok(())
    }

    fn remove(&self, context: &Context, name: &[u8]) -> Result<()> {
        let old = self.xattrs.lock().remove(name).ok_or(Errno::NODATA)?;
        self.shared.backings.release(cost(name, &old));
        self.attributes.lock().changed = context.now;
        Ok(())
    }
}
