//! Inodes, and where their content lies.

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::FileType;

use crate::image::{Fields, Image};

const COMPACT_BYTES: u64 = 32;
const EXTENDED_BYTES: u64 = 64;
const CHUNK_INDEXES: u32 = 0x20;
const CHUNK_BITS: u32 = 0x1f;
const HOLE: u32 = u32::MAX;

/// How the content is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// All blocks from this offset of the image on.
    Plain { offset: u64 },
    /// The same, but what lies in the last block, or all, follows the inode.
    Inline { offset: u64, tail_start: u64, tail_offset: u64 },
    /// Chunks of this many bytes (a power of two) at addresses in a table.
    Chunks { bits: u32, table: u64, entry_bytes: u64 },
}

/// A decoded inode.
#[derive(Clone, Copy, Debug)]
pub struct Inode {
    pub nid: u64,
    pub kind: FileType,
    pub permissions: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    pub device_number: u32,
    pub modified_seconds: u64,
    pub modified_nanoseconds: u32,
    pub layout: Layout,
    /// Where extended attributes start, and how long they are.
    pub(crate) xattrs: (u64, usize),
}

impl Inode {
    /// The inode of this number. EUCLEAN; EOPNOTSUPP for a compressed one.
    pub fn read(image: &Image, nid: u64) -> Result<Self> {
        let offset = image.inode_offset(nid)?;
        let format = Fields(image.slice(offset, 2)?).u16(0);
        let extended = format & 1 == 1;
        let header = if extended { EXTENDED_BYTES } else { COMPACT_BYTES };
        let fields = Fields(image.slice(offset, header as usize)?);
        let mut inode = if extended { Self::extended(&fields, nid)? } else { Self::compact(image, &fields, nid)? };
        let count = usize::from(fields.u16(2));
        let xattr_bytes = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
        inode.xattrs = (offset + header, xattr_bytes);
        image.slice(offset + header, xattr_bytes)?;
        if matches!(inode.kind, FileType::Regular | FileType::Directory | FileType::Symlink) {
            let after = offset + header + xattr_bytes as u64;
            inode.layout = inode.find_layout(image, u32::from(format >> 1 & 7), fields.u32(16), after)?;
        }
        Ok(inode)
    }

    fn common(nid: u64, mode: u16, device_number: u32) -> Result<Self> {
        Ok(Self {
            nid,
            kind: FileType::from_mode(u32::from(mode)).ok_or(Errno::UCLEAN)?,
            permissions: u32::from(mode) & 0o7777,
            links: 1,
            uid: 0,
            gid: 0,
            size_bytes: 0,
            device_number,
            modified_seconds: 0,
            modified_nanoseconds: 0,
            layout: Layout::Plain { offset: 0 },
            xattrs: (0, 0),
        })
    }

    fn compact(image: &Image, fields: &Fields<'_>, nid: u64) -> Result<Self> {
        Ok(Self {
            links: u32::from(fields.u16(6)),
            size_bytes: u64::from(fields.u32(8)),
            uid: u32::from(fields.u16(24)),
            gid: u32::from(fields.u16(26)),
            modified_seconds: image.build_seconds,
            modified_nanoseconds: image.build_nanoseconds,
            ..Self::common(nid, fields.u16(4), fields.u32(16))?
        })
    }

    fn extended(fields: &Fields<'_>, nid: u64) -> Result<Self> {
        Ok(Self {
            links: fields.u32(44),
            size_bytes: fields.u64(8),
            uid: fields.u32(24),
            gid: fields.u32(28),
            modified_seconds: fields.u64(32),
            modified_nanoseconds: fields.u32(40),
            ..Self::common(nid, fields.u16(4), fields.u32(16))?
        })
    }

    fn find_layout(&self, image: &Image, layout: u32, start: u32, after: u64) -> Result<Layout> {
        if i64::try_from(self.size_bytes).is_err() {
            return Err(Errno::UCLEAN);
        }
        let offset = image.block_offset(start);
        match layout {
            0 => Ok(Layout::Plain { offset }),
            2 => {
                let blocks = self.size_bytes.div_ceil(image.block_size());
                let tail_start = blocks.saturating_sub(1) << image.block_bits;
                Ok(Layout::Inline { offset, tail_start, tail_offset: after })
            }
            4 => {
                let entry_bytes = if start & CHUNK_INDEXES != 0 { 8 } else { 4 };
                let bits = image.block_bits + (start & CHUNK_BITS);
                Ok(Layout::Chunks { bits, table: after.next_multiple_of(entry_bytes), entry_bytes })
            }
            _ => Err(Errno::NOTSUP),
        }
    }

    /// Where the byte at `position` lies, and for how many bytes on from there: (offset in the image or a hole, length).
    pub fn extent(&self, image: &Image, position: u64) -> Result<(Option<u64>, u64)> {
        let left = self.size_bytes.saturating_sub(position);
        match self.layout {
            Layout::Plain { offset } => Ok((Some(add(offset, position)?), left)),
            Layout::Inline { offset, tail_start, .. } if position < tail_start => {
                Ok((Some(add(offset, position)?), tail_start - position))
            }
            Layout::Inline { tail_start, tail_offset, .. } => {
                Ok((Some(add(tail_offset, position - tail_start)?), left))
            }
            Layout::Chunks { bits, table, entry_bytes } => {
                let entry = add(table, (position >> bits).checked_mul(entry_bytes).ok_or(Errno::UCLEAN)?)?;
                let fields = Fields(image.slice(entry, entry_bytes as usize)?);
                let block = fields.u32(if entry_bytes == 8 { 4 } else { 0 });
                let within = position & ((1 << bits) - 1);
                let start = if block == HOLE { None } else { Some(image.block_offset(block) + within) };
                Ok((start, left.min((1 << bits) - within)))
            }
        }
    }

    /// Copy content from `position` on; the bytes copied, fewer only at the end.
    pub fn content(&self, image: &Image, position: u64, out: &mut [u8]) -> Result<usize> {
        let wanted = self.size_bytes.saturating_sub(position).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < wanted {
            let (start, length) = self.extent(image, position + done as u64)?;
            let piece = (wanted - done).min(usize::try_from(length).unwrap_or(usize::MAX));
            if piece == 0 {
                return Err(Errno::UCLEAN);
            }
            let target = &mut out[done..done + piece];
            match start {
                Some(start) => target.copy_from_slice(image.slice(start, piece)?),
                None => target.fill(0),
            }
            done += piece;
        }
        Ok(done)
    }

    /// The text of a symbolic link. EUCLEAN when it is longer than a path can be.
    pub fn link_target(&self, image: &Image) -> Result<Vec<u8>> {
        if self.size_bytes > 4096 {
            return Err(Errno::UCLEAN);
        }
        let mut text = vec![0; self.size_bytes as usize];
        self.content(image, 0, &mut text)?;
        Ok(text)
    }
}

fn add(offset: u64, more: u64) -> Result<u64> {
    offset.checked_add(more).ok_or(Errno::UCLEAN)
}
