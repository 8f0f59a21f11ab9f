//! Whether the platform works on this host, and what a call costs: a guest that does nothing but call.

use std::io;
use std::time::Instant;

use drupe_appkernel_abi::{Errno, Registers};
use drupe_appkernel_core::platform::{Event, MemoryOp, Platform, ThreadId, Trap};
use drupe_appkernel_hostsys::kvm::Kvm;
use drupe_appkernel_kvm::probe::{self as kvm_probe, Figures};

use crate::trap::Stubs;

const PAGE: u64 = 0x40_0000;
/// again: mov eax, 110 (getppid); syscall; jmp again
const CODE: &[u8] = &[0xb8, 110, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
const GETPPID: u64 = 110;
const CALLS: u32 = 5_000;
const PATIENCE_NS: u64 = 5_000_000_000;

/// Figures in JSON: nanoseconds for the first stub process, a fresh space, a call.
pub fn run() -> io::Result<String> {
    let begun = Instant::now();
    let mut stubs = Stubs::start()?;
    let started = begun.elapsed();
    let (thread, fresh) = guest(&mut stubs).map_err(|errno| io::Error::from_raw_os_error(errno.0))?;
    let call = calls(&mut stubs, thread).map_err(|errno| io::Error::from_raw_os_error(errno.0))?;
    let (start, space) = (started.as_nanos(), fresh.as_nanos());
    Ok(format!(r#"{{"platform":"trap","start_ns":{start},"space_ns":{space},"call_ns":{call}}}"#))
}

/// The same of a machine of KVM's, and whether it is fast enough to be worth having. Err: why there is none.
pub fn run_kvm() -> Result<String, String> {
    let kvm = Kvm::open().map_err(|error| format!("/dev/kvm: {error}"))?;
    let figures = kvm_probe::run(&kvm).map_err(|error| format!("a guest does not run: {error}"))?;
    let Figures { start_ns, call_ns } = figures;
    let (fast, limit) = (figures.is_fast(), kvm_probe::CALL_LIMIT_NS);
    Ok(format!(r#"{{"platform":"kvm","start_ns":{start_ns},"call_ns":{call_ns},"limit_ns":{limit},"fast":{fast}}}"#))
}

fn guest(stubs: &mut Stubs) -> drupe_appkernel_abi::Result<(ThreadId, std::time::Duration)> {
    let begun = Instant::now();
    let (space, thread) = stubs.new_space()?;
    let fresh = begun.elapsed();
    stubs.change(thread, &[MemoryOp::MapAnonymous { address: PAGE, size: 0x1000, protection: 7, shared: false }])?;
    stubs.write(space, PAGE, CODE)?;
    let registers = Registers { rip: PAGE, rsp: PAGE + 0xff0, eflags: 0x202, ..Registers::default() };
    stubs.reset(thread, &registers)?;
    Ok((thread, fresh))
}

fn calls(stubs: &mut Stubs, thread: ThreadId) -> drupe_appkernel_abi::Result<u128> {
    let begun = Instant::now();
    let mut events = Vec::new();
    for round in 0..CALLS {
        stubs.resume(thread, (round > 0).then_some(1), &[])?;
        events.clear();
        stubs.wait(Some(PATIENCE_NS), &mut events)?;
        match events[..] {
            [Event::Trap(who, Trap::Call { number: GETPPID, .. })] if who == thread => {}
            _ => return Err(Errno::PROTO),
        }
    }
    Ok(begun.elapsed().as_nanos() / u128::from(CALLS))
}
