//! Landlock (landlock(7)): paths that this process may open, fewer each time.

use crate::check_long;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const CREATE_RULESET: libc::c_long = 444;
const ADD_RULE: libc::c_long = 445;
const RESTRICT_SELF: libc::c_long = 446;
const VERSION: u32 = 1;
const PATH_BENEATH: u32 = 1;

const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const EXECUTE: u64 = 1 << 0;
const MAKE_BLOCK: u64 = 1 << 11;
const IOCTL_DEVICE: u64 = 1 << 15;
/// First of the rights that versions after the first brought: 2 REFER, 3 TRUNCATE, 5 IOCTL_DEV.
const RIGHTS: [u32; 7] = [13, 14, 15, 15, 16, 16, 16];
const TCP: u64 = 3;
/// Abstract unix sockets only of those who are restricted with us. Not signals: prctl(2) PR_SET_PDEATHSIG is one, too.
const SCOPES: u64 = 1;

/// What may be done below a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    /// All but running programs, and making or controlling devices.
    Change,
}

#[repr(C)]
struct Attributes {
    files: u64,
    network: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

/// The host's version. EOPNOTSUPP, ENOSYS: it has none.
pub fn version() -> io::Result<u32> {
    // SAFETY: asks for a number; no memory is involved.
    let version = check_long(unsafe { libc::syscall(CREATE_RULESET, 0, 0, VERSION) })?;
    Ok(version as u32)
}

fn rights(version: u32) -> u64 {
    let count = RIGHTS[(version.clamp(1, RIGHTS.len() as u32) - 1) as usize];
    (1 << count) - 1
}

/// From now on this thread opens, makes and removes only what lies below these directories. `network`: TCP may be used.
/// No new privileges must be set, or the caller be root.
pub fn restrict(beneath: &[(BorrowedFd<'_>, Access)], network: bool) -> io::Result<()> {
    let version = version()?;
    let all = rights(version);
    let ruleset = create(version, all, network)?;
    for (directory, access) in beneath {
        let allowed = match access {
            Access::Read => READ_FILE | READ_DIR,
            Access::Change => all & !(EXECUTE | MAKE_BLOCK | IOCTL_DEVICE),
        };
        let rule = Beneath { allowed, parent: directory.as_raw_fd() };
        // SAFETY: `rule` is the host's structure and only read.
        check_long(unsafe { libc::syscall(ADD_RULE, ruleset.as_raw_fd(), PATH_BENEATH, &raw const rule, 0) })?;
    }
    // SAFETY: no memory is involved.
    check_long(unsafe { libc::syscall(RESTRICT_SELF, ruleset.as_raw_fd(), 0) })?;
    Ok(())
}

fn create(version: u32, files: u64, network: bool) -> io::Result<OwnedFd> {
    let network = if version >= 4 && !network { TCP } else { 0 };
    let scoped = if version >= 6 { SCOPES } else { 0 };
    let attributes = Attributes { files, network, scoped };
    let size = match version {
        1..=3 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    // SAFETY: `attributes` has at least `size` bytes and is only read; the new descriptor is ours.
    unsafe {
        let fd = check_long(libc::syscall(CREATE_RULESET, &raw const attributes, size as usize, 0))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}
