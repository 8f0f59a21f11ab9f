//! The kernel's process as a boundary: what it can still do when a guest has taken it over. Two steps, because the first
//! stub process is made between them: `enter`, after which no path of the host can be opened, and `seal`.
//!
//! Afterwards it has a user of its own, its descriptors, and the calls of `hostsys::kernel_calls`; nothing else. Only to serve
//! directories of the host it keeps rights on files, which Landlock holds to these directories.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use drupe_appkernel_hostsys::identity::Identity;
use drupe_appkernel_hostsys::{files, kernel_calls, memory};
use drupe_sys::credentials::{self, Capabilities};
use drupe_sys::landlock::{self, Access};
use drupe_sys::{mount, process};

/// The host's own limit may be lower, and is kept then.
const FILES_MAX: u64 = 65_536;
const LIMIT_CORE: u32 = 4;
const LIMIT_LOCKED: u32 = 8;
const LIMIT_QUEUES: u32 = 12;
/// CAP_DAC_READ_SEARCH
const READS: u64 = 1 << 2;
/// CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID
const CHANGES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4;
const FIRST_UID: u32 = 1_900_000_000;
const PAIRS: u32 = 50_000_000;

/// What the process keeps.
pub struct Confinement<'a> {
    /// Its user and group; the stubs' are the next number. No other process of the host may have either.
    pub uid: u32,
    /// Directories that it opens files below, and whether it may change them.
    pub directories: Vec<(BorrowedFd<'a>, Access)>,
    /// Whether it keeps the network namespace that it was started in.
    pub network: bool,
    /// Whether it runs a machine (the kvm platform), which takes more calls.
    pub machine: bool,
    /// The working directory, a mount, becomes its root; else there is nothing in that. What the host mounts there later it
    /// sees, and may change.
    pub share: bool,
}

/// Why it could not be confined: nothing has been run then.
#[derive(Debug)]
pub struct Failed {
    what: &'static str,
    why: io::Error,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "the kernel's process cannot be confined: {}: {}", self.what, self.why)?;
        match self.why.raw_os_error() {
            Some(libc::EPERM) => write!(out, " (it must be started by root)"),
            Some(libc::ENOSYS | libc::EOPNOTSUPP) => write!(out, " (the host's kernel lacks it)"),
            _ => Ok(()),
        }
    }
}

fn step<T>(what: &'static str, result: io::Result<T>) -> Result<T, Failed> {
    result.map_err(|why| Failed { what, why })
}

/// A user that no other kernel on this host has, for whoever was given none: by the process's number.
pub fn own_uid() -> u32 {
    FIRST_UID + 2 * (std::process::id() % PAIRS)
}

impl Confinement<'_> {
    /// Namespaces, and a root in which there is nothing. The stubs are to be made with the identity; a machine has none, and
    /// its threads need this process's PID namespace.
    pub fn enter(&self) -> Result<Option<Identity>, Failed> {
        step("Landlock", landlock::version())?;
        step("vDSO", memory::vdso())?;
        let identity = if self.machine { None } else { Some(step("/proc", Identity::new(self.uid))?) };
        let network = if self.network { 0 } else { libc::CLONE_NEWNET };
        let others = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        step("namespaces", mount::unshare(others | network))?;
        let here = if self.share { Some(step("its root", share_root())?) } else { None };
        if here.is_none() {
            step("an empty root", empty_root())?;
        }
        // Before there are stubs: whom it restricts reads the memory of none but those who are restricted likewise.
        let mut directories = self.directories.clone();
        directories.extend(identity.as_ref().map(|identity| (identity.proc.as_fd(), Access::Read)));
        directories.extend(here.as_ref().map(|root| (root.as_fd(), Access::Change)));
        step("Landlock", landlock::restrict(&directories, self.network))?;
        Ok(identity)
    }

    /// Everything else. The process has one thread.
    pub fn seal(&self) -> Result<(), Failed> {
        step("cgroup namespace", mount::unshare(libc::CLONE_NEWCGROUP))?; // it is in its cgroup by now
        process::set_umask(0); // the kernel has one for each process
        step("limits", limit())?;
        step("capabilities", credentials::limit_bounding(0))?;
        step("groups", credentials::set_groups(&[]))?;
        step("own user", credentials::set_ids(self.uid, self.uid))?;
        step("capabilities", credentials::set_capabilities(&self.capabilities()))?;
        step("no new privileges", credentials::set_no_new_privileges())?;
        step("no dumps", credentials::set_undumpable())?;
        step(
            "the filter of system calls",
            credentials::install_filter(&kernel_calls::program(self.network, self.machine)),
        )
    }

    /// None, unless there are directories: whose files any user's may be. What the rights can be used on, Landlock says.
    fn capabilities(&self) -> Capabilities {
        let of = |access: &Access| if *access == Access::Read { READS } else { READS | CHANGES };
        let share = if self.share { READS | CHANGES } else { 0 };
        let kept = self.directories.iter().fold(share, |all, (_, access)| all | of(access));
        Capabilities { effective: kept, permitted: kept, ..Capabilities::default() }
    }
}

/// ".." ends there: Landlock alone would say nothing about a change of owner or mode on a path that leads out. The directory
/// itself cannot be changed, what is mounted below it can.
fn share_root() -> io::Result<OwnedFd> {
    let here = Path::new(".");
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
    mount::mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_SLAVE, "")?;
    mount::mount("none", here, "", flags, "")?;
    mount::make_root_of_here()?;
    files::open_path(b"/", libc::O_PATH | libc::O_DIRECTORY)
}

fn empty_root() -> io::Result<()> {
    let nowhere = Path::new("/proc"); // a directory that is there, for this process found it
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount::mount("none", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    mount::mount("empty", nowhere, "tmpfs", flags, "size=4k,nr_inodes=2,mode=555")?;
    std::env::set_current_dir(nowhere)?;
    mount::make_root_of_here()
}

fn limit() -> io::Result<()> {
    let (_, hard) = process::nofile_limit()?;
    let files = hard.min(FILES_MAX);
    process::set_nofile_limit(files, files)?;
    [LIMIT_CORE, LIMIT_LOCKED, LIMIT_QUEUES].into_iter().try_for_each(|limit| credentials::set_limit(limit, 0, 0))
}
