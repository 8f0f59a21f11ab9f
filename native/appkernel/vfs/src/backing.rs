//! Memory of the host behind files that are mapped.

use std::sync::Arc;

use drupe_appkernel_abi::Result;

use crate::file::HostFile;

/// A file in memory (a memfd) that holds the content of one file of ours, so that processes can map it.
pub trait Backing: HostFile {
    /// Fill `out` from `offset`; what lies beyond the end reads as zero.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()>;

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Cut or extend; mapped pages beyond a new end give SIGBUS, as they must.
    fn set_size(&self, size_bytes: u64) -> Result<()>;

    /// Give the memory of a range back; it reads as zero from then on.
    fn punch(&self, offset: u64, length_bytes: u64) -> Result<()>;

    /// The backing as what may be mapped.
    fn as_host_file(self: Arc<Self>) -> Arc<dyn HostFile>;
}

/// Makes backings; the core implements it.
pub trait Backings: Send + Sync {
    /// An empty one. ENOMEM; EMFILE when the kernel has no descriptor left.
    fn create(&self) -> Result<Arc<dyn Backing>>;

    /// Bytes that file systems in memory are about to hold, wherever: of all of the pod together. ENOSPC.
    fn reserve(&self, _size_bytes: u64) -> Result<()> {
        Ok(())
    }

    /// They hold so much less.
    fn release(&self, _size_bytes: u64) {}
}
