//! Pipes and the descriptors of events: pipe2, eventfd, timerfd, epoll, inotify.

use std::sync::Arc;
use std::time::Duration;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::event::{Control, Epoll, EpollEvent, EventFd, TimerFd, TimerSetting};
use drupe_appkernel_vfs::inotify::Inotify;
use drupe_appkernel_vfs::{anonymous, pipe, wait, Clock, ClockId, File, OpenFlags};

use super::Args;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::seat::AT_SYMLINK_NOFOLLOW;
use crate::task::Tid;

const NONBLOCK: u64 = OpenFlags::NONBLOCK as u64;
const CLOEXEC: u64 = OpenFlags::CLOEXEC as u64;

pub fn pipe2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const DIRECT: u64 = OpenFlags::DIRECT as u64;
    let [address, flags, ..] = *args;
    if flags & !(NONBLOCK | CLOEXEC | DIRECT) != 0 {
        return Err(Errno::INVAL);
    }
    let (read, write) = kernel.with_context(tid, |context| pipe::pipe(context, OpenFlags(flags as u32)))?;
    let read = kernel.install(tid, read, flags & CLOEXEC != 0)?;
    let write = kernel.install(tid, write, flags & CLOEXEC != 0);
    kernel.unless_told(tid, &[read], write.map(drop))?;
    let both = [read, write?];
    let told = kernel.put_now(tid, address, &both.map(i32::to_le_bytes).concat());
    kernel.unless_told(tid, &both, told)?;
    Ok(Done::Value(0))
}

pub fn pipe(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    pipe2(kernel, tid, &[args[0], 0, 0, 0, 0, 0])
}

impl Kernel {
    pub(crate) fn install_event(
        &mut self,
        tid: Tid,
        file: Arc<dyn File>,
        label: &str,
        access: u32,
        flags: u64,
    ) -> Result<Done> {
        let open = OpenFlags(access | (flags & NONBLOCK) as u32);
        let file = self.with_context(tid, |context| Ok(anonymous::open(context, file, label, open)))?;
        Ok(Done::Value(self.install(tid, file, flags & CLOEXEC != 0)?.into()))
    }
}

pub fn eventfd2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const SEMAPHORE: u64 = 1;
    let [initial, flags, ..] = *args;
    if flags & !(NONBLOCK | CLOEXEC | SEMAPHORE) != 0 {
        return Err(Errno::INVAL);
    }
    let file = EventFd::new(initial as u32, flags & SEMAPHORE != 0);
    kernel.install_event(tid, file, "eventfd", OpenFlags::RDWR, flags)
}

pub fn eventfd(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    eventfd2(kernel, tid, &[args[0], 0, 0, 0, 0, 0])
}

pub fn timerfd_create(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [clock, flags, ..] = *args;
    let id = match clock {
        0 | 8 => ClockId::Realtime,
        1 => ClockId::Monotonic,
        7 | 9 => ClockId::Boottime,
        _ => return Err(Errno::INVAL),
    };
    if flags & !(NONBLOCK | CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    let timers: Arc<dyn Clock> = kernel.timers.clone();
    kernel.install_event(tid, TimerFd::new(timers, id), "timerfd", OpenFlags::RDWR, flags)
}

fn duration(seconds: u64, part: u64) -> Result<Duration> {
    let valid = (seconds as i64) >= 0 && part < 1_000_000_000;
    valid.then(|| Duration::new(seconds, part as u32)).ok_or(Errno::INVAL)
}

fn put_setting(kernel: &Kernel, tid: Tid, address: u64, setting: &TimerSetting) -> Result<()> {
    let words = [setting.interval, setting.value].map(|d| [d.as_secs(), u64::from(d.subsec_nanos())]);
    kernel.put_if(tid, address, &encode::words(&words.concat()))
}

pub fn timerfd_settime(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [fd, flags, new, old, ..] = *args;
    let file = kernel.file(tid, fd)?;
    let timer = file.downcast::<TimerFd>().ok_or(Errno::INVAL)?;
    let [a, b, c, d] = kernel.get_words(tid, new)?;
    let setting = TimerSetting { interval: duration(a, b)?, value: duration(c, d)? };
    if flags & !3 != 0 {
        return Err(Errno::INVAL);
    }
    let before = timer.set(setting, flags & 1 != 0);
    put_setting(kernel, tid, old, &before)?;
    Ok(Done::Value(0))
}

pub fn timerfd_gettime(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    let timer = file.downcast::<TimerFd>().ok_or(Errno::INVAL)?;
    put_setting(kernel, tid, args[1], &timer.get())?;
    Ok(Done::Value(0))
}

pub fn epoll_create1(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[0] & !CLOEXEC != 0 {
        return Err(Errno::INVAL);
    }
    kernel.install_event(tid, Epoll::new(), "eventpoll", OpenFlags::RDWR, args[0])
}

pub fn epoll_create(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[0] as i32 <= 0 {
        return Err(Errno::INVAL);
    }
    epoll_create1(kernel, tid, &[0; 6])
}

pub fn epoll_ctl(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [epoll_fd, operation, fd, address, ..] = *args;
    let control = match operation {
        1 => Control::Add,
        2 => Control::Delete,
        3 => Control::Modify,
        _ => return Err(Errno::INVAL),
    };
    let mut bytes = [0; 12];
    if control != Control::Delete {
        kernel.get(tid, address, &mut bytes)?;
    }
    let (events, data) = bytes.split_at(4);
    let event = EpollEvent {
        events: u32::from_le_bytes(events.try_into().unwrap_or_default()),
        data: u64::from_le_bytes(data.try_into().unwrap_or_default()),
    };
    let (watcher, file) = (kernel.file(tid, epoll_fd)?, kernel.file(tid, fd)?);
    let epoll = watcher.downcast::<Epoll>().ok_or(Errno::INVAL)?;
    epoll.control(control, fd as i32, &file, event)?;
    Ok(Done::Value(0))
}

fn wait_epoll(kernel: &mut Kernel, tid: Tid, args: &Args, deadline: Option<u64>) -> Result<Done> {
    const MAX: i32 = i32::MAX / 12;
    let [fd, address, count, ..] = *args;
    let file = kernel.file(tid, fd)?;
    let epoll = file.downcast::<Epoll>().ok_or(Errno::INVAL)?;
    let count = count as i32;
    if !(1..=MAX).contains(&count) {
        return Err(Errno::INVAL);
    }
    let events = epoll.wait(count.min(4096) as usize);
    let over = kernel.is_over(tid) || deadline.is_some_and(|at| kernel.timers.now_ns() >= at);
    if events.is_empty() && !over {
        kernel.wait_for_file(tid, &file, wait::IN)?;
        return kernel.wait_until(tid, deadline);
    }
    let packed = |event: &EpollEvent| [&event.events.to_le_bytes()[..], &event.data.to_le_bytes()].concat();
    let bytes: Vec<u8> = events.iter().flat_map(packed).collect();
    kernel.put(tid, address, &bytes)?;
    Ok(Done::Value(events.len() as i64))
}

pub fn epoll_wait(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let deadline = match kernel.pending(tid)?.deadline_ns {
        Some(deadline) => Some(deadline),
        None => u64::try_from(args[3] as i32).ok().map(|ms| kernel.timers.now_ns() + ms * 1_000_000),
    };
    wait_epoll(kernel, tid, args, deadline)
}

pub fn epoll_pwait(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    kernel.swap_mask(tid, args[4])?;
    epoll_wait(kernel, tid, args)
}

pub fn epoll_pwait2(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    kernel.swap_mask(tid, args[4])?;
    let deadline = match kernel.pending(tid)?.deadline_ns {
        Some(deadline) => Some(deadline),
        None => kernel.get_deadline(tid, args[3])?,
    };
    wait_epoll(kernel, tid, args, deadline)
}

pub fn inotify_init1(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[0] & !(NONBLOCK | CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    kernel.install_event(tid, Inotify::new(), "inotify", 0, args[0])
}

pub fn inotify_init(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    inotify_init1(kernel, tid, &[0; 6])
}

pub fn inotify_add_watch(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const DONT_FOLLOW: u64 = 0x0200_0000;
    const ONLYDIR: u64 = 0x0100_0000;
    let [fd, path, mask, ..] = *args;
    let file = kernel.file(tid, fd)?;
    let seat = kernel.seat(tid)?;
    let flags = if mask & DONT_FOLLOW != 0 { AT_SYMLINK_NOFOLLOW } else { 0 };
    let path = kernel.at(tid, &seat, super::files::CWD, path, flags)?;
    if mask & ONLYDIR != 0 && !path.inode().metadata()?.is_directory() {
        return Err(Errno::NOTDIR);
    }
    let inotify = file.downcast::<Inotify>().ok_or(Errno::INVAL)?;
    Ok(Done::Value(inotify.add(&path, mask as u32)?.into()))
}

pub fn inotify_rm_watch(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let file = kernel.file(tid, args[0])?;
    file.downcast::<Inotify>().ok_or(Errno::INVAL)?.remove(args[1] as i32)?;
    Ok(Done::Value(0))
}
