//! Who a process is and what it may do: ids, capabilities, limits, system-call filters.

use crate::{check, check_long};
use std::io;

/// The sets of capabilities(7), capability n as bit n.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// prctl(2) PR_SET_DUMPABLE 0: no process without CAP_SYS_PTRACE may look into this one.
pub fn set_undumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0)
}

/// prctl(2) PR_SET_NO_NEW_PRIVS.
pub fn set_no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

/// prctl(2) PR_CAPBSET_DROP for all that `keep` does not have.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for number in 0..64 {
        // SAFETY: no pointers. EINVAL: the kernel has no capability of this number.
        let has = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number as libc::c_ulong, 0, 0, 0) };
        if has < 0 {
            break;
        }
        if has == 1 && keep & (1 << number) == 0 {
            prctl(libc::PR_CAPBSET_DROP, number, 0)?;
        }
    }
    Ok(())
}

/// setgroups(2).
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe `groups`.
    check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// setresgid(2) and setresuid(2); permitted capabilities are kept (PR_SET_KEEPCAPS).
pub fn set_ids(uid: u32, gid: u32) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, 1, 0)?;
    // SAFETY: no pointers.
    unsafe {
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))?;
    }
    Ok(())
}

/// capset(2), then the ambient set; the bounding set is that of `limit_bounding`.
pub fn set_capabilities(wanted: &Capabilities) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Part {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: VERSION_3, pid: 0 };
    let part = |shift: u32| Part {
        effective: (wanted.effective >> shift) as u32,
        permitted: (wanted.permitted >> shift) as u32,
        inheritable: (wanted.inheritable >> shift) as u32,
    };
    let parts = [part(0), part(32)];
    // SAFETY: header and parts are the kernel's structs of version 3 (capset(2)), two parts.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &header, parts.as_ptr()) })?;
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    for number in (0..64).filter(|number| wanted.ambient & (1 << number) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, number)?;
    }
    Ok(())
}

/// setrlimit(2) by the number of the resource.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is valid and only read; an unknown resource is an error.
    check(unsafe { libc::setrlimit(resource as _, &limit) })?;
    Ok(())
}

/// seccomp(2) SECCOMP_SET_MODE_FILTER with a classic BPF program, as the OCI runtimes install it (SPEC_ALLOW: no
/// mitigation of speculation beyond the host's). EINVAL: the bytes are no program.
pub fn install_filter(program: &[u8]) -> io::Result<()> {
    const FILTER: libc::c_ulong = 1;
    const SPEC_ALLOW: libc::c_ulong = 4;
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|word| libc::sock_filter {
            code: u16::from_ne_bytes([word[0], word[1]]),
            jt: word[2],
            jf: word[3],
            k: u32::from_ne_bytes([word[4], word[5], word[6], word[7]]),
        })
        .collect();
    let Ok(len) = u16::try_from(instructions.len()) else { return Err(io::Error::from_raw_os_error(libc::EINVAL)) };
    if len == 0 || program.len() % 8 != 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let described = libc::sock_fprog { len, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: `described` points to `len` instructions, which the kernel copies and checks.
    check_long(unsafe { libc::syscall(libc::SYS_seccomp, FILTER, SPEC_ALLOW, &described) })?;
    Ok(())
}

/// fchown(2) of standard input, output or error; terminals and devices are left as they are, and so is what this user
/// namespace has no say in.
pub fn give_stream(standard: i32, uid: u32, gid: u32) -> io::Result<()> {
    let mut info = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `info` is read only after the kernel filled it; any number may be asked for.
    unsafe {
        check(libc::fstat(standard, info.as_mut_ptr()))?;
        if info.assume_init().st_mode & libc::S_IFMT == libc::S_IFCHR {
            return Ok(());
        }
        match check(libc::fchown(standard, uid, gid)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM | libc::EROFS)) => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

fn prctl(option: i32, first: u64, second: u64) -> io::Result<()> {
    // SAFETY: none of the options used here takes a pointer.
    check(unsafe { libc::prctl(option, first as libc::c_ulong, second as libc::c_ulong, 0, 0) })?;
    Ok(())
}

/// What execve(2) answered for each place where a program may be, in order; returns only when none could be started:
/// the error that says most. `argv` and `env` hold no NUL.
pub fn execute(places: &[String], argv: &[String], env: &[String]) -> io::Error {
    let (Ok((_argv, argv)), Ok((_env, env))) = (crate::process::c_strings(argv), crate::process::c_strings(env)) else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    let mut worst = io::Error::from_raw_os_error(libc::ENOENT);
    for place in places {
        let Ok(program) = crate::c_str(place) else { continue };
        // SAFETY: all strings are NUL-terminated, both vectors end in null; they outlive the call.
        unsafe { libc::execve(program.as_ptr(), argv.as_ptr().cast(), env.as_ptr().cast()) };
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) {
            worst = error;
            if worst.raw_os_error() != Some(libc::EACCES) {
                break;
            }
        }
    }
    worst
}
