//! Who a process is: numbers, users, groups, capabilities, sessions.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::Args;
use crate::kernel::{Done, Kernel};
use crate::pids;
use crate::privileges::{file_user_changed, user_changed};
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
    process.ids.uid = new(real, now[0]);
    process.credentials.uid = new(effective, now[1]);
    process.ids.saved_uid = new(saved, now[2]);
    process.ids.fs_uid = None;
    user_changed(process, now);
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
    process.ids.fs_gid = None;
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

/// setfsuid(2): the one before is told, whatever comes of it.
pub fn setfsuid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (process, new) = (kernel.process_mut(tid)?, args[0] as u32);
    let effective = process.credentials.uid;
    let old = process.ids.fs_uid.unwrap_or(effective);
    let is_own = [process.ids.uid, effective, process.ids.saved_uid, old].contains(&new);
    if new != KEEP && (is_own || process.credentials.capable(CAP_SETUID)) {
        process.ids.fs_uid = (new != effective).then_some(new);
        file_user_changed(process, old, new);
    }
    Ok(Done::Value(old.into()))
}

pub fn setfsgid(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (process, new) = (kernel.process_mut(tid)?, args[0] as u32);
    let effective = process.credentials.gid;
    let old = process.ids.fs_gid.unwrap_or(effective);
    let is_own = [process.ids.gid, effective, process.ids.saved_gid, old].contains(&new);
    if new != KEEP && (is_own || process.credentials.capable(CAP_SETGID)) {
        process.ids.fs_gid = (new != effective).then_some(new);
    }
    Ok(Done::Value(old.into()))
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

/// Versions of struct __user_cap_header_struct, and how many times 32 capabilities each has.
const VERSIONS: [(u32, usize); 3] = [(0x1998_0330, 1), (0x2007_1026, 2), (0x2008_0522, 2)];

/// How many times 32 capabilities, and whose; None: it is no version, and was told one.
fn header(kernel: &Kernel, tid: Tid, address: u64) -> Result<Option<(usize, Pid)>> {
    let bytes = kernel.get_bytes(tid, address, 8)?;
    let version = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let pid = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    let Some((_, halves)) = VERSIONS.iter().find(|(known, _)| *known == version) else {
        kernel.put(tid, address, &VERSIONS[2].0.to_le_bytes())?;
        return Ok(None);
    };
    match pid as i32 {
        0 => Ok(Some((*halves, kernel.pid(tid)))),
        pid if pid < 0 => Err(Errno::INVAL),
        _ => Ok(Some((*halves, pids::known(kernel.view(tid), pid)))),
    }
}

pub fn capget(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let Some((halves, pid)) = header(kernel, tid, args[0])? else {
        return if args[1] == 0 { Ok(Done::Value(0)) } else { Err(Errno::INVAL) };
    };
    let pid = kernel.task(pid).map_or(pid, |task| task.pid);
    let process = kernel.tasks.processes.get(&pid).ok_or(Errno::SRCH)?;
    let sets = [process.credentials.capabilities, process.ids.permitted, process.ids.inheritable];
    let half = |shift: usize| sets.iter().flat_map(move |set| ((set >> (32 * shift)) as u32).to_le_bytes());
    let bytes: Vec<u8> = (0..halves).flat_map(half).collect();
    kernel.put_if(tid, args[1], &bytes)?;
    Ok(Done::Value(0))
}

pub fn capset(kernel: &mut Kernel, tid: Tid, args: &Args) -> Result<Done> {
    let (halves, pid) = header(kernel, tid, args[0])?.ok_or(Errno::INVAL)?;
    if pid != kernel.pid(tid) && pid != tid {
        return Err(Errno::PERM);
    }
    let bytes = kernel.get_bytes(tid, args[1], 12 * halves)?;
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let [effective, permitted, inheritable] = [0, 1, 2].map(|i| u64::from(word(i)) | u64::from(word(i + 3)) << 32);
    let process = kernel.process_mut(tid)?;
    let ids = &mut process.ids;
    let more = permitted & !ids.permitted != 0 || effective & !permitted != 0;
    let unbound = inheritable & !(ids.inheritable | ids.bounding) != 0;
    let inherits = inheritable & !(ids.inheritable | ids.permitted) != 0;
    if more || unbound || (inherits && !process.credentials.capable(CAP_SETPCAP)) {
        return Err(Errno::PERM);
    }
    process.credentials.capabilities = effective;
    (ids.permitted, ids.inheritable) = (permitted, inheritable);
    ids.ambient &= permitted & inheritable;
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
    if group < 0 || group == 0 && (args[0] as i32) < 0 {
        return Err(Errno::INVAL);
    }
    let process = target(kernel, tid, args[0])?;
    let pid = process.pid;
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
