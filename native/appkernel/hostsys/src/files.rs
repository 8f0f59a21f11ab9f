//! Files of the host: directories that the kernel was given, and descriptors that it reads and writes.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::notify::own;

/// What stat(2) says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stat {
    pub device: u64,
    pub inode: u64,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size_bytes: u64,
    pub blocks: u64,
    /// Access, modification, change: seconds and nanoseconds.
    pub times: [(i64, u32); 3],
}

/// An entry of a directory: name, inode, type (DT_*), position after it.
pub type Entry = (Vec<u8>, u64, u8, u64);

fn name(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Attributes of `name` in a directory, or of the descriptor itself if the name is empty; links are not followed.
pub fn stat(at: BorrowedFd<'_>, path: &[u8]) -> io::Result<Stat> {
    let path = name(path)?;
    // SAFETY: zero is a valid value of this plain structure.
    let mut raw: libc::stat = unsafe { std::mem::zeroed() };
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: `path` is a C string, `raw` ours.
    checked(unsafe { libc::fstatat(at.as_raw_fd(), path.as_ptr(), &raw mut raw, flags) } as isize)?;
    Ok(Stat {
        device: raw.st_dev,
        inode: raw.st_ino,
        mode: raw.st_mode,
        links: raw.st_nlink as u32,
        uid: raw.st_uid,
        gid: raw.st_gid,
        rdev: raw.st_rdev,
        size_bytes: raw.st_size as u64,
        blocks: raw.st_blocks as u64,
        times: [
            (raw.st_atime, raw.st_atime_nsec as u32),
            (raw.st_mtime, raw.st_mtime_nsec as u32),
            (raw.st_ctime, raw.st_ctime_nsec as u32),
        ],
    })
}

/// A path below a directory, never through a link, and never out of the directory (openat2(2)).
pub fn open(at: BorrowedFd<'_>, path: &[u8], flags: i32) -> io::Result<OwnedFd> {
    open_below(at, &name(path)?, flags | libc::O_NOFOLLOW, 0)
}

pub(crate) fn open_below(at: BorrowedFd<'_>, path: &CStr, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    // SAFETY: zero is a valid value of this plain structure.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = mode.into();
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: `path` is a C string, `how` is ours and of the size that is said.
    let fd = unsafe {
        libc::syscall(libc::SYS_openat2, at.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<libc::open_how>())
    };
    own(fd as RawFd)
}

/// A file at a path below a directory, without links on the way.
pub fn below(at: BorrowedFd<'_>, path: &[u8], flags: i32) -> io::Result<OwnedFd> {
    open_below(at, &name(path)?, flags | libc::O_NOFOLLOW, 0)
}

/// A file of the host by its whole path.
pub fn open_path(path: &[u8], flags: i32) -> io::Result<OwnedFd> {
    let path = name(path)?;
    // SAFETY: `path` is a C string.
    own(unsafe { libc::openat(libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC) })
}

/// mount_setattr(2): nothing in a tree that may be mounted nowhere (open_tree(2)) can be changed through it, nor run.
pub fn make_read_only(tree: BorrowedFd<'_>) -> io::Result<()> {
    const READ_ONLY_NO_SUID_DEV_EXEC: u64 = 15;
    let (set, none) = ([READ_ONLY_NO_SUID_DEV_EXEC, 0, 0, 0], c"".as_ptr()); // struct mount_attr
    let flags = libc::AT_RECURSIVE | libc::AT_EMPTY_PATH;
    // SAFETY: the path is a C string, `set` the host's structure of the size that is said; both are only read.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), none, flags, set.as_ptr(), size_of_val(&set))
    };
    checked(done as isize).map(drop)
}

/// The text of a symbolic link that was opened with O_PATH.
pub fn read_link(link: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut text = vec![0u8; 4096];
    // SAFETY: `text` has the size that is said.
    let count = unsafe { libc::readlinkat(link.as_raw_fd(), c"".as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    text.truncate(checked(count)?);
    Ok(text)
}

/// Entries from position `from` on (0: the start), some of them; none at the end.
pub fn entries(directory: BorrowedFd<'_>, from: u64) -> io::Result<Vec<Entry>> {
    let fd = open_below(directory, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let mut buffer = vec![0u8; 32 << 10];
    // SAFETY: no memory is involved; then `buffer` has the size that is said.
    let count = unsafe {
        if from != 0 && libc::lseek(fd.as_raw_fd(), from as libc::off_t, libc::SEEK_SET) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), buffer.as_mut_ptr(), buffer.len())
    };
    let mut rest = &buffer[..checked(count as isize)?];
    let mut list = Vec::new();
    while rest.len() > 19 {
        let word = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().unwrap_or([0; 8]));
        let length = usize::from(u16::from_ne_bytes([rest[16], rest[17]])).clamp(20, rest.len());
        let text = &rest[19..length];
        let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
        list.push((text[..end].to_vec(), word(0), rest[18], word(8)));
        rest = &rest[length..];
    }
    Ok(list)
}

/// Whether a descriptor was opened to be written, too.
pub fn is_writable(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: no memory is involved.
    let flags = checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) } as isize)?;
    Ok(flags as i32 & libc::O_ACCMODE == libc::O_RDWR)
}

pub fn read_at(fd: BorrowedFd<'_>, offset: u64, out: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `out` has the size that is said.
    checked(unsafe { libc::pread(fd.as_raw_fd(), out.as_mut_ptr().cast(), out.len(), offset as libc::off_t) })
}

pub fn write_at(fd: BorrowedFd<'_>, offset: u64, data: &[u8]) -> io::Result<usize> {
    // SAFETY: `data` has the size that is said.
    checked(unsafe { libc::pwrite(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), offset as libc::off_t) })
}

pub fn read(fd: BorrowedFd<'_>, out: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `out` has the size that is said.
    checked(unsafe { libc::read(fd.as_raw_fd(), out.as_mut_ptr().cast(), out.len()) })
}

pub fn write(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: `data` has the size that is said.
    checked(unsafe { libc::write(fd.as_raw_fd(), data.as_ptr().cast(), data.len()) })
}

/// The start of a file as text, such as one of /proc, which is made anew at each reading; empty where that fails.
pub fn text(fd: BorrowedFd<'_>) -> String {
    let mut bytes = vec![0; 64 << 10];
    let count = read_at(fd, 0, &mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

pub fn set_size(fd: BorrowedFd<'_>, size_bytes: u64) -> io::Result<()> {
    // SAFETY: no memory is involved.
    checked(unsafe { libc::ftruncate(fd.as_raw_fd(), size_bytes as libc::off_t) } as isize).map(drop)
}

/// All of a small file, whatever its position. EFBIG for one that is longer than `longest`.
pub fn content(fd: &OwnedFd, longest: usize) -> io::Result<Vec<u8>> {
    let size = stat(fd.as_fd(), b"")?.size_bytes;
    if size > longest as u64 {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    let mut bytes = vec![0; size as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match read_at(fd.as_fd(), filled as u64, &mut bytes[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Give the memory of a range of a memfd back.
pub fn punch(fd: BorrowedFd<'_>, offset: u64, length_bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is involved.
    let done = unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset as libc::off_t, length_bytes as libc::off_t) };
    checked(done as isize).map(drop)
}

/// A descriptor that this process was started with, taken over under a number of its own.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; a number that is not open gives EBADF.
    own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10) })
}

/// Pages of a file, mapped read-only for as long as the process lives.
pub fn map(fd: BorrowedFd<'_>, size_bytes: usize) -> io::Result<&'static [u8]> {
    // SAFETY: a fresh mapping, never undone. The file must not be cut while it is mapped: images are written once.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), size_bytes, libc::PROT_READ, libc::MAP_SHARED, fd.as_raw_fd(), 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(std::slice::from_raw_parts(at.cast(), size_bytes))
    }
}
