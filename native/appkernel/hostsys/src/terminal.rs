//! The terminal that the program itself was started on (termios(3), ioctl_tty(2)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::notify::own;

/// A terminal that passes everything on as it comes, until this is dropped.
pub struct Raw {
    fd: RawFd,
    before: libc::termios,
}

impl Raw {
    /// None: the descriptor is no terminal.
    pub fn new(fd: RawFd) -> Option<Raw> {
        let mut before = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: `before` is read only after the host has filled it; `raw` is ours.
        unsafe {
            if libc::tcgetattr(fd, before.as_mut_ptr()) != 0 {
                return None;
            }
            let before = before.assume_init();
            let mut raw = before;
            libc::cfmakeraw(&raw mut raw);
            (libc::tcsetattr(fd, libc::TCSADRAIN, &raw const raw) == 0).then_some(Raw { fd, before })
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: only read.
        unsafe { libc::tcsetattr(self.fd, libc::TCSADRAIN, &raw const self.before) };
    }
}

/// Rows and columns of a terminal.
pub fn window_size(fd: RawFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is ours.
    let done = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
    (done == 0).then_some((size.ws_row, size.ws_col))
}

/// Becomes readable when the terminal's size has changed (SIGWINCH as a signalfd(2)).
pub fn resizes() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset fills the set before it is read.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGWINCH);
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        own(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// Take what a descriptor of `resizes` has to tell. True: there was something.
pub fn take_resize(fd: BorrowedFd<'_>) -> bool {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: `info` has the size that is said, and is not looked at.
    unsafe { libc::read(fd.as_raw_fd(), info.as_mut_ptr().cast(), size) > 0 }
}
