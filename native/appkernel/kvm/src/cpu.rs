//! A processor of the machine: into guest code, and out of it with what has happened.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use drupe_appkernel_abi::Registers;
use drupe_appkernel_core::platform::{SpaceId, Trap};
use drupe_appkernel_hostsys::arena::Arena;
use drupe_appkernel_hostsys::kvm::{Exit, Kick, Vcpu};
use drupe_appkernel_hostsys::kvm_types::{CpuidEntry, Regs, Segment, Sregs, Table};

use crate::area::{PROT_EXEC, PROT_READ, PROT_WRITE};
use crate::frames::Frames;
use crate::memory::{Memory, Refusal, GUEST_END};
use crate::state::{self, Features};
use crate::text;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const FMASK: u32 = 0xc000_0084;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
/// Flags that are off in ring 0: trap, interrupt, direction, alignment, nested task, I/O level.
const MASKED_FLAGS: u64 = 0x4_7700;
/// Flags that guest code may have, and those that it always has.
const USER_FLAGS: u64 = 0x24_4dd5;
const ALWAYS_FLAGS: u64 = 0x202;

const CR0: u64 = 0x8005_0033; // PE MP ET NE WP AM PG
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 18; // PAE OSFXSR OSXMMEXCPT OSXSAVE
const CR4_FSGSBASE: u64 = 1 << 16;
const EFER: u64 = 0xd01; // SCE LME LMA NXE

const SI_KERNEL: i32 = 0x80;
/// How often the host may say that memory is not there before it is believed.
const TRIES: u32 = 64;

/// A thread's state beside its general registers.
#[derive(Clone)]
pub struct Extended {
    pub fs: u64,
    pub gs: u64,
    pub area: Box<[u8; state::AREA]>,
}

/// Why a run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Trap(Trap),
    /// Somebody has asked for it.
    Kicked,
    /// Memory is used up.
    NoMemory,
    /// It cannot be run.
    Broken,
}

/// Takes a processor out of its guest.
pub struct Hook {
    pub kick: Kick,
    pub wanted: AtomicBool,
    /// Roots of page tables that it has loaded, or may just be loading.
    pub roots: [AtomicU64; 2],
}

/// One processor.
pub struct Cpu {
    vcpu: Vcpu,
    index: u64,
    arena: Arc<Arena>,
    /// Where its page lies in there.
    page: u64,
    /// What its system registers are in ring 0.
    sregs: Sregs,
    hook: Arc<Hook>,
    space: Option<SpaceId>,
}

fn segment(selector: u16, kind: u8) -> Segment {
    let code = kind & 8 != 0;
    Segment {
        selector,
        kind,
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        l: code.into(),
        db: (!code).into(),
        dpl: (selector & 3) as u8,
        ..Segment::default()
    }
}

fn system_registers(before: &Sregs, index: u64, cr3: u64, bases: bool) -> Sregs {
    let none = Segment { unusable: 1, ..Segment::default() };
    let task = Segment {
        base: text::cpu_page(index),
        limit: text::TSS_BYTES - 1,
        selector: 0x38,
        kind: 11,
        present: 1,
        ..Segment::default()
    };
    let table = |base, limit| Table { base, limit, ..Table::default() };
    Sregs {
        cs: segment(text::KERNEL_CODE, 11),
        ss: segment(text::KERNEL_DATA, 3),
        ds: none,
        es: none,
        fs: none,
        gs: none,
        ldt: none,
        tr: task,
        gdt: table(text::GDT, text::GDT_BYTES - 1),
        idt: table(text::IDT, 0xfff),
        cr0: CR0,
        cr2: 0,
        cr3,
        cr4: CR4 | if bases { CR4_FSGSBASE } else { 0 },
        efer: EFER,
        ..*before
    }
}

impl Cpu {
    /// `page`: its page in the arena, filled; `cr3`: the root of a space with nothing but the kernel's part.
    pub fn new(
        frames: &Frames,
        index: u64,
        page: u64,
        cr3: u64,
        cpuid: &[CpuidEntry],
        features: &Features,
    ) -> io::Result<Cpu> {
        let vcpu = frames.vm().create_cpu(index as u32)?;
        vcpu.set_cpuid(cpuid)?;
        let sregs = system_registers(&vcpu.sregs()?, index, cr3, features.bases);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_features(features.xcr0)?;
        let star = u64::from(text::KERNEL_CODE) << 32 | 0x23 << 48;
        vcpu.set_msrs([(STAR, star), (LSTAR, text::CALL), (CSTAR, text::OLD_CALL), (FMASK, MASKED_FLAGS)])?;
        let hook =
            Arc::new(Hook { kick: vcpu.kick(), wanted: AtomicBool::new(false), roots: [cr3, cr3].map(AtomicU64::new) });
        Ok(Cpu { vcpu, index, arena: Arc::clone(&frames.arena), page, sregs, hook, space: None })
    }

    pub fn hook(&self) -> Arc<Hook> {
        Arc::clone(&self.hook)
    }

    pub fn extended(&self) -> io::Result<Extended> {
        let [fs, gs] = self.vcpu.msrs([FS_BASE, GS_BASE])?;
        Ok(Extended { fs, gs, area: self.vcpu.xsave()? })
    }

    pub fn set_extended(&self, state: &Extended) -> io::Result<()> {
        self.vcpu.set_msrs([(FS_BASE, state.fs), (GS_BASE, state.gs)])?;
        self.vcpu.set_xsave(&state.area)
    }

    /// Run guest code until something happens that is not ours to answer.
    pub fn run(&mut self, memory: &Mutex<Memory>, space: SpaceId, registers: &mut Registers) -> io::Result<Outcome> {
        let mut tries = 0;
        loop {
            if self.hook.wanted.load(Ordering::SeqCst) {
                return Ok(Outcome::Kicked);
            }
            let lock = || memory.lock().unwrap_or_else(PoisonError::into_inner);
            if self.space != Some(space) {
                let cr3 = lock().cr3(space).map_err(|errno| io::Error::from_raw_os_error(errno.0))?;
                self.sregs.cr3 = cr3;
                self.hook.roots[1].store(cr3, Ordering::SeqCst);
            }
            let entry = self.prepare(space, registers)?;
            let (exit, regs) = self.enter(&entry, registers)?;
            match exit {
                Exit::Port(port) => match self.port(port, &regs, registers)? {
                    Left::Trap(trap) => return Ok(Outcome::Trap(trap)),
                    Left::Page { address, code } => match page_fault(&mut lock(), space, address, code) {
                        Ok(()) => tries = 0,
                        Err(Refusal::NoMemory) => return Ok(Outcome::NoMemory),
                        Err(refusal) => return Ok(Outcome::Trap(fault_of(refusal, address))),
                    },
                },
                Exit::Interrupted => {}
                // A page was being taken away from the machine while it was used; or the file behind it is shorter now.
                Exit::NoMemory if tries < TRIES => {
                    tries += 1;
                    let _gone = lock().look_at_files(space);
                }
                Exit::NoMemory => {
                    return Ok(Outcome::Trap(Trap::Fault { signal: libc_signal::BUS, code: 2, address: 0 }))
                }
                Exit::Broken(_) => return Ok(Outcome::Broken),
            }
        }
    }

    /// The registers by which ring 0 goes to guest code.
    fn prepare(&mut self, space: SpaceId, user: &Registers) -> io::Result<Regs> {
        let frame = [
            user.rip,
            text::USER_CODE.into(),
            user.eflags & USER_FLAGS | ALWAYS_FLAGS,
            user.rsp,
            text::USER_DATA.into(),
        ];
        let end = text::cpu_page(self.index) + 0x1000;
        for (at, word) in frame.into_iter().enumerate() {
            self.arena.store(self.page + 0x1000 - 40 + 8 * at as u64, word)?;
        }
        let mut regs = kernel_regs(user);
        (regs.rip, regs.rsp, regs.rflags) = (text::ENTER, end - 40, 2);
        if self.space != Some(space) {
            self.arena.store(self.page + 0x1000 - 48, user.rax)?;
            (regs.rip, regs.rsp, regs.rax) = (text::ENTER_SPACE, end - 48, self.sregs.cr3);
            self.space = Some(space);
        }
        Ok(regs)
    }

    /// Enter; and when a signal has come, see to it that the processor is in ring 0 again, and the registers are right.
    fn enter(&mut self, entry: &Regs, user: &mut Registers) -> io::Result<(Exit, Regs)> {
        let (mut exit, mut regs) = self.vcpu.run(Some(entry))?;
        if !(text::TEXT..=text::ENTER_SPACE).contains(&regs.rip) {
            self.hook.roots[0].store(self.sregs.cr3, Ordering::SeqCst);
        }
        while matches!(exit, Exit::Interrupted | Exit::NoMemory) {
            if regs.rip < text::KERNEL {
                *user = user_regs(&regs);
                self.back_to_ring_0()?;
                return Ok((exit, regs));
            }
            if (text::TEXT..text::LEAVE).contains(&regs.rip) {
                // It has not been in guest code; its space may not be loaded.
                self.space = None;
                return Ok((exit, regs));
            }
            // On its way out: let it come.
            self.hook.kick.set(false);
            (exit, regs) = self.vcpu.run(None)?;
        }
        Ok((exit, regs))
    }

    fn back_to_ring_0(&mut self) -> io::Result<()> {
        let now = self.vcpu.sregs()?;
        let [fs, gs] = [now.fs.base, now.gs.base];
        self.vcpu.set_sregs(&Sregs { cr3: now.cr3, apic_base: now.apic_base, ..self.sregs })?;
        self.vcpu.set_msrs([(FS_BASE, fs), (GS_BASE, gs)])
    }

    /// What a write to a port says.
    fn port(&self, port: u16, regs: &Regs, user: &mut Registers) -> io::Result<Left> {
        if matches!(port, text::PORT_CALL | text::PORT_OLD_CALL) {
            *user = Registers { rip: regs.rcx, eflags: regs.r11, ..user_regs(regs) };
            let number = if port == text::PORT_CALL { regs.rax & 0xffff_ffff } else { u64::MAX };
            return Ok(Left::Trap(call(number, user)));
        }
        let mut at = regs.rsp.wrapping_sub(text::cpu_page(self.index));
        let mut word = || {
            let inside = at % 8 == 0 && at < 0x1000;
            let value = if inside { self.arena.load(self.page + at) } else { Ok(0) };
            at = at.wrapping_add(8);
            value
        };
        let mut address = 0;
        let mut user_now = user_regs(regs);
        if port == text::VECTOR_PAGE_FAULT {
            address = regs.rax;
            user_now.rax = word()?;
        }
        let code = if text::has_code(port) { word()? } else { 0 };
        let [rip, cs, eflags, rsp] = [word()?, word()?, word()?, word()?];
        if cs != text::USER_CODE.into() {
            // Ring 0 could not go where the registers said: as if the guest had jumped there.
            return Ok(Left::Trap(Trap::Fault { signal: libc_signal::SEGV, code: SI_KERNEL, address: 0 }));
        }
        if rip == text::CALL && address == rip {
            // Some hosts (a KVM that keeps page tables for a guest without the processor's help) go there without a change of
            // ring. A guest that jumps there has made the call that its registers say, and no other.
            *user = Registers { rip: regs.rcx, eflags: regs.r11, rsp, ..user_now };
            return Ok(Left::Trap(call(user_now.rax & 0xffff_ffff, user)));
        }
        *user = Registers { rip, eflags, rsp, ..user_now };
        if port == text::VECTOR_PAGE_FAULT {
            return Ok(Left::Page { address, code });
        }
        if port == text::VECTOR_OLD_CALL {
            return Ok(Left::Trap(call(u64::MAX, user)));
        }
        let area = if matches!(port, 16 | 19) { Some(self.vcpu.xsave()?) } else { None };
        Ok(Left::Trap(exception(port, rip, area.as_deref())))
    }
}

/// How guest code was left.
enum Left {
    Trap(Trap),
    Page { address: u64, code: u64 },
}

/// Numbers of signals.
mod libc_signal {
    pub const ILL: i32 = 4;
    pub const TRAP: i32 = 5;
    pub const BUS: i32 = 7;
    pub const FPE: i32 = 8;
    pub const SEGV: i32 = 11;
}

fn call(number: u64, user: &Registers) -> Trap {
    Trap::Call { number, args: [user.rdi, user.rsi, user.rdx, user.r10, user.r8, user.r9] }
}

/// An exception as Linux's signal (arch/x86/kernel/traps.c).
fn exception(vector: u16, rip: u64, area: Option<&[u8; state::AREA]>) -> Trap {
    let (signal, code, address) = match vector {
        0 => (libc_signal::FPE, 1, rip),
        1 => (libc_signal::TRAP, 2, rip),
        3 => (libc_signal::TRAP, SI_KERNEL, 0),
        6 => (libc_signal::ILL, 2, rip),
        11 | 12 => (libc_signal::BUS, SI_KERNEL, 0),
        16 | 19 => (libc_signal::FPE, area.map_or(0, |area| state::float_code(vector, area)), rip),
        17 => (libc_signal::BUS, 1, 0),
        _ => (libc_signal::SEGV, SI_KERNEL, 0),
    };
    Trap::Fault { signal, code, address }
}

fn page_fault(memory: &mut Memory, space: SpaceId, address: u64, code: u64) -> Result<(), Refusal> {
    if address >= GUEST_END {
        return Err(Refusal::Nothing);
    }
    let access = match code {
        code if code & 0x10 != 0 => PROT_EXEC,
        code if code & 2 != 0 => PROT_WRITE,
        _ => PROT_READ,
    };
    memory.touch(space, address, access, true).map(drop)
}

fn fault_of(refusal: Refusal, address: u64) -> Trap {
    let (signal, code) = match refusal {
        Refusal::Denied => (libc_signal::SEGV, 2),
        Refusal::BeyondFile => (libc_signal::BUS, 2),
        _ => (libc_signal::SEGV, 1),
    };
    Trap::Fault { signal, code, address }
}

fn kernel_regs(r: &Registers) -> Regs {
    let Registers { r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags } = *r;
    Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags: eflags }
}

fn user_regs(r: &Regs) -> Registers {
    let Regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags } = *r;
    Registers { r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags: rflags }
}
