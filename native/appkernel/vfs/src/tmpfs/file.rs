//! Open regular files of a tmpfs.

use std::any::Any;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::node::Node;
use crate::file::{Context, File, Mapping, Metadata};
use crate::inode::Inode;

pub const F_SEAL_SEAL: u32 = 1;
pub const F_SEAL_SHRINK: u32 = 2;
pub const F_SEAL_GROW: u32 = 4;
pub const F_SEAL_WRITE: u32 = 8;
pub const F_SEAL_FUTURE_WRITE: u32 = 16;
const ALL_SEALS: u32 = 31;

const FALLOC_FL_KEEP_SIZE: u32 = 1;
const FALLOC_FL_PUNCH_HOLE: u32 = 2;

/// An open file of a tmpfs, or of memfd_create(2).
pub struct TmpFile {
    node: Arc<Node>,
}

impl TmpFile {
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// What is open.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// F_GET_SEALS.
    pub fn seals(&self) -> u32 {
        self.node.seals.load(Ordering::Relaxed)
    }

    /// F_ADD_SEALS. EPERM once sealed against sealing; the core refuses F_SEAL_WRITE (EBUSY) while a writable shared mapping is
    /// there.
    pub fn add_seals(&self, seals: u32) -> Result<()> {
        if seals & !ALL_SEALS != 0 {
            return Err(Errno::INVAL);
        }
        let add = |now: u32| (now & F_SEAL_SEAL == 0).then_some(now | seals);
        self.node.seals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map_err(|_| Errno::PERM)?;
        Ok(())
    }

    fn check_seals(&self, context: &Context, offset: u64, length: usize, size_bytes: u64) -> Result<()> {
        let seals = self.seals();
        let grows = offset.saturating_add(length as u64) > size_bytes;
        if seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0 || (grows && seals & F_SEAL_GROW != 0) {
            return Err(Errno::PERM);
        }
        self.node.drop_set_ids(context);
        Ok(())
    }
}

impl File for TmpFile {
    fn read(&self, context: &Context, offset: u64, out: &mut [u8]) -> Result<usize> {
        let count = self.node.content()?.lock().read(offset, out)?;
        self.node.accessed(context.now);
        Ok(count)
    }

    fn write(&self, context: &Context, offset: u64, data: &[u8]) -> Result<usize> {
        let mut content = self.node.content()?.lock();
        self.check_seals(context, offset, data.len(), content.size_bytes())?;
        let count = content.write(&self.node.shared, offset, data)?;
        drop(content);
        self.node.touch(context.now);
        Ok(count)
    }

    fn append(&self, context: &Context, data: &[u8]) -> Result<(usize, u64)> {
        let mut content = self.node.content()?.lock();
        let end = content.size_bytes();
        self.check_seals(context, end, data.len(), end)?;
        let count = content.write(&self.node.shared, end, data)?;
        drop(content);
        self.node.touch(context.now);
        Ok((count, end + count as u64))
    }

    fn metadata(&self) -> Result<Metadata> {
        self.node.metadata()
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn size_bytes(&self) -> Result<u64> {
        Ok(self.node.content()?.lock().size_bytes())
    }

    fn seek_hole(&self, offset: u64, hole: bool) -> Result<u64> {
        self.node.content()?.lock().seek_hole(offset, hole)
    }

    fn mapping(&self, offset: u64, size_bytes: u64, shared_write: bool) -> Result<Mapping> {
        if shared_write && self.seals() & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0 {
            return Err(Errno::PERM);
        }
        let range = shared_write.then_some((offset, size_bytes));
        let backing = self.node.content()?.lock().backing(&self.node.shared, range)?;
        Ok(Mapping { host: backing.as_host_file(), offset })
    }

    fn truncate(&self, context: &Context, size_bytes: u64) -> Result<()> {
        self.node.set_size(context.now, size_bytes)?;
        self.node.drop_set_ids(context);
        Ok(())
    }

    fn allocate(&self, context: &Context, mode: u32, offset: u64, length_bytes: u64) -> Result<()> {
        if length_bytes == 0 {
            return Err(Errno::INVAL);
        }
        let mut content = self.node.content()?.lock();
        match mode {
            0 | FALLOC_FL_KEEP_SIZE => {
                let length = usize::try_from(length_bytes).map_err(|_| Errno::FBIG)?;
                let grows = if mode == 0 { length } else { 0 };
                if offset.saturating_add(grows as u64) > content.size_bytes() && self.seals() & F_SEAL_GROW != 0 {
                    return Err(Errno::PERM);
                }
                content.reserve_range(&self.node.shared, offset, length_bytes, mode != 0)?;
            }
            3 if self.seals() & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0 => return Err(Errno::PERM),
            3 => content.punch(&self.node.shared, offset, length_bytes)?,
            FALLOC_FL_PUNCH_HOLE => return Err(Errno::NOTSUP),
            _ => return Err(Errno::NOTSUP),
        }
        drop(content);
        self.node.touch(context.now);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
