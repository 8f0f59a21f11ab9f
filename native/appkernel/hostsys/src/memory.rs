//! Memory of this process and files in memory.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use crate::files;
use crate::notify::own;

/// A file in memory (memfd_create(2)), of this size.
pub fn memfd(name: &str, size_bytes: u64) -> io::Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: `name` is a C string.
    let fd = own(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    let size = libc::off_t::try_from(size_bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: no memory is involved.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// The vDSO's address, and the range that it and its data pages take in this process; zeros where there is none.
/// Read once: later there may be no /proc to read it from.
pub fn vdso() -> io::Result<(u64, u64, u64)> {
    let pieces = vdso_pieces()?;
    let Some(&(address, _)) = pieces.first() else { return Ok((0, 0, 0)) };
    let all = || pieces.iter();
    Ok((address, all().map(|r| r.0).min().unwrap_or(0), all().map(|r| r.1).max().unwrap_or(0)))
}

/// The parts of it, each mapped by itself: the code first, then its data.
pub fn vdso_pieces() -> io::Result<&'static [(u64, u64)]> {
    static KNOWN: OnceLock<Vec<(u64, u64)>> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known);
    }
    let found = find_vdso()?;
    Ok(KNOWN.get_or_init(|| found))
}

/// The vDSO's code, as it lies in this process.
pub fn vdso_code() -> &'static [u8] {
    let Ok(Some(&(from, to))) = vdso_pieces().map(|pieces| pieces.first()) else { return &[] };
    // SAFETY: the host has mapped it for as long as the process lives, and never changes it.
    unsafe { std::slice::from_raw_parts(from as *const u8, (to - from) as usize) }
}

fn find_vdso() -> io::Result<Vec<(u64, u64)>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let range = |line: &str| {
        let (from, rest) = line.split_once('-')?;
        let (to, _) = rest.split_once(' ')?;
        Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
    };
    let of = |name: &str| maps.lines().filter(|l| l.contains(name)).filter_map(range).collect::<Vec<_>>();
    let (mut pieces, data) = (of("[vdso]"), of("[vvar"));
    if !pieces.is_empty() {
        pieces.extend(data);
    }
    Ok(pieces)
}

/// Whether programs may read and write segment bases themselves (HWCAP2_FSGSBASE).
pub fn has_fsgsbase() -> bool {
    // SAFETY: reads a word that the host gave this process.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & 2 != 0 }
}

unsafe extern "C" {
    static __rseq_offset: isize;
    static __rseq_size: u32;
}

/// Undo the library's registration of restartable sequences (rseq(2)): the host writes there at each switch.
pub(crate) fn unregister_rseq() {
    const UNREGISTER: u32 = 1;
    const SIGNATURE: u32 = 0x5305_3053;
    // SAFETY: the library's own description of what it registered for this thread; the call changes no memory of ours.
    unsafe {
        if __rseq_size == 0 {
            return;
        }
        let thread: isize;
        std::arch::asm!("mov {}, fs:0", out(reg) thread, options(nostack, readonly));
        libc::syscall(libc::SYS_rseq, thread + __rseq_offset, 32u32, UNREGISTER, SIGNATURE);
    }
}

/// Lend a descriptor that somebody holds by its number, for the time of one call.
pub fn with_fd<T>(fd: RawFd, call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: used within the call alone; a number that is closed by then gives EBADF, as any wrong number does.
    call(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// State of a thread, as a letter (proc_pid_stat(5)); None where that cannot be read.
pub fn thread_state(proc: BorrowedFd<'_>, process: i32, thread: i32) -> Option<u8> {
    let path = format!("{process}/task/{thread}/stat");
    let fd = files::open(proc, path.as_bytes(), libc::O_RDONLY).ok()?;
    let text = files::text(fd.as_fd());
    text.rsplit_once(") ")?.1.bytes().next()
}

/// Processor time that a thread has had, in nanoseconds (proc(5), schedstat); None where that cannot be read.
pub fn thread_cpu_ns(proc: BorrowedFd<'_>, process: i32, thread: i32) -> Option<u64> {
    let path = format!("{process}/task/{thread}/schedstat");
    let fd = files::open(proc, path.as_bytes(), libc::O_RDONLY).ok()?;
    files::text(fd.as_fd()).split(' ').next()?.parse().ok()
}

/// What a process has in memory, range by range (proc_pid_smaps(5)); what can be read of it.
pub fn report(proc: BorrowedFd<'_>, process: i32) -> String {
    const LONGEST_BYTES: usize = 32 << 20;
    let path = format!("{process}/smaps");
    let Ok(fd) = files::open(proc, path.as_bytes(), libc::O_RDONLY) else { return String::new() };
    let (mut bytes, mut part) = (Vec::new(), vec![0; 64 << 10]);
    while bytes.len() < LONGEST_BYTES {
        match files::read_at(fd.as_fd(), bytes.len() as u64, &mut part) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The most memory that a process's pages have taken (proc_pid_status(5)); 0 where that cannot be read.
pub fn peak_bytes(proc: BorrowedFd<'_>, process: i32) -> u64 {
    let path = format!("{process}/status");
    let Ok(fd) = files::open(proc, path.as_bytes(), libc::O_RDONLY) else { return 0 };
    let text = files::text(fd.as_fd());
    let kib =
        text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// A process's minor and major page faults (proc_pid_stat(5)); zeros where they cannot be read.
pub fn faults(proc: BorrowedFd<'_>, process: i32) -> (u64, u64) {
    const MINOR: usize = 7; // after the name
    let path = format!("{process}/stat");
    let Ok(fd) = files::open(proc, path.as_bytes(), libc::O_RDONLY) else { return (0, 0) };
    let text = files::text(fd.as_fd());
    let words = text.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let mut numbers = words.skip(MINOR).step_by(2).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Memory that a process's pages take, from its directory in a /proc (proc_pid_statm(5)); 0 where that cannot be read.
pub fn resident_bytes(proc: BorrowedFd<'_>, process: i32) -> u64 {
    let path = format!("{process}/statm");
    let Ok(fd) = files::open(proc, path.as_bytes(), libc::O_RDONLY) else { return 0 };
    let text = files::text(fd.as_fd());
    text.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) * 4096
}
