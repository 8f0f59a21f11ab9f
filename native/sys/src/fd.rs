//! Pipes, flags of descriptors, locks, terminals.

use crate::check;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// pipe2(2) with O_CLOEXEC: (read end, write end).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: `fds` has room for the two descriptors, which are ours on success.
    unsafe {
        check(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// fcntl(2) F_SETFL O_NONBLOCK. It belongs to the open file description: every duplicate is affected.
pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: no pointers; the descriptor is open.
    unsafe {
        let flags = check(libc::fcntl(fd, libc::F_GETFL))?;
        check(libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK))?;
    }
    Ok(())
}

/// fcntl(2) F_DUPFD_CLOEXEC: a duplicate numbered `minimum` or higher.
pub fn duplicate_above(fd: &impl AsFd, minimum: i32) -> io::Result<OwnedFd> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: no pointers; the descriptor is open, the new one is ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, minimum))?)) }
}

/// flock(2) LOCK_EX | LOCK_NB; WouldBlock when another process holds it.
pub fn flock(file: &File) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })?;
    Ok(())
}

/// ioctl_tty(2) TIOCSWINSZ on a pty master; the foreground process group gets SIGWINCH.
pub fn set_window_size(fd: &impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is valid and only read.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) })?;
    Ok(())
}

/// dup2(2) onto standard input, output or error; for daemonizing. The result is inherited by children.
pub fn redirect(fd: &impl AsFd, standard: i32) -> io::Result<()> {
    assert!((0..3).contains(&standard));
    // SAFETY: no pointers; descriptors 0..2 are never owned by an OwnedFd of ours.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), standard) })?;
    Ok(())
}

/// dup2(2): a duplicate of this number, inherited by children and owned by nobody here. What had the number is closed:
/// it must be none of ours.
pub fn give_number(fd: &impl AsFd, number: i32) -> io::Result<()> {
    // SAFETY: no pointers; the caller says that the number has no owner.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) })?;
    Ok(())
}

/// dup3(2) with O_CLOEXEC: `target` becomes another descriptor of what `source` is.
pub fn replace(source: &impl AsFd, target: &impl AsFd) -> io::Result<()> {
    let (source, target) = (source.as_fd().as_raw_fd(), target.as_fd().as_raw_fd());
    // SAFETY: no pointers; both descriptors are open, and `target` stays owned by its owner.
    check(unsafe { libc::dup3(source, target, libc::O_CLOEXEC) })?;
    Ok(())
}

/// Whether the descriptor of this number is open and survives execve(2) (fcntl(2) F_GETFD without FD_CLOEXEC).
pub fn is_inherited(number: i32) -> bool {
    // SAFETY: any number may be asked for.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// A duplicate of the descriptor of this number, which whoever started us opened for us. EBADF: there is none.
pub fn duplicate_number(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: any number may be asked for; the new descriptor is ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3))?)) }
}

/// memfd_create(2) with this content, as a number of `minimum` or higher that children inherit and nobody here owns.
pub fn inherited_text(content: &[u8], minimum: i32) -> io::Result<i32> {
    // SAFETY: the name is NUL-terminated; the new descriptor is ours.
    let fd = unsafe { OwnedFd::from_raw_fd(check(libc::memfd_create(c"drupe".as_ptr(), libc::MFD_CLOEXEC))?) };
    File::from(fd.try_clone()?).write_all(content)?;
    // SAFETY: no pointers; the descriptor is open.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD, minimum) })
}

/// Whether the descriptor of this number is the kernel's null device (null(4)).
pub fn is_null(number: i32) -> bool {
    let mut found = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `found` has room for the answer, and is read only when there is one.
    unsafe {
        libc::fstat(number, found.as_mut_ptr()) == 0 && {
            let found = found.assume_init();
            found.st_mode & libc::S_IFMT == libc::S_IFCHR && found.st_rdev == libc::makedev(1, 3)
        }
    }
}

/// A null device of our own: who owns it, and what its mode is, is no matter of the host's /dev/null.
pub fn own_null() -> io::Result<OwnedFd> {
    let memory = crate::mount::detached_memory()?;
    let (directory, mode) = (memory.as_raw_fd(), libc::S_IFCHR | 0o666);
    // SAFETY: the name is NUL-terminated and only read; the new descriptor is ours.
    unsafe {
        check(libc::mknodat(directory, c"null".as_ptr(), mode, libc::makedev(1, 3)))?;
        let flags = libc::O_RDWR | libc::O_CLOEXEC;
        let null = OwnedFd::from_raw_fd(check(libc::openat(directory, c"null".as_ptr(), flags))?);
        check(libc::fchmod(null.as_raw_fd(), 0o666))?; // whatever the umask is
        Ok(null)
    }
}

/// Closes 0, 1 and 2. Only for a child that writes and reads nothing any more.
pub fn close_standard() {
    // SAFETY: no pointers; nothing of ours is behind these numbers.
    unsafe { libc::syscall(libc::SYS_close_range, 0, 2, 0) };
}
