//! The image as a whole: its superblock, and checked access to its bytes.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

const SUPERBLOCK_OFFSET: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 128;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Zero padding of compressed clusters (says nothing about uncompressed files), and chunked files.
const KNOWN_INCOMPAT: u32 = 0x1 | 0x4;

/// Bytes that stay where they are and as they are: a mapped file.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// An EROFS image.
#[derive(Clone)]
pub struct Image {
    bytes: Bytes,
    pub(crate) block_bits: u32,
    pub(crate) root_nid: u64,
    pub(crate) inodes: u64,
    pub(crate) build_seconds: u64,
    pub(crate) build_nanoseconds: u32,
    pub(crate) blocks: u64,
    meta_offset: u64,
    xattr_offset: u64,
}

/// Numbers at offsets of a piece that is known to be long enough; zero beyond, which cannot happen then.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        if let Some(bytes) = self.0.get(at..at + N) {
            array.copy_from_slice(bytes);
        }
        array
    }

    pub fn u8(&self, at: usize) -> u8 {
        self.array::<1>(at)[0]
    }

    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

impl Image {
    /// Read the superblock. EINVAL for what is no EROFS image, EOPNOTSUPP for one with features that are not read here.
    pub fn open(bytes: Bytes) -> Result<Self> {
        let mut image = Self {
            bytes,
            block_bits: 12,
            root_nid: 0,
            inodes: 0,
            build_seconds: 0,
            build_nanoseconds: 0,
            blocks: 0,
            meta_offset: 0,
            xattr_offset: 0,
        };
        let superblock = image.slice(SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES).map_err(|_| Errno::INVAL)?.to_vec();
        image.decode(&Fields(&superblock))?;
        Ok(image)
    }

    fn decode(&mut self, fields: &Fields<'_>) -> Result<()> {
        self.block_bits = u32::from(fields.u8(12));
        if fields.u32(0) != MAGIC || !(9..=16).contains(&self.block_bits) {
            return Err(Errno::INVAL);
        }
        if fields.u32(80) & !KNOWN_INCOMPAT != 0 || fields.u8(90) != 0 {
            return Err(Errno::NOTSUP);
        }
        self.root_nid = u64::from(fields.u16(14));
        self.inodes = fields.u64(16);
        self.build_seconds = fields.u64(24);
        self.build_nanoseconds = fields.u32(32);
        self.blocks = u64::from(fields.u32(36));
        self.meta_offset = self.block_offset(fields.u32(40));
        self.xattr_offset = self.block_offset(fields.u32(44));
        Ok(())
    }

    pub(crate) fn block_size(&self) -> u64 {
        1 << self.block_bits
    }

    pub(crate) fn block_offset(&self, block: u32) -> u64 {
        u64::from(block) << self.block_bits
    }

    /// EUCLEAN when the image is not that long.
    pub(crate) fn slice(&self, offset: u64, length: usize) -> Result<&[u8]> {
        let start = usize::try_from(offset).map_err(|_| Errno::UCLEAN)?;
        let end = start.checked_add(length).ok_or(Errno::UCLEAN)?;
        (*self.bytes).as_ref().get(start..end).ok_or(Errno::UCLEAN)
    }

    pub(crate) fn inode_offset(&self, nid: u64) -> Result<u64> {
        nid.checked_mul(32).and_then(|offset| offset.checked_add(self.meta_offset)).ok_or(Errno::UCLEAN)
    }

    pub(crate) fn shared_xattr_offset(&self, id: u32) -> u64 {
        self.xattr_offset + u64::from(id) * 4
    }
}
