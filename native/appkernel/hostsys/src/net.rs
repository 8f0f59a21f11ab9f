//! Sockets of the host, in the network namespace that this process is in. Addresses, options and control messages are
//! bytes of ours; no pointer of a guest's comes here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::notify::own;

const ADDRESS_BYTES: usize = 128;
const CONTROL_BYTES: usize = 4096;

/// What recvmsg(2) has given beside the bytes.
#[derive(Debug, Default)]
pub struct Received {
    pub count: usize,
    /// struct sockaddr; empty: none.
    pub from: Vec<u8>,
    pub control: Vec<u8>,
    pub flags: u32,
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// socket(2), never waiting, closed at exec.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    own(unsafe { libc::socket(domain, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol) })
}

pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    // SAFETY: `address` has the size that is said.
    let done = unsafe { libc::bind(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) };
    checked(done as isize).map(drop)
}

pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    // SAFETY: `address` has the size that is said.
    let done = unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr().cast(), address.len() as libc::socklen_t) };
    checked(done as isize).map(drop)
}

pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    checked(unsafe { libc::listen(fd.as_raw_fd(), backlog) } as isize).map(drop)
}

/// accept4(2): the connection and the peer's address.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, Vec<u8>)> {
    let (mut address, mut size) = (vec![0u8; ADDRESS_BYTES], ADDRESS_BYTES as libc::socklen_t);
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: `address` has the size that is said.
    let new = own(unsafe { libc::accept4(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut size, flags) })?;
    address.truncate(size as usize);
    Ok((new, address))
}

pub fn shutdown(fd: BorrowedFd<'_>, how: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    checked(unsafe { libc::shutdown(fd.as_raw_fd(), how) } as isize).map(drop)
}

type NameCall = unsafe extern "C" fn(RawFd, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn name_by(call: NameCall, fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let (mut address, mut size) = (vec![0u8; ADDRESS_BYTES], ADDRESS_BYTES as libc::socklen_t);
    // SAFETY: `address` has the size that is said.
    checked(unsafe { call(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut size) } as isize)?;
    address.truncate(size as usize);
    Ok(address)
}

pub fn name(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    name_by(libc::getsockname, fd)
}

pub fn peer_name(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    name_by(libc::getpeername, fd)
}

/// getsockopt(2) into at most `room` bytes. Only options whose values hold no pointers.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32, room: usize) -> io::Result<Vec<u8>> {
    let (mut value, mut size) = (vec![0u8; room], room as libc::socklen_t);
    // SAFETY: `value` has the size that is said.
    let done = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut size) };
    checked(done as isize)?;
    value.truncate(size as usize);
    Ok(value)
}

/// setsockopt(2). Only options whose values hold no pointers.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let size = value.len() as libc::socklen_t;
    // SAFETY: `value` has the size that is said.
    checked(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), size) } as isize).map(drop)
}

fn header(data: &mut libc::iovec, address: &mut [u8], control: &mut [u8]) -> libc::msghdr {
    // SAFETY: zero is a valid value of this plain structure.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    if !address.is_empty() {
        (header.msg_name, header.msg_namelen) = (address.as_mut_ptr().cast(), address.len() as libc::socklen_t);
    }
    (header.msg_iov, header.msg_iovlen) = (std::ptr::from_mut(data), 1);
    if !control.is_empty() {
        (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), control.len());
    }
    header
}

/// sendmsg(2), without SIGPIPE. Empty: no address, no control messages.
pub fn send(fd: BorrowedFd<'_>, data: &[u8], to: &[u8], control: &[u8], flags: i32) -> io::Result<usize> {
    let mut iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let (mut to, mut control) = (to.to_vec(), control.to_vec());
    let header = header(&mut iov, &mut to, &mut control);
    let flags = flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the header points to what lives until the call has returned; `data` is only read.
    checked(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, flags) })
}

/// recvmsg(2). `count` is what the host says: with MSG_TRUNC it may be more than `out` holds.
pub fn receive(fd: BorrowedFd<'_>, out: &mut [u8], flags: i32) -> io::Result<Received> {
    let mut iov = libc::iovec { iov_base: out.as_mut_ptr().cast(), iov_len: out.len() };
    let (mut from, mut control) = (vec![0u8; ADDRESS_BYTES], vec![0u8; CONTROL_BYTES]);
    let mut header = header(&mut iov, &mut from, &mut control);
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to what lives until the call has returned.
    let count = checked(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) })?;
    from.truncate(header.msg_namelen as usize);
    control.truncate(header.msg_controllen);
    Ok(Received { count, from, control, flags: header.msg_flags as u32 })
}

/// ioctl(2) whose structure is flat and as long as `data`, which is at least 40 bytes.
fn flat_ioctl(fd: BorrowedFd<'_>, request: u32, data: &mut [u8]) -> io::Result<()> {
    // SAFETY: callers below pass requests whose structures hold no pointers and fit.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(request), data.as_mut_ptr()) } as isize).map(drop)
}

/// Requests of netdevice(7) that only read, with struct ifreq, which holds no pointers for these.
pub const INTERFACE_REQUESTS: [u32; 11] =
    [0x8910, 0x8913, 0x8915, 0x8917, 0x8919, 0x891b, 0x891d, 0x8921, 0x8927, 0x8933, 0x8942];
const IFREQ_BYTES: usize = 40;

/// One of `INTERFACE_REQUESTS`. ENODEV.
pub fn interface(fd: BorrowedFd<'_>, request: u32, ifreq: &mut [u8; IFREQ_BYTES]) -> io::Result<()> {
    if !INTERFACE_REQUESTS.contains(&request) {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    flat_ioctl(fd, request, ifreq)
}

/// FIONREAD, SIOCOUTQ or SIOCATMARK.
pub fn count(fd: BorrowedFd<'_>, request: u32) -> io::Result<i32> {
    if ![0x541b, 0x5411, 0x8905].contains(&request) {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    let mut data = [0u8; IFREQ_BYTES];
    flat_ioctl(fd, request, &mut data)?;
    Ok(i32::from_ne_bytes([data[0], data[1], data[2], data[3]]))
}

/// SIOCGIFCONF: as many struct ifreq as there are, at most 256.
pub fn interfaces(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut list = vec![0u8; 256 * IFREQ_BYTES];
    let mut ask = libc::ifconf {
        ifc_len: list.len() as i32,
        ifc_ifcu: libc::__c_anonymous_ifc_ifcu { ifcu_buf: list.as_mut_ptr().cast() },
    };
    // SAFETY: `ask` says the size of `list`.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFCONF, &raw mut ask) } as isize)?;
    list.truncate(ask.ifc_len.max(0) as usize);
    Ok(list)
}
