//! Open regular files of the host.

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::{changes, files};
use drupe_appkernel_vfs::{Context, File, HostFile, Mapping, Metadata};

use super::Node;
use crate::machine::{errno, Owned};

const CAP_FSETID: u32 = 4;
const FALLOC_FL_KEEP_SIZE: u32 = 1;
const FALLOC_FL_PUNCH_HOLE: u32 = 2;
const FALLOC_FL_ZERO_RANGE: u32 = 16;

pub(super) struct HostRegular {
    pub node: Arc<Node>,
    /// Only if it was opened to be written.
    pub writer: Option<Arc<Owned>>,
}

impl HostRegular {
    fn writes(&self) -> Result<BorrowedFd<'_>> {
        self.writer.as_ref().map(|writer| writer.0.as_fd()).ok_or(Errno::BADF)
    }

    fn reads(&self) -> BorrowedFd<'_> {
        self.writer.as_ref().map_or(self.node.host.0.as_fd(), |writer| writer.0.as_fd())
    }
}

impl Node {
    /// Who changes a file of set-id bits, and may not, takes them away: the host takes them from nobody, for its caller may.
    pub(super) fn drop_set_ids(&self, context: &Context, file: BorrowedFd<'_>) -> Result<()> {
        if context.credentials.capable(CAP_FSETID) {
            return Ok(());
        }
        let mode = files::stat(file, b"").map_err(errno)?.mode;
        let group = if mode & 0o010 != 0 { 0o2000 } else { 0 };
        let kept = mode & 0o7777 & !(0o4000 | group);
        if kept == mode & 0o7777 {
            return Ok(());
        }
        changes::set_permissions(file, kept).map_err(errno)
    }
}

impl File for HostRegular {
    fn read(&self, _: &Context, offset: u64, out: &mut [u8]) -> Result<usize> {
        files::read_at(self.reads(), offset, out).map_err(errno)
    }

    fn write(&self, context: &Context, offset: u64, data: &[u8]) -> Result<usize> {
        let file = self.writes()?;
        self.node.drop_set_ids(context, file)?;
        files::write_at(file, offset, data).map_err(errno)
    }

    fn append(&self, context: &Context, data: &[u8]) -> Result<(usize, u64)> {
        let file = self.writes()?;
        self.node.drop_set_ids(context, file)?;
        changes::append(file, data).map_err(errno)
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn size_bytes(&self) -> Result<u64> {
        Ok(self.node.stat()?.size_bytes)
    }

    fn seek_hole(&self, offset: u64, hole: bool) -> Result<u64> {
        changes::seek_hole(self.reads(), offset, hole).map_err(errno)
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(super::metadata(self.node.shared.device, &self.node.stat()?))
    }

    /// A descriptor that can do no more than the mapping may: guest code could raise its own pages' protection.
    fn mapping(&self, offset: u64, _: u64, shared_write: bool) -> Result<Mapping> {
        let host = match (shared_write, &self.writer) {
            (true, Some(writer)) => writer,
            (true, None) => return Err(Errno::ACCES),
            _ => &self.node.host,
        };
        Ok(Mapping { host: Arc::clone(host) as Arc<dyn HostFile>, offset })
    }

    fn truncate(&self, context: &Context, size_bytes: u64) -> Result<()> {
        let file = self.writes()?;
        files::set_size(file, size_bytes).map_err(errno)?;
        self.node.drop_set_ids(context, file)
    }

    fn allocate(&self, context: &Context, mode: u32, offset: u64, length_bytes: u64) -> Result<()> {
        if mode & !(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) != 0 {
            return Err(Errno::NOTSUP);
        }
        let file = self.writes()?;
        changes::allocate(file, mode, offset, length_bytes).map_err(errno)?;
        self.node.drop_set_ids(context, file)
    }

    fn sync(&self) -> Result<()> {
        changes::sync(self.reads()).map_err(errno)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
