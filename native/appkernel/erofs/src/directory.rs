//! Directories: blocks of sorted entries.

use std::cmp::Ordering;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::FileType;

use crate::image::{Fields, Image};
use crate::inode::Inode;

const ENTRY_BYTES: usize = 12;

/// An entry: its name, its inode's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    /// As the directory tells it; None: the inode alone does.
    pub kind: Option<FileType>,
}

/// EROFS_FT_*, from 1 on.
const KINDS: [FileType; 7] = [
    FileType::Regular,
    FileType::Directory,
    FileType::CharDevice,
    FileType::BlockDevice,
    FileType::Fifo,
    FileType::Socket,
    FileType::Symlink,
];

struct Block<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Block<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self> {
        let first_name = usize::from(Fields(bytes).u16(8));
        let count = first_name / ENTRY_BYTES;
        let sound = count > 0 && first_name % ENTRY_BYTES == 0 && first_name <= bytes.len();
        sound.then_some(Self { bytes, count }).ok_or(Errno::UCLEAN)
    }

    fn name_offset(&self, index: usize) -> usize {
        usize::from(Fields(self.bytes).u16(index * ENTRY_BYTES + 8))
    }

    fn entry(&self, index: usize) -> Result<Entry<'a>> {
        let fields = self.bytes.get(index * ENTRY_BYTES..(index + 1) * ENTRY_BYTES).ok_or(Errno::UCLEAN)?;
        let fields = Fields(fields);
        let start = usize::from(fields.u16(8));
        let end = if index + 1 < self.count { self.name_offset(index + 1) } else { self.bytes.len() };
        let name = self.bytes.get(start..end).ok_or(Errno::UCLEAN)?;
        let name = if index + 1 < self.count { name } else { name.split(|&b| b == 0).next().unwrap_or(name) };
        if name.is_empty() || name.len() > 255 || name.iter().any(|&byte| byte == b'/' || byte == 0) {
            return Err(Errno::UCLEAN);
        }
        let kind = usize::from(fields.u8(10)).checked_sub(1).and_then(|at| KINDS.get(at)).copied();
        Ok(Entry { name, nid: fields.u64(0), kind })
    }
}

/// A directory of the image.
pub(crate) struct Directory<'a> {
    image: &'a Image,
    inode: &'a Inode,
}

impl<'a> Directory<'a> {
    pub fn new(image: &'a Image, inode: &'a Inode) -> Self {
        Self { image, inode }
    }

    fn blocks(&self) -> u64 {
        self.inode.size_bytes.div_ceil(self.image.block_size())
    }

    fn block(&self, index: u64) -> Result<Block<'a>> {
        let position = index << self.image.block_bits;
        let (start, length) = self.inode.extent(self.image, position)?;
        let length = length.min(self.image.block_size()).min(self.inode.size_bytes - position);
        Block::new(self.image.slice(start.ok_or(Errno::UCLEAN)?, length as usize)?)
    }

    /// Binary search, first for the block, then in it. ENOENT.
    pub fn find(&self, name: &[u8]) -> Result<u64> {
        let (mut low, mut high) = (0, self.blocks());
        while low < high {
            let middle = low + (high - low) / 2;
            let block = self.block(middle)?;
            if name < block.entry(0)?.name {
                high = middle;
            } else if name > block.entry(block.count - 1)?.name {
                low = middle + 1;
            } else {
                return find_in(&block, name);
            }
        }
        Err(Errno::NOENT)
    }

    /// The entries from the one numbered `cookie` on (a block has 8192 numbers), until `sink` (entry, next cookie) is false.
    pub fn read(&self, cookie: u64, sink: &mut dyn FnMut(Entry<'_>, u64) -> Result<bool>) -> Result<()> {
        const PER_BLOCK: u64 = 1 << 13;
        let mut first = (cookie % PER_BLOCK) as usize;
        for index in cookie / PER_BLOCK..self.blocks() {
            let block = self.block(index)?;
            for at in first..block.count {
                if !sink(block.entry(at)?, index * PER_BLOCK + at as u64 + 1)? {
                    return Ok(());
                }
            }
            first = 0;
        }
        Ok(())
    }
}

fn find_in(block: &Block<'_>, name: &[u8]) -> Result<u64> {
    let (mut low, mut high) = (0, block.count);
    while low < high {
        let middle = low + (high - low) / 2;
        let entry = block.entry(middle)?;
        match name.cmp(entry.name) {
            Ordering::Less => high = middle,
            Ordering::Greater => low = middle + 1,
            Ordering::Equal => return Ok(entry.nid),
        }
    }
    Err(Errno::NOENT)
}
