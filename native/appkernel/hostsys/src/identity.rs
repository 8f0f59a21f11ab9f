//! Who the stubs are: a user of their own in a user namespace that belongs to the kernel's user. So the kernel, without a
//! capability, may read their memory and end them, and they are nobody to it, nor to anybody else on the host.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use drupe_sys::credentials::{self, Capabilities};
use drupe_sys::{cgroup, fd, process, socket};

/// The namespaces of stubs: of PIDs and of users. A process that does nothing holds them, and is their first: when it or the
/// kernel's process ends, all stubs end.
#[derive(Debug)]
pub struct Identity {
    namespace: OwnedFd,
    oom_score: File,
    /// The holder waits there for its cgroup.
    holder: OwnedFd,
    /// /proc of that PID namespace, with its processes only.
    pub proc: OwnedFd,
}

/// Stubs' user and group inside of their namespace: not 0, which means more than others.
const INSIDE: u32 = 1;
/// Of the kernel's process and the holder; one that waits for its pod has another (`kernel/src/serve.rs`).
pub const NAME: &str = "drupe-appkernel";
const CAP_SYS_ADMIN: u64 = 1 << 21;

impl Identity {
    /// `kernel` is the user that the kernel's process will be, stubs are the next one. From now on children of this process are
    /// in the PID namespace. Reads /proc, and wants to be root.
    pub fn new(kernel: u32) -> io::Result<Identity> {
        let oom_score = File::options().read(true).write(true).open("/proc/self/oom_score_adj")?;
        let (hears, says) = fd::pipe().map(|(r, w)| (File::from(r), File::from(w)))?;
        let (waits, goes) = fd::pipe()?;
        let (ours, theirs) = socket::pair()?;
        let mut kept = Some((hears, goes, ours));
        drupe_sys::mount::unshare(libc::CLONE_NEWPID)?;
        let holder = process::fork_child(|| {
            drop(kept.take()); // its own copies: else it would never hear of this process's end
            hold(kernel, says.try_clone(), File::from(waits), &theirs)
        })?;
        drop((says, theirs));
        let Some((mut hears, goes, ours)) = kept else { return Err(io::Error::from_raw_os_error(libc::EPERM)) };
        let mut number = [0; 4];
        hears.read_exact(&mut number).map_err(|_| io::Error::from_raw_os_error(libc::EPERM))?;
        let proc = take_fd(&process::pidfd_open(holder)?, i32::from_ne_bytes(number))?;
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{holder}/{map}"), format!("{INSIDE} {} 1", kernel + 1))?;
        }
        let namespace = File::open(format!("/proc/{holder}/ns/user"))?.into();
        drop(goes);
        hears.read_exact(&mut [0])?;
        Ok(Identity { namespace, oom_score, holder: ours, proc })
    }

    /// Have the holder move itself into cgroups (`cgroup::join`), once; it ends, and all stubs with it, if it
    /// may not.
    pub fn join_cgroups(&self, files: &[OwnedFd]) -> io::Result<()> {
        socket::send(&self.holder, b"join", files)
    }

    /// Run `make`, a fork of the first stub: when memory is short the host ends stubs, the largest first, and this process
    /// last. The stub (0) leaves at once: whose setting that is may have gone by then.
    pub(crate) fn expendable(&self, make: impl FnOnce() -> io::Result<i32>) -> io::Result<i32> {
        let mut own = [0; 8];
        let count = self.oom_score.read_at(&mut own, 0)?;
        self.oom_score.write_at(b"1000", 0)?;
        let made = make();
        if !matches!(made, Ok(0)) {
            self.oom_score.write_at(&own[..count], 0)?;
        }
        made
    }

    /// In the first stub: the user inside, and no capability there either.
    pub(crate) fn assume(&self) -> io::Result<()> {
        drupe_sys::mount::setns(&self.namespace, libc::CLONE_NEWUSER)?;
        become_nobody()
    }
}

fn become_nobody() -> io::Result<()> {
    credentials::limit_bounding(0)?;
    credentials::set_ids(INSIDE, INSIDE)?;
    credentials::set_capabilities(&Capabilities::default())
}

/// The holder: as the kernel's user it makes the user namespace, which therefore is the kernel's.
fn hold(kernel: u32, says: io::Result<File>, mut waits: File, order: &OwnedFd) -> i32 {
    let made = own_proc().and_then(|proc| {
        credentials::set_groups(&[])?;
        credentials::set_ids(kernel, kernel)?;
        let admin = Capabilities { effective: CAP_SYS_ADMIN, permitted: CAP_SYS_ADMIN, ..Capabilities::default() };
        credentials::set_capabilities(&admin)?;
        drupe_sys::mount::unshare(libc::CLONE_NEWUSER)?;
        let mut says = says?;
        says.write_all(&proc.as_raw_fd().to_ne_bytes())?;
        waits.read_exact(&mut [0]).unwrap_or_default(); // the end: the map is written
        become_nobody()?;
        // SAFETY: no memory is involved.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        credentials::set_no_new_privileges()?;
        says.write_all(&[0]) // fails if the kernel's process is gone already, of which no signal would tell any more
    });
    if made.and_then(|()| joined(order)).is_err() {
        return 1;
    }
    process::close_from(0);
    process::rest_for_ever()
}

/// In the holder: it holds nothing while it waits for the order. That may never come: for a kernel without a claim.
fn joined(order: &OwnedFd) -> io::Result<()> {
    let order = process::keep_only(order)?;
    fd::close_standard();
    socket::wait_readable(&order)?;
    let files = socket::receive(&order, &mut [0; 8])?.fds;
    process::set_name(NAME);
    files.iter().try_for_each(cgroup::join)
}

fn take_fd(process: &OwnedFd, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved; the new descriptor is ours.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0);
        Ok(OwnedFd::from_raw_fd(checked(fd)?))
    }
}

/// /proc of the caller's PID namespace, with its processes only, mounted nowhere: the descriptor is all of it.
fn own_proc() -> io::Result<OwnedFd> {
    const SET_STRING: u32 = 1;
    const CREATE: u32 = 6;
    const READ_ONLY_NO_SUID_DEV_EXEC: u32 = 15;
    // SAFETY: strings are NUL-terminated and only read; new descriptors are ours.
    unsafe {
        let context = libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), 1);
        let context = OwnedFd::from_raw_fd(checked(context)?);
        let at = context.as_raw_fd();
        let (key, value) = (c"subset".as_ptr(), c"pid".as_ptr());
        checked(libc::syscall(libc::SYS_fsconfig, at, SET_STRING, key, value, 0))?;
        let none = std::ptr::null::<libc::c_char>();
        checked(libc::syscall(libc::SYS_fsconfig, at, CREATE, none, none, 0))?;
        let mounted = libc::syscall(libc::SYS_fsmount, at, 1, READ_ONLY_NO_SUID_DEV_EXEC);
        Ok(OwnedFd::from_raw_fd(checked(mounted)?))
    }
}

fn checked(result: libc::c_long) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}
