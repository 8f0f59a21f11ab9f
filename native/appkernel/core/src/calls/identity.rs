//! Who a process is: numbers, users, groups, capabilities, sessions.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::Args;
use crate::kernel::{Done, Kernel};
use crate::pids;
use crate::signal::COUNT;
use crate::task::{Pid, Process, Tid};

const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SETPCAP: u32 = 8;
const NGROUPS_MAX: u64 = 65_536;
const KEEP: u32 = u32::MAX;

pub fn getpid(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Value(kernel.pid(tid).into()))
}

pub fn gettid(_: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Value(tid.into()))
}

pub fn getppid(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Value(kernel.process(tid)?.parent.into()))
}

pub fn getuid(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Value(kernel.process(tid)?.ids.uid.into()))
}

pub fn geteuid(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Value(kernel.process(tid)?.credentials.uid.into()))
}

pub fn getgid(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Value(kernel.process(tid)?.ids.gid.into()))
}

pub fn getegid(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Value(kernel.process(tid)?.credentials.gid.into()))
}

fn put_ids(kernel: &Kernel, tid: Tid, args: &Args, ids: [u32; 3]) -> Result<Done> {
    for (address, id) in args.iter().zip(ids) {
        kernel.put(tid, *address, &id.to_le_bytes())?;
    }
    Ok(Done::Value(0))
}

pub fn getresuid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let p = kernel.process(tid)?;
    put_ids(kernel, tid, args, [p.ids.uid, p.credentials.uid, p.ids.saved_uid])
}

pub fn getresgid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let p = kernel.process(tid)?;
    put_ids(kernel, tid, args, [p.ids.gid, p.credentials.gid, p.ids.saved_gid])
}

/// Set real, effective, saved user id (KEEP leaves one as it is), and what follows for capabilities (capabilities(7)).
fn change_uids(process: &mut Process, real: u32, effective: u32, saved: u32) -> Result<Done> {
    let now = [process.ids.uid, process.credentials.uid, process.ids.saved_uid];
    let allowed = |id: u32| id == KEEP || now.contains(&id);
    if !process.credentials.capable(CAP_SETUID) && ![real, effective, saved].into_iter().all(allowed) {
        return Err(Errno::PERM);
    }
    let new = |wanted: u32, old: u32| if wanted == KEEP { old } else { wanted };
    let had_root = now.contains(&0);
    process.ids.uid = new(real, now[0]);
    process.credentials.uid = new(effective, now[1]);
    process.ids.saved_uid = new(saved, now[2]);
    let has_root = [process.ids.uid, process.credentials.uid, process.ids.saved_uid].contains(&0);
    if had_root && !has_root {
        process.ids.permitted = 0;
        process.credentials.capabilities = 0;
    } else if now[1] == 0 && process.credentials.uid != 0 {
        process.credentials.capabilities = 0;
    } else if now[1] != 0 && process.credentials.uid == 0 {
        process.credentials.capabilities = process.ids.permitted;
    }
    Ok(Done::Value(0))
}

fn change_gids(process: &mut Process, real: u32, effective: u32, saved: u32) -> Result<Done> {
    let now = [process.ids.gid, process.credentials.gid, process.ids.saved_gid];
    let allowed = |id: u32| id == KEEP || now.contains(&id);
    if !process.credentials.capable(CAP_SETGID) && ![real, effective, saved].into_iter().all(allowed) {
        return Err(Errno::PERM);
    }
    let new = |wanted: u32, old: u32| if wanted == KEEP { old } else { wanted };
    process.ids.gid = new(real, now[0]);
    process.credentials.gid = new(effective, now[1]);
    process.ids.saved_gid = new(saved, now[2]);
    Ok(Done::Value(0))
}

pub fn setuid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (process, uid) = (kernel.process_mut(tid)?, args[0] as u32);
    if process.credentials.capable(CAP_SETUID) {
        return change_uids(process, uid, uid, uid);
    }
    change_uids(process, KEEP, uid, KEEP)
}

pub fn setgid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (process, gid) = (kernel.process_mut(tid)?, args[0] as u32);
    if process.credentials.capable(CAP_SETGID) {
        return change_gids(process, gid, gid, gid);
    }
    change_gids(process, KEEP, gid, KEEP)
}

/// The saved id follows the effective one when the real one is set, or the effective one becomes another than the real.
pub fn setreuid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (real, effective) = (args[0] as u32, args[1] as u32);
    let process = kernel.process_mut(tid)?;
    let follows = real != KEEP || (effective != KEEP && effective != process.ids.uid);
    let saved = if effective == KEEP { process.credentials.uid } else { effective };
    change_uids(process, real, effective, if follows { saved } else { KEEP })
}

pub fn setregid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (real, effective) = (args[0] as u32, args[1] as u32);
    let process = kernel.process_mut(tid)?;
    let follows = real != KEEP || (effective != KEEP && effective != process.ids.gid);
    let saved = if effective == KEEP { process.credentials.gid } else { effective };
    change_gids(process, real, effective, if follows { saved } else { KEEP })
}

pub fn setresuid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    change_uids(kernel.process_mut(tid)?, args[0] as u32, args[1] as u32, args[2] as u32)
}

pub fn setresgid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    change_gids(kernel.process_mut(tid)?, args[0] as u32, args[1] as u32, args[2] as u32)
}

/// setfsuid(2), setfsgid(2): the id is the effective one; asked, not set apart.
pub fn setfsuid(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    geteuid(kernel, tid, &[0; 6])
}

pub fn setfsgid(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    getegid(kernel, tid, &[0; 6])
}

pub fn getgroups(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let groups = Arc::clone(&kernel.process(tid)?.credentials.groups);
    let room = args[0] as i32;
    if room != 0 {
        if room < groups.len() as i32 {
            return Err(Errno::INVAL);
        }
        let bytes: Vec<u8> = groups.iter().flat_map(|gid| gid.to_le_bytes()).collect();
        kernel.put(tid, args[1], &bytes)?;
    }
    Ok(Done::Value(groups.len() as i64))
}

pub fn setgroups(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if !kernel.process(tid)?.credentials.capable(CAP_SETGID) {
        return Err(Errno::PERM);
    }
    if args[0] > NGROUPS_MAX {
        return Err(Errno::INVAL);
    }
    let bytes = kernel.get_bytes(tid, args[1], 4 * args[0] as usize)?;
    let groups = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    kernel.process_mut(tid)?.credentials.groups = groups.collect();
    Ok(Done::Value(0))
}

const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Version and process of a struct __user_cap_header_struct; None: the version was asked for.
fn header(kernel: &Kernel, tid: Tid, address: u64) -> Result<Option<Pid>> {
    let bytes = kernel.get_bytes(tid, address, 8)?;
    let version = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let pid = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    if version == CAPABILITY_VERSION {
        return Ok(Some(if pid == 0 { kernel.pid(tid) } else { pids::known(kernel.view(tid), pid) }));
    }
    kernel.put(tid, address, &CAPABILITY_VERSION.to_le_bytes())?;
    Ok(None)
}

pub fn capget(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let Some(pid) = header(kernel, tid, args[0])? else {
        return if args[1] == 0 { Ok(Done::Value(0)) } else { Err(Errno::INVAL) };
    };
    let process = kernel.tasks.processes.get(&pid).ok_or(Errno::SRCH)?;
    let sets = [process.credentials.capabilities, process.ids.permitted, process.ids.inheritable];
    let half = |shift: u32| sets.iter().flat_map(move |set| ((set >> shift) as u32).to_le_bytes());
    let bytes: Vec<u8> = half(0).chain(half(32)).collect();
    kernel.put_if(tid, args[1], &bytes)?;
    Ok(Done::Value(0))
}

pub fn capset(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let pid = header(kernel, tid, args[0])?.ok_or(Errno::INVAL)?;
    if pid != kernel.pid(tid) && pid != tid {
        return Err(Errno::PERM);
    }
    let bytes = kernel.get_bytes(tid, args[1], 24)?;
    let word = |i: usize| u64::from(u32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap_or_default()));
    let set = |i: usize| word(i) | word(i + 3) << 32;
    let (effective, permitted, inheritable) = (set(0), set(1), set(2));
    let process = kernel.process_mut(tid)?;
    let more = permitted & !process.ids.permitted != 0 || effective & !permitted != 0;
    let inherits = inheritable & !(process.ids.inheritable | process.ids.permitted) & process.ids.bounding;
    if more || (inherits != 0 && !process.credentials.capable(CAP_SETPCAP)) {
        return Err(Errno::PERM);
    }
    process.credentials.capabilities = effective;
    (process.ids.permitted, process.ids.inheritable) = (permitted, inheritable);
    Ok(Done::Value(0))
}

fn target(kernel: &Kernel, tid: Tid, pid: u64) -> Result<&Process> {
    match pid as i32 {
        0 => kernel.process(tid),
        pid => kernel.tasks.processes.get(&(pid as u32)).ok_or(Errno::SRCH),
    }
}

pub fn getpgid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    Ok(Done::Value(target(kernel, tid, args[0])?.group.into()))
}

pub fn getpgrp(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    Ok(Done::Value(kernel.process(tid)?.group.into()))
}

pub fn getsid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    Ok(Done::Value(target(kernel, tid, args[0])?.session.into()))
}

pub fn setsid(kernel: &mut Kernel, tid: Tid, _: &Args) -> Result<Done> {
    let pid = kernel.pid(tid);
    if kernel.tasks.processes.values().any(|p| p.group == pid) {
        return Err(Errno::PERM);
    }
    let process = kernel.process_mut(tid)?;
    (process.group, process.session) = (pid, pid);
    Ok(Done::Value(pid.into()))
}

pub fn setpgid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (own, session) = (kernel.pid(tid), kernel.process(tid)?.session);
    let group = args[1] as i32;
    let process = target(kernel, tid, args[0])?;
    let pid = process.pid;
    if group < 0 {
        return Err(Errno::INVAL);
    }
    if pid != own && process.parent != own {
        return Err(Errno::SRCH);
    }
    if pid != own && process.has_execed {
        return Err(Errno::ACCES);
    }
    if process.session == pid || process.session != session {
        return Err(Errno::PERM);
    }
    let group = if group == 0 { pid } else { group as u32 };
    let exists = kernel.tasks.processes.values().any(|p| p.group == group && p.session == session);
    if group != pid && !exists {
        return Err(Errno::PERM);
    }
    kernel.tasks.processes.get_mut(&pid).ok_or(Errno::SRCH)?.group = group;
    Ok(Done::Value(0))
}

pub fn prctl(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let [option, argument, third, ..] = *args;
    let value = match option {
        1 if argument > COUNT as u64 => return Err(Errno::INVAL),
        1 => {
            kernel.process_mut(tid)?.death_signal = argument as i32;
            0
        }
        2 => {
            kernel.put(tid, argument, &kernel.process(tid)?.death_signal.to_le_bytes())?;
            0
        }
        3 => 1,           // PR_GET_DUMPABLE
        4 | 29 | 30 => 0, // PR_SET_DUMPABLE, timer slack
        7 => 0,           // PR_GET_KEEPCAPS
        8 if argument == 0 => 0,
        21 => i64::from(kernel.task(tid)?.seccomp.mode()),
        22 => super::seccomp::set_by_prctl(kernel, tid, argument, third)?,
        15 => {
            let name = kernel.text(tid, argument, 16, Errno::INVAL).or_else(|_| kernel.get_bytes(tid, argument, 15))?;
            let task = kernel.task_mut(tid)?;
            task.name = [0; 16];
            let length = name.len().min(15);
            task.name[..length].copy_from_slice(&name[..length]);
            0
        }
        16 => {
            kernel.put(tid, argument, &kernel.task(tid)?.name)?;
            0
        }
        23 => i64::from(bounded(kernel, tid, argument)?),
        24 => {
            bounded(kernel, tid, argument)?;
            if !kernel.process(tid)?.credentials.capable(CAP_SETPCAP) {
                return Err(Errno::PERM);
            }
            kernel.process_mut(tid)?.ids.bounding &= !(1 << argument);
            0
        }
        36 => {
            kernel.process_mut(tid)?.subreaper = argument != 0;
            0
        }
        37 => {
            kernel.put(tid, argument, &u32::from(kernel.process(tid)?.subreaper).to_le_bytes())?;
            0
        }
        38 if argument == 1 => {
            kernel.process_mut(tid)?.no_new_privileges = true;
            0
        }
        39 => i64::from(kernel.process(tid)?.no_new_privileges),
        47 if matches!(argument, 1 | 4) && third < 41 => 0, // ambient: none is set
        _ => return Err(Errno::INVAL),
    };
    Ok(Done::Value(value))
}

fn bounded(kernel: &Kernel, tid: Tid, capability: u64) -> Result<bool> {
    if capability > 40 {
        return Err(Errno::INVAL);
    }
    Ok(kernel.process(tid)?.ids.bounding >> capability & 1 == 1)
}

pub fn set_tid_address(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    kernel.task_mut(tid)?.clear_tid = args[0];
    Ok(Done::Value(tid.into()))
}

pub fn set_robust_list(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    if args[1] != 24 {
        return Err(Errno::INVAL);
    }
    kernel.task_mut(tid)?.robust_list = args[0];
    Ok(Done::Value(0))
}
