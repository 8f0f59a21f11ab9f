//! What only the first process of a machine does.

use crate::check;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

// random(4): _IOW('R', 3, int[2]) and _IO('R', 7)
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// random(4) RNDADDENTROPY, every bit of `data` counted, and RNDRESEEDCRNG: the kernel's generator uses it at once.
pub fn add_entropy(data: &[u8]) -> io::Result<()> {
    /// struct rand_pool_info with as many bytes as one call takes here.
    #[repr(C)]
    struct Pool {
        entropy_bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; 512],
    }
    let device = File::options().write(true).open("/dev/urandom")?;
    for part in data.chunks(512) {
        let mut pool = Pool { entropy_bits: part.len() as i32 * 8, size: part.len() as i32, bytes: [0; 512] };
        pool.bytes[..part.len()].copy_from_slice(part);
        // SAFETY: `pool` is the struct that the request takes, its size tells how many of its bytes are read.
        check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &pool) })?;
    }
    // SAFETY: no pointers.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}

/// mlockall(2), MCL_ONFAULT: what of this program's memory was used once stays in memory.
pub fn keep_in_memory() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) })?;
    Ok(())
}

/// mallopt(3): all threads allocate from one arena. For a program whose threads mostly wait.
pub fn share_arena() {
    // SAFETY: no pointers; called before there are threads, or it applies to those to come.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
