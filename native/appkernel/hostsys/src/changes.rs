//! Changes below directories that the kernel was given. Names are single components, so that no call walks a path, and no
//! call follows a link.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::files::{self, open_below};

fn name(bytes: &[u8]) -> io::Result<CString> {
    // "..": never said by the kernel's walk, and never done here
    let sound = !bytes.is_empty() && !bytes.contains(&b'/') && bytes != b".." && bytes != b".";
    CString::new(bytes).ok().filter(|_| sound).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

fn text(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

const HERE: &CStr = c"";

/// A new regular file, to be read and written; nobody else may open it yet. EEXIST.
pub fn create(at: BorrowedFd<'_>, entry: &[u8]) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    open_below(at, &name(entry)?, flags, 0o600)
}

/// A regular file without a name (O_TMPFILE).
pub fn create_unnamed(at: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open_below(at, c".", libc::O_RDWR | libc::O_TMPFILE, 0o600)
}

pub fn make_directory(at: BorrowedFd<'_>, entry: &[u8]) -> io::Result<()> {
    let entry = name(entry)?;
    // SAFETY: `entry` is a C string.
    done(unsafe { libc::mkdirat(at.as_raw_fd(), entry.as_ptr(), 0o700) })
}

/// A FIFO, a socket, or a whiteout; `mode` has the type's bits.
pub fn make_node(at: BorrowedFd<'_>, entry: &[u8], mode: u32) -> io::Result<()> {
    let entry = name(entry)?;
    // SAFETY: `entry` is a C string.
    done(unsafe { libc::mknodat(at.as_raw_fd(), entry.as_ptr(), mode, 0) })
}

pub fn make_link(at: BorrowedFd<'_>, entry: &[u8], target: &[u8]) -> io::Result<()> {
    let (entry, target) = (name(entry)?, text(target)?);
    // SAFETY: both are C strings.
    done(unsafe { libc::symlinkat(target.as_ptr(), at.as_raw_fd(), entry.as_ptr()) })
}

/// A further name of the file behind a descriptor. ENOENT: it has none, and may not get one.
pub fn link(file: BorrowedFd<'_>, at: BorrowedFd<'_>, entry: &[u8]) -> io::Result<()> {
    let entry = name(entry)?;
    let (from, to) = (file.as_raw_fd(), at.as_raw_fd());
    // SAFETY: both paths are C strings.
    done(unsafe { libc::linkat(from, HERE.as_ptr(), to, entry.as_ptr(), libc::AT_EMPTY_PATH) })
}

pub fn remove(at: BorrowedFd<'_>, entry: &[u8], directory: bool) -> io::Result<()> {
    let entry = name(entry)?;
    let flags = if directory { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: `entry` is a C string.
    done(unsafe { libc::unlinkat(at.as_raw_fd(), entry.as_ptr(), flags) })
}

/// renameat2(2) with its flags.
pub fn rename(at: BorrowedFd<'_>, old: &[u8], to: BorrowedFd<'_>, new: &[u8], flags: u32) -> io::Result<()> {
    let (old, new) = (name(old)?, name(new)?);
    let (from, into) = (at.as_raw_fd(), to.as_raw_fd());
    // SAFETY: both are C strings.
    let result = unsafe { libc::syscall(libc::SYS_renameat2, from, old.as_ptr(), into, new.as_ptr(), flags) };
    done(result as libc::c_int)
}

/// Of what is behind a descriptor, opened with O_PATH or not; u32::MAX leaves an id as it is.
pub fn set_owner(file: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: the path is a C string.
    done(unsafe { libc::fchownat(file.as_raw_fd(), HERE.as_ptr(), uid, gid, libc::AT_EMPTY_PATH) })
}

/// fchmod(2); of what was opened with O_PATH by fchmodat2(2), which hosts before 6.6 lack: ENOSYS.
pub fn set_permissions(file: BorrowedFd<'_>, permissions: u32) -> io::Result<()> {
    const FCHMODAT2: libc::c_long = 452;
    // SAFETY: no memory is involved.
    match done(unsafe { libc::fchmod(file.as_raw_fd(), permissions) }) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
        result => return result,
    }
    let (fd, path) = (file.as_raw_fd(), HERE.as_ptr());
    // SAFETY: the path is a C string.
    done(unsafe { libc::syscall(FCHMODAT2, fd, path, permissions, libc::AT_EMPTY_PATH) } as libc::c_int)
}

/// Access and modification: seconds and nanoseconds; None stays.
pub fn set_times(file: BorrowedFd<'_>, times: [Option<(i64, u32)>; 2]) -> io::Result<()> {
    let times = times.map(|time| match time {
        Some((seconds, part)) => libc::timespec { tv_sec: seconds, tv_nsec: part.into() },
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
    });
    // SAFETY: two times, as the call wants; the path is a C string.
    done(unsafe { libc::utimensat(file.as_raw_fd(), HERE.as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) })
}

/// Write at the end, wherever that is by then: bytes written, and the end after them.
pub fn append(file: BorrowedFd<'_>, data: &[u8]) -> io::Result<(usize, u64)> {
    const APPEND: libc::c_int = 0x10;
    let part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: one part, which is only read.
    let count = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, 0, APPEND) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok((count, files::stat(file, b"")?.size_bytes))
}

/// fallocate(2) with its mode.
pub fn allocate(file: BorrowedFd<'_>, mode: u32, offset: u64, length_bytes: u64) -> io::Result<()> {
    let (offset, length) = (offset as libc::off_t, length_bytes as libc::off_t);
    // SAFETY: no memory is involved.
    done(unsafe { libc::fallocate(file.as_raw_fd(), mode as libc::c_int, offset, length) })
}

/// lseek(2) SEEK_DATA or SEEK_HOLE; moves the descriptor's own position, which nobody uses.
pub fn seek_hole(file: BorrowedFd<'_>, offset: u64, hole: bool) -> io::Result<u64> {
    let what = if hole { libc::SEEK_HOLE } else { libc::SEEK_DATA };
    // SAFETY: no memory is involved.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, what) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

pub fn sync(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is involved.
    done(unsafe { libc::fsync(file.as_raw_fd()) })
}

/// Blocks of the file system: size, all, free to everyone; files, free files; longest name; magic number.
pub fn file_system(file: BorrowedFd<'_>) -> io::Result<[u64; 7]> {
    // SAFETY: zero is a valid value of this plain structure.
    let mut raw: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `raw` is ours.
    done(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut raw) })?;
    let longest = raw.f_namelen as u64;
    Ok([raw.f_bsize as u64, raw.f_blocks, raw.f_bavail, raw.f_files, raw.f_ffree, longest, raw.f_type as u64])
}

/// Extended attributes (xattr(7)); ENODATA, EOPNOTSUPP.
pub fn get_attribute(file: BorrowedFd<'_>, key: &[u8]) -> io::Result<Vec<u8>> {
    let key = text(key)?;
    let mut value = vec![0u8; 64 << 10];
    // SAFETY: `value` has the size that is said.
    let count = unsafe { libc::fgetxattr(file.as_raw_fd(), key.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

/// `flags`: XATTR_CREATE, XATTR_REPLACE, 0.
pub fn set_attribute(file: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: i32) -> io::Result<()> {
    let key = text(key)?;
    // SAFETY: `value` has the size that is said.
    done(unsafe { libc::fsetxattr(file.as_raw_fd(), key.as_ptr(), value.as_ptr().cast(), value.len(), flags) })
}

pub fn attributes(file: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = vec![0u8; 64 << 10];
    // SAFETY: `names` has the size that is said.
    let count = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

pub fn remove_attribute(file: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let key = text(key)?;
    // SAFETY: `key` is a C string.
    done(unsafe { libc::fremovexattr(file.as_raw_fd(), key.as_ptr()) })
}

/// Owner and permissions of what was just made; the owner first, for a change of that takes set-id bits away.
pub fn settle(file: &impl AsFd, uid: u32, gid: u32, permissions: Option<u32>) -> io::Result<()> {
    set_owner(file.as_fd(), uid, gid)?;
    permissions.map_or(Ok(()), |permissions| set_permissions(file.as_fd(), permissions))
}
