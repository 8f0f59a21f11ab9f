//! tty_ioctl(4), pts(4): what job control says of a terminal; new pseudo terminals.

use crate::check;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

/// How a terminal stands to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Our process group is the one that may read it; also when it is not our controlling terminal.
    pub foreground: bool,
    /// Output from the background stops its writer (termios(3) TOSTOP).
    pub stops_output: bool,
}

/// The terminal at the descriptor of this number; None when there is none.
pub fn at(number: i32) -> Option<Terminal> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: `settings` is read only after the kernel filled it; the others take no pointers. A number that is not
    // open is an error like any other.
    unsafe {
        if libc::tcgetattr(number, settings.as_mut_ptr()) != 0 {
            return None;
        }
        let group = libc::tcgetpgrp(number);
        Some(Terminal {
            foreground: group < 0 || group == libc::getpgrp(),
            stops_output: settings.assume_init().c_lflag & libc::TOSTOP != 0,
        })
    }
}

/// What tcgetattr(3) says of a terminal.
pub struct Settings(libc::termios);

/// The settings of the terminal at the descriptor of this number; None when there is none.
pub fn settings(number: i32) -> Option<Settings> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: `settings` is read only after the kernel filled it.
    unsafe { (libc::tcgetattr(number, settings.as_mut_ptr()) == 0).then(|| Settings(settings.assume_init())) }
}

/// tcsetattr(3) TCSANOW, as far as the terminal is still there.
pub fn put_back(number: i32, settings: &Settings) {
    // SAFETY: `settings` is valid and only read.
    unsafe { libc::tcsetattr(number, libc::TCSANOW, &settings.0) };
}

/// A new pseudo terminal of the devpts instance that this mount namespace has: (master, terminal). ENODEV: what is at
/// /dev/ptmx is something else.
pub fn open_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let master = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/ptmx")?;
    if !is_multiplexer(&master)? {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads an int; TIOCGPTPEER takes open(2) flags, and the new descriptor is ours.
    unsafe {
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlocked))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let peer = check(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags))?;
        Ok((master.into(), OwnedFd::from_raw_fd(peer)))
    }
}

/// The nodes that make pseudo terminals are 5:2.
fn is_multiplexer(file: &File) -> io::Result<bool> {
    let found = file.metadata()?;
    Ok(found.file_type().is_char_device() && found.rdev() == libc::makedev(5, 2))
}

/// Makes a terminal the controlling one of this session and its standard streams, owned by `uid`.
pub fn control(terminal: &impl AsFd, uid: u32) -> io::Result<()> {
    let fd = terminal.as_fd().as_raw_fd();
    // SAFETY: no pointers; the descriptor is open.
    unsafe {
        check(libc::fchown(fd, uid, u32::MAX))?;
        check(libc::ioctl(fd, libc::TIOCSCTTY, 0))?;
    }
    (0..3).try_for_each(|standard| crate::fd::redirect(terminal, standard))
}
