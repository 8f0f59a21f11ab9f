//! Clocks, randomness, the auxiliary vector.

use std::io;

pub const REALTIME: i32 = libc::CLOCK_REALTIME;
pub const MONOTONIC: i32 = libc::CLOCK_MONOTONIC;
pub const BOOTTIME: i32 = libc::CLOCK_BOOTTIME;
pub const REALTIME_COARSE: i32 = libc::CLOCK_REALTIME_COARSE;
pub const MONOTONIC_COARSE: i32 = libc::CLOCK_MONOTONIC_COARSE;

/// Seconds and nanoseconds of a clock; zero for one that is not there.
pub fn now(clock: i32) -> (i64, u32) {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    (time.tv_sec, time.tv_nsec as u32)
}

/// Processor time that a process has had, in nanoseconds.
pub fn cpu_ns(process: i32) -> u64 {
    const SCHEDULER: i32 = 2;
    let (seconds, nanoseconds) = now(!process << 3 | SCHEDULER);
    seconds as u64 * 1_000_000_000 + u64::from(nanoseconds)
}

pub fn random(out: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < out.len() {
        // SAFETY: what is left of `out`.
        let count = unsafe { libc::getrandom(out[filled..].as_mut_ptr().cast(), out.len() - filled, 0) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        filled += count as usize;
    }
    Ok(())
}

/// A word of this process's auxiliary vector (getauxval(3)).
pub fn auxiliary(key: u64) -> u64 {
    // SAFETY: reads the library's copy.
    unsafe { libc::getauxval(key) }
}
