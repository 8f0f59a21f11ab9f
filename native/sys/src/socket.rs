//! unix(7) sockets: packets with descriptors.

use crate::check;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The most descriptors that one packet may carry (the kernel's SCM_MAX_FD).
pub const MAX_FDS: usize = 253;
const SPACE: usize = 24 + MAX_FDS * 4 + 64;

#[repr(align(8))]
struct Control([u8; SPACE]);

/// A listening SOCK_SEQPACKET socket at `path` (107 bytes at most), not blocking.
pub fn listen_seqpacket(path: &Path) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: sockaddr_un is plain data for which all zeroes is valid; the path is checked to fit with its NUL; the new
    // descriptor is ours.
    unsafe {
        let fd = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_UNIX, kind, 0))?);
        let mut address: libc::sockaddr_un = zeroed();
        if bytes.len() >= address.sun_path.len() {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        check(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length))?;
        check(libc::listen(fd.as_raw_fd(), 128))?;
        Ok(fd)
    }
}

/// socketpair(2) of SOCK_SEQPACKET, blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for the two descriptors, which are ours on success.
    unsafe {
        check(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// poll(2): until there is something to receive, or the peer has gone.
pub fn wait_readable(fd: &impl AsFd) -> io::Result<()> {
    let mut one = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one structure, which is ours.
        match check(unsafe { libc::poll(&mut one, 1, -1) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done.map(drop),
        }
    }
}

/// accept4(2): the new connection does not block.
pub fn accept(listener: &impl AsFd) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: null address and length are allowed; the new descriptor is ours.
    unsafe {
        let fd = libc::accept4(listener.as_fd().as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags);
        Ok(OwnedFd::from_raw_fd(check(fd)?))
    }
}

/// The uid of the peer (unix(7) SO_PEERCRED).
pub fn peer_uid(fd: &impl AsFd) -> io::Result<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: buffer and length describe `credentials`.
    unsafe {
        let buffer = (&raw mut credentials).cast();
        check(libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, buffer, &mut length))?;
    }
    Ok(credentials.uid)
}

/// What `receive` found.
pub struct Received {
    pub length: usize,
    pub fds: Vec<OwnedFd>,
    /// The packet was longer than the buffer.
    pub truncated: bool,
    /// Descriptors were lost: too many of them, or none free in this process (EMFILE).
    pub fds_lost: bool,
}

/// recvmsg(2) without waiting. length 0 without descriptors: the peer has gone (or sent an empty packet).
pub fn receive(fd: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = Control([0; SPACE]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut fds = Vec::new();
    // SAFETY: msghdr is plain data; its pointers describe `part` and `control`, which outlive the call. The control
    // messages are walked with the C library's macros, and every descriptor in them becomes ours exactly once.
    unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = SPACE as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        let length = libc::recvmsg(fd.as_fd().as_raw_fd(), &mut message, flags);
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for index in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
        Ok(Received {
            length: length as usize,
            fds,
            truncated: message.msg_flags & libc::MSG_TRUNC != 0,
            fds_lost: message.msg_flags & libc::MSG_CTRUNC != 0,
        })
    }
}

/// sendmsg(2) of one packet with descriptors, without waiting and without SIGPIPE.
pub fn send(fd: &impl AsFd, data: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let mut control = Control([0; SPACE]);
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: as in `receive`; `control` has room for MAX_FDS descriptors, and the data is only read.
    unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        if !fds.is_empty() {
            let bytes = std::mem::size_of_val(fds) as u32;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
            let room = libc::CMSG_DATA(header).cast::<RawFd>();
            for (index, fd) in fds.iter().enumerate() {
                room.add(index).write_unaligned(fd.as_raw_fd());
            }
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        if libc::sendmsg(fd.as_fd().as_raw_fd(), &message, flags) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// recv(2) on a stream socket that may be shared with others: never waits, whatever its flags.
pub fn receive_bytes(fd: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buffer`.
    let count =
        unsafe { libc::recv(fd.as_fd().as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// send(2) on a stream socket that may be shared with others: never waits, no SIGPIPE.
pub fn send_bytes(fd: &impl AsFd, data: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length describe `data`.
    let count = unsafe { libc::send(fd.as_fd().as_raw_fd(), data.as_ptr().cast(), data.len(), flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// A listening stream socket of vsock(7), for any caller.
pub fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: sockaddr_vm is plain data for which all zeroes is valid; its size is passed; the new descriptor is ours.
    unsafe {
        let fd = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0))?);
        let mut address: libc::sockaddr_vm = zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_port = port;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        check(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length))?;
        check(libc::listen(fd.as_raw_fd(), 16))?;
        Ok(fd)
    }
}

/// accept4(2): waits, and so does the new connection.
pub fn accept_blocking(listener: &impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: null address and length are allowed; the new descriptor is ours.
    unsafe {
        let fd = listener.as_fd().as_raw_fd();
        let fd = libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC);
        Ok(OwnedFd::from_raw_fd(check(fd)?))
    }
}
