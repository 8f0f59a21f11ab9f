//! Structures of Linux's x86-64 interface, as bytes.

use drupe_appkernel_vfs::inode::DirEntry;
use drupe_appkernel_vfs::kind::{split_device, StatFs};
use drupe_appkernel_vfs::{Metadata, Timestamp};

pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Fields that are int there, cut to its range.
pub fn ints(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| (*number).min(i32::MAX as u64).to_le_bytes()[..4].to_vec()).collect()
}

/// struct timespec.
pub fn timespec(time: Timestamp) -> Vec<u8> {
    words(&[time.seconds as u64, time.nanoseconds.into()])
}

/// struct stat.
pub fn stat(m: &Metadata) -> Vec<u8> {
    let mut out = words(&[m.device, m.inode, m.links.into()]);
    for word in [m.mode, m.uid, m.gid, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(words(&[m.rdev, m.size_bytes, m.block_size.into(), m.blocks]));
    [m.accessed, m.modified, m.changed].iter().for_each(|time| out.extend(timespec(*time)));
    out.extend([0; 24]);
    out
}

const STATX_BASIC_AND_BIRTH: u32 = 0xfff;
const STATX_MNT_ID: u32 = 0x1000;

/// struct statx.
pub fn statx(m: &Metadata, mount: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let time = |out: &mut Vec<u8>, time: Timestamp| {
        out.extend(time.seconds.to_le_bytes());
        out.extend(u64::from(time.nanoseconds).to_le_bytes());
    };
    out.extend((STATX_BASIC_AND_BIRTH | STATX_MNT_ID).to_le_bytes());
    out.extend(m.block_size.to_le_bytes());
    out.extend([0; 8]);
    for word in [m.links, m.uid, m.gid, m.mode & 0xffff] {
        out.extend(word.to_le_bytes());
    }
    out.extend(words(&[m.inode, m.size_bytes, m.blocks, 0]));
    [m.accessed, m.born, m.changed, m.modified].into_iter().for_each(|t| time(&mut out, t));
    let ((rmajor, rminor), (major, minor)) = (split_device(m.rdev), split_device(m.device));
    for word in [rmajor, rminor, major, minor] {
        out.extend(word.to_le_bytes());
    }
    out.extend(mount.to_le_bytes());
    out.resize(256, 0);
    out
}

/// struct statfs. `flags`: ST_*.
pub fn statfs(s: &StatFs, flags: u64) -> Vec<u8> {
    let mut out = words(&[s.magic, s.block_size_bytes, s.blocks, s.blocks_free, s.blocks_free, s.files, s.files_free]);
    out.extend(words(&[0, s.name_max_bytes, s.block_size_bytes, flags | 0x20, 0, 0, 0, 0]));
    out
}

/// Add a struct linux_dirent64; false when `out` would be longer than `room`.
pub fn dirent64(entry: &DirEntry<'_>, room: usize, out: &mut Vec<u8>) -> bool {
    let length = (19 + entry.name.len() + 1).next_multiple_of(8);
    let end = out.len() + length;
    if end > room {
        return false;
    }
    let mut fixed = [0; 19];
    fixed[..8].copy_from_slice(&entry.inode.to_le_bytes());
    fixed[8..16].copy_from_slice(&entry.next_cookie.to_le_bytes());
    fixed[16..18].copy_from_slice(&(length as u16).to_le_bytes());
    fixed[18] = entry.kind.dirent_type();
    out.extend_from_slice(&fixed);
    out.extend_from_slice(entry.name);
    out.extend_from_slice(&[0; 8][..end - out.len()]);
    true
}

/// struct linux_dirent: the old one, its type at the end.
pub fn dirent(entry: &DirEntry<'_>, room: usize, out: &mut Vec<u8>) -> bool {
    let length = (18 + entry.name.len() + 2).next_multiple_of(8);
    let end = out.len() + length;
    if end > room {
        return false;
    }
    out.extend_from_slice(&entry.inode.to_le_bytes());
    out.extend_from_slice(&entry.next_cookie.to_le_bytes());
    out.extend_from_slice(&(length as u16).to_le_bytes());
    out.extend_from_slice(entry.name);
    out.resize(end, 0);
    out[end - 1] = entry.kind.dirent_type();
    true
}

/// struct utsname's six fields.
pub fn utsname(fields: [&[u8]; 6]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        out.extend(field.iter().take(64));
        out.resize(65 * (i + 1), 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_linux_sizes() {
        let m = Metadata::default();
        assert_eq!((stat(&m).len(), statx(&m, 1).len(), statfs(&StatFs::default(), 0).len()), (144, 256, 120));
        assert_eq!(utsname([b"Linux"; 6]).len(), 390);
    }
}
