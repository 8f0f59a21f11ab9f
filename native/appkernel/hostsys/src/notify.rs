//! Seccomp's user notifications: how a stub's calls reach the kernel (seccomp_unotify(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A call that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Notification {
    pub id: u64,
    /// The thread that calls, as the kernel's process numbers it.
    pub thread: i32,
    pub number: u32,
    pub args: [u64; 6],
}

/// The receiving end.
pub struct Listener(OwnedFd);

const SYNC_WAKE_UP: libc::c_ulong = 1;
const IOWR: libc::c_ulong = 3;
const IOW: libc::c_ulong = 1;

const fn request(direction: libc::c_ulong, number: libc::c_ulong, size: usize) -> libc::c_ulong {
    direction << 30 | (size as libc::c_ulong) << 16 | (b'!' as libc::c_ulong) << 8 | number
}

pub(crate) const RECV: libc::c_ulong = request(IOWR, 0, size_of::<libc::seccomp_notif>());
pub(crate) const SEND: libc::c_ulong = request(IOWR, 1, size_of::<libc::seccomp_notif_resp>());
pub(crate) const ADDFD: libc::c_ulong = request(IOW, 3, size_of::<libc::seccomp_notif_addfd>());
pub(crate) const SET_FLAGS: libc::c_ulong = request(IOW, 4, 8);
const FLAG_CONTINUE: u32 = 1;
const ADDFD_SETFD: u32 = 1;

fn ioctl<T>(fd: RawFd, request: libc::c_ulong, argument: *mut T) -> io::Result<libc::c_int> {
    // SAFETY: the request's structure is what `argument` points to, by the constants above.
    let done = unsafe { libc::ioctl(fd, request, argument) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(done)
    }
}

impl Listener {
    pub fn new(fd: OwnedFd) -> Listener {
        let listener = Listener(fd);
        listener.wake_here(true);
        listener
    }

    /// Whether an answered thread is woken on this processor, because this thread will sleep then. Older hosts cannot.
    pub fn wake_here(&self, here: bool) {
        let flags = if here { SYNC_WAKE_UP } else { 0 };
        // SAFETY: a flag by value, no memory.
        unsafe { libc::ioctl(self.0.as_raw_fd(), SET_FLAGS, flags) };
    }

    /// Wait for the next call. None: no stub process is left, or a signal came.
    pub fn receive(&self) -> io::Result<Option<Notification>> {
        // SAFETY: zero is a valid value of this plain structure, and what the call wants.
        let mut raw: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        match ioctl(self.0.as_raw_fd(), RECV, &raw mut raw) {
            Ok(_) => Ok(Some(Notification {
                id: raw.id,
                thread: raw.pid as i32,
                number: raw.data.nr as u32,
                args: raw.data.args,
            })),
            // The caller was killed meanwhile, or a signal came.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Answer with a value. False: the caller is gone, or was taken out of the call by the host and makes it again.
    pub fn answer(&self, id: u64, value: i64) -> bool {
        self.send(libc::seccomp_notif_resp { id, val: value, error: 0, flags: 0 })
    }

    pub fn refuse(&self, id: u64, errno: i32) -> bool {
        self.send(libc::seccomp_notif_resp { id, val: 0, error: -errno, flags: 0 })
    }

    /// Let the host do the call. Its arguments are in registers, which the caller, asleep, cannot change.
    pub fn let_pass(&self, id: u64) -> bool {
        self.send(libc::seccomp_notif_resp { id, val: 0, error: 0, flags: FLAG_CONTINUE })
    }

    fn send(&self, mut response: libc::seccomp_notif_resp) -> bool {
        ioctl(self.0.as_raw_fd(), SEND, &raw mut response).is_ok()
    }

    /// Give the caller a descriptor: number `at`, replacing what was there, or any if None. Returns its number.
    pub fn add_fd(&self, id: u64, fd: BorrowedFd<'_>, at: Option<u32>) -> io::Result<i32> {
        let mut request = libc::seccomp_notif_addfd {
            id,
            flags: if at.is_some() { ADDFD_SETFD } else { 0 },
            srcfd: fd.as_raw_fd() as u32,
            newfd: at.unwrap_or(0),
            newfd_flags: 0,
        };
        ioctl(self.0.as_raw_fd(), ADDFD, &raw mut request)
    }

    pub fn raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Take ownership of a descriptor that a system call has just returned.
pub(crate) fn own(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
