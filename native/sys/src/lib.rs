//! Thin, safe wrappers over the Linux system calls that drupe's native parts use: one function per call, named as in
//! its man page, errors as `io::Error`. This is the only crate that may contain `unsafe`.
//!
//! `fork_child`, `setns` and `in_netns`, and what uses them, are for a single-threaded process.

pub mod cgroup;
pub mod credentials;
pub mod daemon;
pub mod epoll;
pub mod fd;
pub mod landlock;
pub mod machine;
pub mod mount;
pub mod net;
pub mod process;
pub mod socket;
pub mod terminal;

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Turns the -1 of a system call into the error in errno.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(crate) fn check_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A C string of a path; EINVAL when it holds a NUL byte.
pub(crate) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

pub(crate) fn c_str(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}
