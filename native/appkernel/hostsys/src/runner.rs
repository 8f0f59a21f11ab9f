//! Threads of this process that run a machine's processors, and how they are taken out of that.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::kvm::Kick;
use crate::{notify, poll};

/// It has no other meaning in this process.
const SIGNAL: libc::c_int = libc::SIGUSR2;

extern "C" fn nothing(_: libc::c_int) {}

/// Have the signal interrupt calls, and do nothing else.
pub fn prepare() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is one without flags; the handler does nothing.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The calling thread's number.
pub fn own_number() -> i32 {
    // SAFETY: no memory is involved.
    unsafe { libc::gettid() }
}

/// Take a processor out of its guest; `thread` runs it. It stays out until `kick` is unset.
pub fn take_out(kick: &Kick, thread: i32) {
    kick.set(true);
    poll::signal_thread(std::process::id() as i32, thread, SIGNAL);
}

/// Processor time that the calling thread has had, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Wakes whoever waits for a descriptor (eventfd(2)).
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Bell> {
        // SAFETY: no memory is involved.
        Ok(Bell(notify::own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?))
    }

    pub fn raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    pub fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of ours. A counter that is full is rung enough.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    pub fn hush(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes of ours.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}
