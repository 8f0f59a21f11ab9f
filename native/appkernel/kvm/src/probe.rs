//! Whether a machine is worth having: not whether there is one, but how fast its guests are. A host may well have the API and
//! emulate every instruction of ring 0.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drupe_appkernel_abi::{Errno, Registers, Result};
use drupe_appkernel_core::platform::{Event, MemoryOp, Platform, Trap};
use drupe_appkernel_hostsys::kvm::Kvm;
use drupe_appkernel_hostsys::poll::Poller;

use crate::Machines;

const PAGE: u64 = 0x40_0000;
/// again: mov eax, 110 (getppid); syscall; jmp again
const CODE: &[u8] = &[0xb8, 110, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
const GETPPID: u64 = 110;
const CALLS: u32 = 400;
const MEMORY_BYTES: u64 = 16 << 20;
/// What a system call of the guest's may cost, until this process has it, at most: with the processor's help it is a few
/// microseconds, without it is a multiple of what the trap platform takes.
pub const CALL_LIMIT_NS: u64 = 15_000;
/// However slow it is, it is known by then.
const PATIENCE: Duration = Duration::from_millis(200);

/// Figures, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub start_ns: u64,
    pub call_ns: u64,
}

impl Figures {
    pub fn is_fast(&self) -> bool {
        self.call_ns <= CALL_LIMIT_NS
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A guest that does nothing but call: through ring 0 and out of the machine, each time.
pub fn run(kvm: &Kvm) -> io::Result<Figures> {
    let begun = Instant::now();
    let mut machine = Machines::start(kvm, Arc::new(Poller::new()?), 1, MEMORY_BYTES)?;
    let start_ns = nanoseconds(begun.elapsed());
    let call_ns = calls(&mut machine).map_err(|errno| io::Error::from_raw_os_error(errno.0))?;
    Ok(Figures { start_ns, call_ns })
}

/// The shortest of some rounds: what else the host does is none of the machine's fault.
fn calls(machine: &mut Machines) -> Result<u64> {
    let (space, thread) = machine.new_space()?;
    machine.change(thread, &[MemoryOp::MapAnonymous { address: PAGE, size: 0x1000, protection: 7, shared: false }])?;
    machine.write(space, PAGE, CODE)?;
    machine.reset(thread, &Registers { rip: PAGE, rsp: PAGE + 0xff0, eflags: 0x202, ..Registers::default() })?;
    let (begun, mut best) = (Instant::now(), u64::MAX);
    let mut events = Vec::new();
    for round in 0..CALLS {
        events.clear();
        machine.resume(thread, (round > 0).then_some(1), &[])?;
        while events.is_empty() && begun.elapsed() < PATIENCE {
            machine.wait(Some(nanoseconds(PATIENCE)), &mut events)?;
        }
        match events[..] {
            [Event::Trap(who, Trap::Call { number: GETPPID, .. })] if who == thread => {}
            [] => return Ok(best.min(nanoseconds(PATIENCE))), // it takes longer than we wait
            _ => return Err(Errno::PROTO),
        }
        best = best.min(machine.last_run_ns(thread)?);
        if begun.elapsed() > PATIENCE {
            break;
        }
    }
    Ok(best)
}
