//! Processes as descriptors: pidfd_open(2), pidfd_send_signal(2).

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::wait::{answer, when};
use drupe_appkernel_vfs::{
    anonymous, wait, Context, Events, File, FileType, Metadata, OpenFile, OpenFlags, Path, WaitQueue,
};

use super::signals::{check_signal, given_info, own_info};
use super::Args;
use crate::kernel::{Done, Kernel};
use crate::pids;
use crate::signal::SI_USER;
use crate::task::{Pid, Tid};

/// Whether a process has ended, for those who hold a descriptor of it.
#[derive(Default)]
pub struct Life {
    is_over: AtomicBool,
    queue: WaitQueue,
}

impl Life {
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.queue.wake(wait::READABLE);
    }
}

/// A process as a file: readable once it has ended.
pub struct PidFd {
    pub pid: Pid,
    life: Arc<Life>,
}

impl PidFd {
    pub fn new(pid: Pid, life: Arc<Life>) -> PidFd {
        PidFd { pid, life }
    }
}

impl File for PidFd {
    fn read(&self, _: &Context, _: u64, _: &mut [u8]) -> Result<usize> {
        Err(Errno::INVAL)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::INVAL)
    }

    fn poll(&self, interest: Events) -> Events {
        answer(interest, when(self.life.is_over.load(Ordering::Relaxed), wait::READABLE))
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.life.queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(Metadata::new(FileType::Regular, 0o600))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Kernel {
    /// A new descriptor of a process, for the caller. ESRCH, EMFILE.
    pub(crate) fn new_pidfd(&self, tid: Tid, pid: Pid, nonblock: u32) -> Result<i32> {
        let life = Arc::clone(&self.tasks.processes.get(&pid).ok_or(Errno::SRCH)?.life);
        let file: Arc<dyn File> = Arc::new(PidFd { pid, life });
        let flags = OpenFlags(OpenFlags::RDWR | nonblock);
        let file = self.with_context(tid, |context| Ok(anonymous::open(context, file, "pidfd", flags)))?;
        self.install(tid, file, true)
    }

    /// The process that a descriptor stands for. EBADF; ESRCH when nothing is left of it.
    pub(crate) fn pid_of_fd(&self, tid: Tid, fd: u64) -> Result<Pid> {
        let file: Arc<OpenFile> = self.file(tid, fd)?;
        let held = file.downcast::<PidFd>().ok_or(Errno::BADF)?;
        let same = |life: &Arc<Life>| Arc::ptr_eq(life, &held.life);
        let there = self.tasks.processes.get(&held.pid).is_some_and(|process| same(&process.life));
        there.then_some(held.pid).ok_or(Errno::SRCH)
    }

    /// EPERM unless the caller may see all that another process has.
    pub(crate) fn check_look(&self, tid: Tid, pid: Pid) -> Result<()> {
        const CAP_SYS_PTRACE: u32 = 19;
        let (own, other) = (self.process(tid)?, self.tasks.processes.get(&pid).ok_or(Errno::SRCH)?);
        let users = [other.ids.uid, other.credentials.uid, other.ids.saved_uid];
        let groups = [other.ids.gid, other.credentials.gid, other.ids.saved_gid];
        let same = users.iter().all(|uid| *uid == own.ids.uid) && groups.iter().all(|gid| *gid == own.ids.gid);
        let no_more = other.ids.permitted & !own.ids.permitted == 0;
        let may = own.pid == pid || own.credentials.capable(CAP_SYS_PTRACE) || (same && no_more && other.dumpable);
        may.then_some(()).ok_or(Errno::PERM)
    }

    /// The process whose directory in /proc is open. EBADF, ESRCH.
    fn pid_of_directory(&self, tid: Tid, file: &OpenFile) -> Result<Pid> {
        let of_proc = |path: &&Path| path.mount.file_system().name() == "proc";
        let name = file.path().filter(of_proc).map(|path| path.dentry.name().to_vec()).ok_or(Errno::BADF)?;
        let number = std::str::from_utf8(&name).ok().and_then(|name| name.parse().ok()).ok_or(Errno::BADF)?;
        let pid = pids::known(self.view(tid), number);
        self.tasks.processes.contains_key(&pid).then_some(pid).ok_or(Errno::SRCH)
    }
}

pub fn pidfd_open(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (pid, flags) = (args[0] as i32, args[1] as u32);
    if flags & !OpenFlags::NONBLOCK != 0 || pid <= 0 {
        return Err(Errno::INVAL);
    }
    if kernel.tasks.tasks.get(&(pid as u32)).is_some_and(|task| task.pid != pid as u32) {
        return Err(Errno::INVAL); // a thread that leads no group
    }
    kernel.new_pidfd(tid, pid as u32, flags).map(|fd| Done::Value(fd.into()))
}

/// pidfd_getfd(2): a descriptor of another process that the caller may look into (ptrace(2), "access mode checking").
pub fn pidfd_getfd(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, wanted, flags, ..] = *args;
    if flags != 0 {
        return Err(Errno::INVAL);
    }
    let pid = kernel.pid_of_fd(tid, fd)?;
    kernel.check_look(tid, pid)?;
    let process = kernel.tasks.processes.get(&pid).filter(|process| process.exit.is_none()).ok_or(Errno::SRCH)?;
    let file = process.files.lock().get(wanted as i32).map(Arc::clone)?;
    kernel.install(tid, file, true).map(|fd| Done::Value(fd.into()))
}

pub fn pidfd_send_signal(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, signal, info, flags, ..] = *args;
    if flags != 0 {
        return Err(Errno::INVAL);
    }
    let file = kernel.file(tid, fd)?;
    let pid = match file.downcast::<PidFd>() {
        Some(_) => kernel.pid_of_fd(tid, fd)?,
        None => kernel.pid_of_directory(tid, &file)?,
    };
    let signal = check_signal(signal)?;
    let info = match info {
        0 => own_info(kernel, tid, signal, SI_USER)?,
        address if kernel.get_u32(tid, address)? != signal as u32 => return Err(Errno::INVAL),
        address => given_info(kernel, tid, pid, signal, address)?,
    };
    kernel.check_kill(tid, pid, signal)?;
    if signal != 0 {
        kernel.send_to_process(pid, info);
    }
    Ok(Done::Value(0))
}
