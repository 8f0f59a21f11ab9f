//! Memory of stub processes, read and written by process_vm_readv(2): the host checks every address.

use std::io;

/// Bytes copied from `address` on; fewer than asked when the memory ends. EFAULT when there is none.
pub fn read(process: i32, address: u64, out: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: out.len() };
    // SAFETY: `local` is `out`; `remote` is another process's, which the host checks.
    transferred(unsafe { libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0) })
}

/// Bytes copied to `address` on; fewer when the memory ends.
pub fn write(process: i32, address: u64, data: &[u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: data.len() };
    // SAFETY: `local` is only read; `remote` is another process's, which the host checks.
    transferred(unsafe { libc::process_vm_writev(process, &raw const local, 1, &raw const remote, 1, 0) })
}

fn transferred(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
