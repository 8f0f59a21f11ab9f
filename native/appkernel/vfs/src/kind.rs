//! Kinds of files, device numbers, changes of attributes.

use crate::file::Timestamp;

/// The kind of a file (inode(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    Fifo,
    CharDevice,
    Directory,
    BlockDevice,
    Regular,
    Symlink,
    Socket,
}

impl FileType {
    /// The S_IFMT bits of st_mode.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice => 0o060_000,
            Self::Regular => 0o100_000,
            Self::Symlink => 0o120_000,
            Self::Socket => 0o140_000,
        }
    }

    /// From the S_IFMT bits of a mode; the others are not looked at.
    pub fn from_mode(mode: u32) -> Option<Self> {
        use FileType::{BlockDevice, CharDevice, Directory, Fifo, Regular, Socket, Symlink};
        let kinds = [Fifo, CharDevice, Directory, BlockDevice, Regular, Symlink, Socket];
        kinds.into_iter().find(|kind| kind.mode_bits() == mode & 0o170_000)
    }

    /// d_type of getdents64(2).
    pub const fn dirent_type(self) -> u8 {
        (self.mode_bits() >> 12) as u8
    }
}

pub const S_ISUID: u32 = 0o4000;
pub const S_ISGID: u32 = 0o2000;
pub const S_ISVTX: u32 = 0o1000;

/// makedev(3): a dev_t of glibc and the kernel's 64-bit interfaces.
pub const fn make_device(major: u32, minor: u32) -> u64 {
    let (major, minor) = (major as u64, minor as u64);
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12) | ((major & !0xfff) << 32)
}

/// major(3) and minor(3) of a dev_t.
pub const fn split_device(device: u64) -> (u32, u32) {
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & !0xfff);
    let minor = (device & 0xff) | ((device >> 12) & !0xff);
    (major as u32, minor as u32)
}

/// What statfs(2) says of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    pub magic: u64,
    pub block_size_bytes: u64,
    pub blocks: u64,
    pub blocks_free: u64,
    pub files: u64,
    pub files_free: u64,
    pub name_max_bytes: u64,
}

/// What to change of an inode; None stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    pub permissions: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    pub accessed: Option<Timestamp>,
    pub modified: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_both_ways() {
        for (major, minor) in [(1, 3), (136, 0), (4095, 255), (4096, 1_048_575), (0xffff_ffff, 0xffff_ffff)] {
            assert_eq!(split_device(make_device(major, minor)), (major, minor));
        }
        assert_eq!(make_device(5, 1), 0x501);
    }

    #[test]
    fn kinds_survive_both_ways() {
        for kind in [FileType::Fifo, FileType::Socket, FileType::Regular, FileType::Directory] {
            assert_eq!(FileType::from_mode(kind.mode_bits() | 0o7777), Some(kind));
        }
        assert_eq!(FileType::from_mode(0o7777), None);
        assert_eq!(FileType::Directory.dirent_type(), 4);
    }
}
