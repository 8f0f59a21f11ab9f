//! Where things lie in a stub process, and how one thread's slot is divided. The kernel and the stub's code share it.

/// Addresses below are the guest's; the stub's code and its slots lie above.
pub const GUEST_END: u64 = 0x7dff_0000_0000;

/// One page of code, the same in every stub.
pub const CODE: u64 = 0x7e00_0000_0000;
pub const CODE_SIZE: u64 = 0x1000;

/// The slots of a process's threads: memory that it shares with the kernel, and with no other process.
pub const SLOTS: u64 = 0x7e00_1000_0000;
pub const SLOT_SIZE: u64 = 0x1_0000;
/// Threads of one process, at most.
pub const SLOT_COUNT: u64 = 1024;
pub const SLOTS_SIZE: u64 = SLOT_SIZE * SLOT_COUNT;

// A slot's header, written by the stub up to `OP_COUNT`, by the kernel from there on.
pub const READY: usize = 0x00;
pub const FRAME: usize = 0x08;
pub const SIGNAL: usize = 0x10;
/// No signal: a call by way of a trampoline, whose registers are at `FAST`.
pub const SIGNAL_FAST_CALL: i32 = 0x100;
pub const INFO: usize = 0x18;
pub const OP_COUNT: usize = 0x20;
/// An operation failed while resuming: the guest saw its error.
pub const FAILED: usize = 0x28;
/// A stack_t for sigaltstack(2).
pub const ALTSTACK: usize = 0x30;

/// Whose turn it is, 32 bits: see TURN_*. And the answer to a stub that has not rung the doorbell.
pub const TURN: usize = 0x48;
pub const ANSWER: usize = 0x50;
/// The stub has trapped, and spins until the turn is another.
pub const TURN_RANG: u32 = 2;
/// It has spun long enough, and sleeps in futex(2) on the turn.
pub const TURN_SLEEPS: u32 = 3;
/// In guest code, and the kernel watches the turn: no doorbell is needed.
pub const TURN_WATCHED: u32 = 4;
/// In guest code, and the kernel must be called by the doorbell.
pub const TURN_UNWATCHED: u32 = 5;
/// It will take long: the stub shall not spin.
pub const TURN_PARK: u32 = 6;
/// A kick came during a call without a signal.
pub const KICKED: usize = 0x68;
/// What the stub has copied for the kernel while it was on its way there: guest address, bytes.
pub const IN_ADDRESS: usize = 0x58;
pub const IN_SIZE: usize = 0x60;
/// How often a stub looks for its answer before it sleeps; each look is a PAUSE, up to 50 ns. The kernel says when it
/// will take longer (TURN_PARK).
pub const SPINS: u32 = 1000;
/// How often a thread looks at a futex before it sleeps.
pub const LOOKS: u32 = 400;

/// System calls that the stub makes for the kernel: number, six arguments, result.
pub const OPS: usize = 0x100;
pub const OP_SIZE: usize = 64;
pub const OP_MAX: usize = 32;

/// The registers of a thread that has called without a signal, laid out as a frame.
pub const FAST: usize = 0xa00;

/// Bytes from the guest's memory, put here by the stub as its table (inputs.rs) says.
pub const IN_DATA: usize = 0x1000;
pub const IN_MAX: usize = 0x2000;
/// Of strings, which end with a zero.
pub const IN_TEXT_MAX: usize = 0x400;
/// Bytes for the guest's memory, which the stub puts there: operations with the number `CALL_COPY`.
pub const OUT_DATA: usize = 0x3000;
pub const OUT_MAX: usize = 0x5000;

/// Where in the stub's page the table of inputs lies: 16 bits for each system call.
pub const INPUTS: usize = 0xc00;

/// The stack on which the host delivers signals; frames on it are how the kernel sees registers.
pub const STACK: usize = 0x8000;
pub const STACK_SIZE: usize = 0x8000;

/// "Here I am", a number that no Linux call has: the thread sleeps in it until the kernel answers.
pub const CALL_DOORBELL: u32 = 0x5d00;
/// The same, of a process just forked, which must get slots of its own.
pub const CALL_BORN: u32 = 0x5d01;
/// An operation that the stub does itself: copy to a guest's address, from an address, so many bytes.
pub const CALL_COPY: u32 = 0x5d02;
/// "Give me a frame": traps.
pub const CALL_FRAME: u32 = 0x5d03;

/// Answers to a doorbell: run the operations, then go on in the guest or ring again.
pub const ANSWER_RESUME: i64 = 0;
pub const ANSWER_RING: i64 = 1;

/// The signal that takes a thread out of guest code.
pub const KICK: i32 = 23; // SIGURG: ignored by default, so a late one never kills

/// Offsets in the frame that rt_sigreturn(2) reads, from its ucontext on (arch/x86/include/uapi/asm/sigcontext.h).
pub const UC_STACK: usize = 16;
pub const UC_REGISTERS: usize = 40;
pub const UC_FPSTATE: usize = 224;
pub const UC_SIGMASK: usize = 296;
pub const UC_SIZE: usize = 304;
