//! tty_ioctl(4): what job control says of a terminal.

use std::mem::MaybeUninit;

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
