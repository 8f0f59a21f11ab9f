//! The machine as a program sees it: names, limits, processors, randomness.

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::ClockId;

use super::Args;
use crate::clone::copied;
use crate::encode;
use crate::kernel::{Done, Kernel};
use crate::platform::MemoryOp;
use crate::send::LIMIT_CPU;
use crate::task::{Pid, Tid, LIMIT_COUNT};

/// The Linux whose interface this is.
pub const RELEASE: &str = "6.1.0-drupe";
pub const VERSION: &str = "#1 SMP drupe";
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const RANDOM_MAX: usize = 1 << 25;

pub fn uname(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let fields =
        [b"Linux".as_slice(), &kernel.hostname, RELEASE.as_bytes(), VERSION.as_bytes(), b"x86_64", &kernel.domainname];
    kernel.put(tid, args[0], &encode::utsname(fields))?;
    Ok(Done::Value(0))
}

pub fn sethostname(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if !kernel.process(tid)?.credentials.capable(CAP_SYS_ADMIN) {
        return Err(Errno::PERM);
    }
    if args[1] > 64 {
        return Err(Errno::INVAL);
    }
    kernel.hostname = kernel.get_bytes(tid, args[0], args[1] as usize)?;
    Ok(Done::Value(0))
}

pub fn sysinfo(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (total, free) = kernel.memory_of(tid);
    let uptime = kernel.host.now(ClockId::Boottime).seconds as u64;
    let mut bytes = encode::words(&[uptime, 0, 0, 0, total, free, 0, 0, 0, 0]);
    bytes.extend((kernel.tasks.processes.len() as u16).to_le_bytes());
    bytes.extend([0; 22]);
    bytes.extend(1u32.to_le_bytes()); // mem_unit
    bytes.extend([0; 4]);
    kernel.put(tid, args[0], &bytes)?;
    Ok(Done::Value(0))
}

pub fn getrandom(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [address, size, flags, ..] = *args;
    if flags & !7 != 0 || flags & 6 == 6 {
        return Err(Errno::INVAL);
    }
    let mut bytes = vec![0; (size as usize).min(RANDOM_MAX)];
    kernel.host.random(&mut bytes);
    kernel.put(tid, address, &bytes)?;
    Ok(Done::Value(bytes.len() as i64))
}

fn process_of(kernel: &Kernel, tid: Tid, pid: u64) -> Result<Pid> {
    let pid = if pid == 0 { kernel.pid(tid) } else { pid as u32 };
    kernel.tasks.processes.contains_key(&pid).then_some(pid).ok_or(Errno::SRCH)
}

fn set_limit(kernel: &mut Kernel, tid: Tid, pid: Pid, resource: usize, new: (u64, u64)) -> Result<()> {
    let raises = kernel.process(tid)?.credentials.capable(CAP_SYS_RESOURCE);
    let process = kernel.tasks.processes.get_mut(&pid).ok_or(Errno::SRCH)?;
    if new.0 > new.1 {
        return Err(Errno::INVAL);
    }
    if new.1 > process.limits[resource].1 && !raises {
        return Err(Errno::PERM);
    }
    process.limits[resource] = new;
    if resource == LIMIT_CPU {
        kernel.watch_cpu_limit(pid);
    }
    Ok(())
}

pub fn prlimit64(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [pid, resource, new, old, ..] = *args;
    let (pid, resource) = (process_of(kernel, tid, pid)?, resource as usize);
    if resource >= LIMIT_COUNT {
        return Err(Errno::INVAL);
    }
    let before = kernel.tasks.processes[&pid].limits[resource];
    if new != 0 {
        let [soft, hard] = kernel.get_words(tid, new)?;
        kernel.check_kill(tid, pid, 0)?;
        set_limit(kernel, tid, pid, resource, (soft, hard))?;
    }
    if old != 0 {
        kernel.put_words(tid, old, &[before.0, before.1])?;
    }
    Ok(Done::Value(0))
}

pub fn getrlimit(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    prlimit64(kernel, tid, &[0, args[0], 0, args[1], 0, 0])
}

pub fn setrlimit(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    prlimit64(kernel, tid, &[0, args[0], args[1], 0, 0, 0])
}

/// What a container may not do, whoever asks in it.
pub fn not_permitted(_: &mut Kernel, _: Tid, _: &Args) -> Result<Done> {
    Err(Errno::PERM)
}

/// personality(2): kept and told.
pub fn personality(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const ASK: u32 = u32::MAX;
    let own = &mut kernel.process_mut(tid)?.personality;
    let before = *own;
    if args[0] as u32 != ASK {
        *own = args[0] as u32;
    }
    Ok(Done::Value(before.into()))
}

/// unshare(2) of what threads share; new namespaces are not permitted.
pub fn unshare(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    const FS: u64 = 0x200;
    const FILES: u64 = 0x400;
    const SYSVSEM: u64 = 0x4_0000;
    const OF_THREADS: u64 = 0x1_0900; // CLONE_THREAD, CLONE_SIGHAND, CLONE_VM: had by whoever is alone
    const NEW: u64 = 0x7e02_0080;
    if args[0] & !(FS | FILES | SYSVSEM | OF_THREADS | NEW) != 0 {
        return Err(Errno::INVAL);
    }
    if args[0] & NEW != 0 {
        return Err(Errno::PERM);
    }
    let process = kernel.process_mut(tid)?;
    if args[0] & OF_THREADS != 0 && process.threads.len() > 1 {
        return Err(Errno::INVAL);
    }
    if args[0] & FILES != 0 {
        process.files = copied(&process.files);
    }
    if args[0] & FS != 0 {
        process.fs = copied(&process.fs);
    }
    Ok(Done::Value(0))
}

pub fn getcpu(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    kernel.put_if(tid, args[0], &[0; 4])?;
    kernel.put_if(tid, args[1], &[0; 4])?;
    Ok(Done::Value(0))
}

pub fn sched_priority(_: &mut Kernel, _: Tid, args: &Args, highest: bool) -> Result<Done> {
    match args[0] {
        0 | 3 | 5 | 6 => Ok(Done::Value(0)),
        1 | 2 => Ok(Done::Value(if highest { 99 } else { 1 })),
        _ => Err(Errno::INVAL),
    }
}

/// membarrier(2), of the caller's own threads alone: EPERM where they are not registered for it.
pub fn membarrier(kernel: &mut Kernel, _: Tid, args: &Args) -> Result<Done> {
    let (command, offered) = (args[0] as u32, kernel.platform.barriers());
    match command {
        _ if args[1] as u32 != 0 => Err(Errno::INVAL),
        0 => Ok(Done::Value(offered.into())),
        _ if command.is_power_of_two() && command & offered != 0 => {
            Ok(Done::Change(0, vec![MemoryOp::Barrier(command)]))
        }
        _ => Err(Errno::INVAL),
    }
}
