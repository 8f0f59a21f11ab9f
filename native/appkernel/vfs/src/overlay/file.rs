//! A file that was opened to read before anybody wrote to it: from the lower layer, and from its copy once there is one.

use std::any::Any;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::node::OverlayNode;
use crate::file::{Context, Credentials, File, Mapping, Metadata, Timestamp};
use crate::inode::Inode;
use crate::open::OpenFlags;
use crate::sync::Mutex;

struct Real {
    file: Arc<dyn File>,
    is_upper: bool,
}

pub(super) struct OverlayFile {
    node: Arc<OverlayNode>,
    flags: OpenFlags,
    real: Mutex<Real>,
}

impl OverlayFile {
    pub fn open(context: &Context, node: Arc<OverlayNode>, flags: OpenFlags) -> Result<Arc<dyn File>> {
        let file = node.real()?.open(context, flags)?;
        Ok(Arc::new(Self { node, flags, real: Mutex::new(Real { file, is_upper: false }) }))
    }

    fn real(&self) -> Result<Arc<dyn File>> {
        let mut real = self.real.lock();
        if !real.is_upper {
            if let Some(upper) = self.node.upper() {
                let credentials = Credentials::default();
                let context = Context { credentials: &credentials, now: Timestamp::ZERO, pid: 0, session: 0 };
                *real = Real { file: upper.open(&context, self.flags)?, is_upper: true };
            }
        }
        Ok(Arc::clone(&real.file))
    }
}

impl File for OverlayFile {
    fn read(&self, context: &Context, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.real()?.read(context, offset, out)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::BADF)
    }

    fn metadata(&self) -> Result<Metadata> {
        self.node.metadata()
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn size_bytes(&self) -> Result<u64> {
        self.real()?.size_bytes()
    }

    fn seek_hole(&self, offset: u64, hole: bool) -> Result<u64> {
        self.real()?.seek_hole(offset, hole)
    }

    fn mapping(&self, offset: u64, size_bytes: u64, shared_write: bool) -> Result<Mapping> {
        self.real()?.mapping(offset, size_bytes, shared_write)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
