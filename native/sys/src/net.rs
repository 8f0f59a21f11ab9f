//! What is done inside a network or UTS namespace.

use crate::mount::setns;
use crate::{c_str, check};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// socket(2) with SOCK_CLOEXEC.
pub fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the new descriptor is ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol))?)) }
}

/// Sets IFF_UP on `lo` of the current network namespace (netdevice(7), SIOCSIFFLAGS).
pub fn loopback_up() -> io::Result<()> {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: ifreq is plain data for which all zeroes is valid; the name is NUL-terminated by the zeroes; the kernel
    // reads and writes no more than one ifreq.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request))?;
    }
    Ok(())
}

/// sethostname(2).
pub fn sethostname(name: &str) -> io::Result<()> {
    let text = c_str(name)?;
    // SAFETY: pointer and length describe the same string.
    check(unsafe { libc::sethostname(text.as_ptr(), name.len()) })?;
    Ok(())
}

/// Runs `work` with this (only) thread inside the network namespace at `path`. The process aborts when the way back
/// fails: to go on in somebody else's network would be worse.
pub fn in_netns<T>(path: &Path, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = File::open("/proc/self/ns/net")?;
    setns(&File::open(path)?, libc::CLONE_NEWNET)?;
    let result = work();
    if setns(&home, libc::CLONE_NEWNET).is_err() {
        std::process::abort();
    }
    result
}
