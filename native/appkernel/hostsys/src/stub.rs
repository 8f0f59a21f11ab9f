//! The code that runs in stub processes: one page of assembly, position-independent, that uses no stack.
//!
//! Every signal of a stub lands in `handler`, on the thread's slot. It notes where its frame is and rings the
//! doorbell; the answer says what to do: make the operations in the slot, then return to the guest or ring again. A call
//! from a trampoline lands in `fast`, without a signal. Guest code can jump anywhere in here. That gives it nothing: what the filter (filter.rs) lets this page do is harmless to
//! others, or has to be what the kernel is waiting for.

use std::arch::global_asm;

use crate::{inputs, layout};

global_asm!(
    ".pushsection .rodata.drupe_stub, \"a\"",
    ".globl drupe_stub_begin, drupe_stub_end, drupe_stub_handler, drupe_stub_enter",
    ".hidden drupe_stub_begin, drupe_stub_end, drupe_stub_handler, drupe_stub_enter",
    ".globl drupe_stub_fast, drupe_stub_call, drupe_stub_leave, drupe_stub_left, drupe_stub_look, drupe_stub_looked",
    ".hidden drupe_stub_fast, drupe_stub_call, drupe_stub_leave, drupe_stub_left, drupe_stub_look, drupe_stub_looked",
    ".balign 16",
    "drupe_stub_begin:",
    // handler(signal, info, ucontext), on the slot's stack
    "drupe_stub_handler:",
    "cmp edi, 11", // SIGSEGV
    "je 30f",
    "cmp edi, 7", // SIGBUS
    "je 30f",
    "cmp edi, {kick}",
    "je 34f",
    "29:",
    "mov rbx, rsp",
    "and rbx, -{slot_size}",
    "mov [rbx + {frame}], rdx",
    "mov [rbx + {signal}], rdi",
    "mov [rbx + {info}], rsi",
    "mov qword ptr [rbx + {in_size}], 0",
    "lea r9, [rip + 49f]",
    "cmp edi, 31", // SIGSYS
    "je 40f",
    "49:",
    // Watched by the kernel? Then spin until it has answered, then sleep.
    "mov eax, {rang}",
    "xchg [rbx + {turn}], eax",
    "cmp eax, {watched}",
    "je 26f",
    // rbx: the slot
    "drupe_stub_enter:",
    "2:",
    "mov eax, {doorbell}",
    "mov rdi, rbx",
    "syscall",
    "mov r12, rax",
    "jmp 24f",
    // A fault: of one of the copies below? Then go on after it. rdx: the ucontext
    "30:",
    "mov rax, [rdx + {uc_rip}]",
    "lea r8, [rip + 50f]",
    "lea rcx, [rip + 51f]",
    "cmp rax, r8",
    "je 33f",
    "lea r8, [rip + 72f]",
    "lea rcx, [rip + 73f]",
    "cmp rax, r8",
    "je 33f",
    "lea r8, [rip + 43f]",
    "lea rcx, [rip + 45f]",
    "cmp rax, r8",
    "jb 29b",
    "cmp rax, rcx",
    "jae 29b",
    "33:",
    "mov [rdx + {uc_rip}], rcx",
    "35:",
    "mov rsp, rdx",
    "mov eax, 15", // rt_sigreturn
    "syscall",
    "ud2",
    // The kick: a thread in a fast call takes it when that is over. One that has just come takes it at its call, which may
    // be one that the host does: there it would sleep, and nobody would tell it.
    "34:",
    "mov rax, [rdx + {uc_rip}]",
    "lea rcx, [rip + drupe_stub_call]",
    "cmp rax, rcx",
    "jb 29b",
    "lea rcx, [rip + drupe_stub_leave]",
    "cmp rax, rcx",
    "jae 29b",
    "mov rbx, rsp",
    "and rbx, -{slot_size}",
    "mov qword ptr [rbx + {kicked}], 1",
    "jmp 35b",
    // A call without a signal: from a trampoline (core's rewrite.rs), which has put the address of a system call
    // instruction into r11. rcx and r11 are free, as after any system call. The slot is where gs points to, unless the
    // guest has taken gs; then, and when the call is one that the host does, the instruction does it.
    "drupe_stub_fast:",
    "cmp eax, 202", // futex, sched_yield, madvise: the host's (filter.rs)
    "je drupe_stub_look",
    "cmp eax, 24",
    "je 60f",
    "cmp eax, 28",
    "je 60f",
    "rdgsbase rcx",
    "shr rcx, {slots_shift}",
    "cmp ecx, {slots_high}",
    "jne 60f",
    "rdgsbase rcx",
    "jmp 61f",
    "60:",
    "jmp r11",
    "drupe_stub_call:",
    "61:",
    "mov [rcx + {fast} + 0x28], r8",
    "mov [rcx + {fast} + 0x30], r9",
    "mov [rcx + {fast} + 0x38], r10",
    "add r11, 2",
    "mov [rcx + {fast} + 0x40], r11",
    "mov [rcx + {fast} + 0x48], r12",
    "mov [rcx + {fast} + 0x50], r13",
    "mov [rcx + {fast} + 0x58], r14",
    "mov [rcx + {fast} + 0x60], r15",
    "mov [rcx + {fast} + 0x68], rdi",
    "mov [rcx + {fast} + 0x70], rsi",
    "mov [rcx + {fast} + 0x78], rbp",
    "mov [rcx + {fast} + 0x80], rbx",
    "mov [rcx + {fast} + 0x88], rdx",
    "mov [rcx + {fast} + 0x90], rax",
    "mov [rcx + {fast} + 0x98], r11",
    "mov [rcx + {fast} + 0xa0], rsp",
    "mov [rcx + {fast} + 0xa8], r11",
    "mov qword ptr [rcx + {fast} + 0xb0], 0x202",
    "mov rbx, rcx",
    "lea rdx, [rbx + {fast}]",
    "mov [rbx + {frame}], rdx",
    "mov qword ptr [rbx + {signal}], {fast_call}",
    "xor ecx, ecx",
    "mov [rbx + {in_size}], rcx",
    "mov [rbx + {kicked}], rcx",
    "lea r9, [rip + 62f]",
    "jmp 40f",
    "62:",
    "mov eax, {watched}",
    "mov ecx, {rang}",
    "lock cmpxchg [rbx + {turn}], ecx",
    "je 26f",
    // Nobody watches: the doorbell. A kick has it begun anew, here (SA_RESTART), and is taken when the call is over.
    "mov eax, {doorbell}",
    "mov rdi, rbx",
    "syscall",
    "mov r12, rax",
    "jmp 24f",
    // The hand-off.
    "26:",
    "mov ecx, {spins}",
    "20:",
    "mov eax, [rbx + {turn}]",
    "cmp eax, {watched}",
    "jae 22f",
    "pause",
    "dec ecx",
    "jnz 20b",
    "mov eax, {rang}",
    "21:",
    "mov edx, {sleeps}",
    "lock cmpxchg [rbx + {turn}], edx", // eax: what the turn was
    "jne 22f",
    "23:",
    "mov eax, 202", // futex
    "lea rdi, [rbx + {turn}]",
    "xor esi, esi", // FUTEX_WAIT
    "mov edx, {sleeps}",
    "xor r10d, r10d",
    "syscall",
    "mov eax, [rbx + {turn}]",
    "cmp eax, {sleeps}",
    "je 23b",
    "22:",
    "cmp eax, {park}",
    "je 21b",
    "mov r12, [rbx + {answer}]",
    "24:",
    "mov r13d, [rbx + {op_count}]",
    "lea r14, [rbx + {ops}]",
    "3:",
    "test r13d, r13d",
    "jz 5f",
    "mov rax, [r14]",
    "mov rdi, [r14 + 8]",
    "mov rsi, [r14 + 16]",
    "mov rdx, [r14 + 24]",
    "mov r10, [r14 + 32]",
    "mov r8, [r14 + 40]",
    "mov r9, [r14 + 48]",
    "mov r15, rax",
    "cmp eax, {copy}",
    "je 52f",
    "syscall",
    "cmp r15d, 56", // clone: two return
    "jne 4f",
    "test rax, rax",
    "jz 6f",
    "4:",
    "mov [r14 + 56], rax",
    "cmp rax, -4095",
    "jae 8f",
    "add r14, 64",
    "dec r13d",
    "jmp 3b",
    // A copy for the kernel, to the guest's memory.
    "52:",
    "mov rcx, rdx",
    "cld",
    "50:",
    "rep movsb",
    "xor eax, eax",
    "jmp 4b",
    "51:",
    "mov rax, -14", // EFAULT
    "jmp 4b",
    // A copy from it: bring along what the call reads, if the table says so. rdx: the ucontext, r9: where to go on
    "40:",
    "mov eax, [rdx + {uc_rax}]",
    "cmp eax, {inputs_count}",
    "jae 46f",
    "lea rcx, [rip + drupe_stub_begin + {inputs}]",
    "movzx eax, word ptr [rcx + 2 * rax]",
    "test eax, eax",
    "jz 46f",
    "mov ecx, eax",
    "and ecx, 31",
    "mov rsi, [rdx + 8 * rcx + {uc_registers}]",
    "mov [rbx + {in_address}], rsi",
    "lea rdi, [rbx + {in_data}]",
    "cld",
    "test ah, 0x80", // TEXT
    "jnz 42f",
    "mov ecx, eax",
    "shr ecx, 10",
    "and ecx, 7",
    "mov r8d, 1",
    "test ah, 0x40", // FIXED
    "jnz 41f",
    "shr eax, 5",
    "and eax, 31",
    "mov r8, [rdx + 8 * rax + {uc_registers}]",
    "cmp r8, {in_max}",
    "ja 46f",
    "41:",
    "shl r8, cl",
    "cmp r8, {in_max}",
    "ja 46f",
    "mov rcx, r8",
    "jmp 44f",
    "42:",
    "mov ecx, {in_text_max}",
    "43:", // from here to 45 a fault means: this far and no further
    "mov al, [rsi]",
    "mov [rdi], al",
    "inc rsi",
    "inc rdi",
    "test al, al",
    "jz 45f",
    "dec ecx",
    "jnz 43b",
    "jmp 45f",
    "44:",
    "rep movsb",
    "45:",
    "lea rax, [rbx + {in_data}]",
    "sub rdi, rax",
    "mov [rbx + {in_size}], rdi",
    "46:",
    "jmp r9",
    // an operation failed: ring if the kernel wants to know, else the guest sees the error
    "8:",
    "mov qword ptr [rbx + {failed}], 1",
    "test r12d, r12d",
    "jnz 5f",
    "mov rdx, [rbx + {frame}]",
    "mov [rdx + {uc_rax}], rax",
    // Back to the guest, or ring.
    "5:",
    "lea rcx, [rbx + {fast}]",
    "cmp [rbx + {frame}], rcx",
    "je 64f",
    "test r12d, r12d",
    "jnz 2b",
    "mov rsp, [rbx + {frame}]",
    "mov eax, 15", // rt_sigreturn
    "syscall",
    "ud2",
    // Back from a call without a signal; or the kernel wants a signal's frame.
    "64:",
    "test r12d, r12d",
    "jnz 65f",
    "cmp qword ptr [rbx + {kicked}], 0",
    "jne 65f",
    // From here on a kick finds the guest's registers where the kernel has seen them (trap.rs).
    "drupe_stub_leave:",
    "mov r11, [rbx + {fast} + 0xa8]",
    "mov rax, [rbx + {fast} + 0x90]",
    "mov r8, [rbx + {fast} + 0x28]",
    "mov r9, [rbx + {fast} + 0x30]",
    "mov r10, [rbx + {fast} + 0x38]",
    "mov r12, [rbx + {fast} + 0x48]",
    "mov r13, [rbx + {fast} + 0x50]",
    "mov r14, [rbx + {fast} + 0x58]",
    "mov r15, [rbx + {fast} + 0x60]",
    "mov rdi, [rbx + {fast} + 0x68]",
    "mov rsi, [rbx + {fast} + 0x70]",
    "mov rdx, [rbx + {fast} + 0x88]",
    "mov rbx, [rbx + {fast} + 0x80]",
    "jmp r11",
    "65:",
    "mov eax, {want_frame}", // SIGSYS
    "syscall",
    "ud2",
    "drupe_stub_left:",
    // futex(2): before a thread sleeps it looks for a while whether the word changes, as a call made later would find.
    "drupe_stub_look:",
    "mov ecx, esi",
    "and ecx, 0x7f", // not FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME
    "jz 71f", // FUTEX_WAIT
    "cmp ecx, 9", // FUTEX_WAIT_BITSET
    "jne 73f",
    "71:",
    "mov ecx, {looks}",
    "72:",
    "cmp [rdi], edx",
    "jne 73f",
    "pause",
    "dec ecx",
    "jnz 72b",
    "73:",
    "jmp r11",
    "drupe_stub_looked:",
    // the new thread (its stack pointer is in its slot) or process (in a slot of its parent's that has the same address)
    "6:",
    "mov rbx, rsp",
    "and rbx, -{slot_size}",
    "test edi, 0x100", // CLONE_VM
    "jz 7f",
    "mov eax, 131", // sigaltstack
    "lea rdi, [rbx + {altstack}]",
    "xor esi, esi",
    "syscall",
    "jmp 2b",
    "7:",
    "mov eax, {born}",
    "syscall",
    "mov r8, rax", // the descriptor of its own slots
    "mov eax, 9",  // mmap
    "mov rdi, {slots}",
    "mov rsi, {slots_size}",
    "mov edx, 3",    // PROT_READ | PROT_WRITE
    "mov r10d, 0x11", // MAP_SHARED | MAP_FIXED
    "xor r9d, r9d",
    "syscall",
    "jmp 2b",
    "drupe_stub_end:",
    ".popsection",
    slot_size = const layout::SLOT_SIZE,
    turn = const layout::TURN,
    answer = const layout::ANSWER,
    rang = const layout::TURN_RANG,
    sleeps = const layout::TURN_SLEEPS,
    watched = const layout::TURN_WATCHED,
    park = const layout::TURN_PARK,
    spins = const layout::SPINS,
    looks = const layout::LOOKS,
    frame = const layout::FRAME,
    signal = const layout::SIGNAL,
    info = const layout::INFO,
    op_count = const layout::OP_COUNT,
    ops = const layout::OPS,
    failed = const layout::FAILED,
    altstack = const layout::ALTSTACK,
    doorbell = const layout::CALL_DOORBELL,
    born = const layout::CALL_BORN,
    slots = const layout::SLOTS,
    slots_size = const layout::SLOTS_SIZE,
    uc_registers = const layout::UC_REGISTERS,
    uc_rax = const layout::UC_REGISTERS + 13 * 8,
    uc_rip = const layout::UC_REGISTERS + 16 * 8,
    copy = const layout::CALL_COPY,
    kick = const layout::KICK,
    kicked = const layout::KICKED,
    fast = const layout::FAST,
    fast_call = const layout::SIGNAL_FAST_CALL,
    slots_shift = const layout::SLOTS_SIZE.trailing_zeros(),
    slots_high = const (layout::SLOTS / layout::SLOTS_SIZE) as u32,
    want_frame = const layout::CALL_FRAME,
    in_address = const layout::IN_ADDRESS,
    in_size = const layout::IN_SIZE,
    in_data = const layout::IN_DATA,
    in_max = const layout::IN_MAX,
    in_text_max = const layout::IN_TEXT_MAX,
    inputs = const layout::INPUTS,
    inputs_count = const inputs::COUNT,
);

unsafe extern "C" {
    static drupe_stub_begin: u8;
    static drupe_stub_end: u8;
    static drupe_stub_handler: u8;
    static drupe_stub_enter: u8;
    static drupe_stub_fast: u8;
    static drupe_stub_call: u8;
    static drupe_stub_leave: u8;
    static drupe_stub_left: u8;
    static drupe_stub_look: u8;
    static drupe_stub_looked: u8;
}

/// The code, to be copied to `layout::CODE`.
pub fn code() -> &'static [u8] {
    let (begin, end) = (&raw const drupe_stub_begin, &raw const drupe_stub_end);
    // SAFETY: both labels are in one read-only section, in this order.
    unsafe { std::slice::from_raw_parts(begin, end as usize - begin as usize) }
}

/// Where a label lies in a stub.
fn place(label: *const u8) -> u64 {
    layout::CODE + (label as u64 - &raw const drupe_stub_begin as u64)
}

/// The handler's address in a stub.
pub fn handler() -> u64 {
    place(&raw const drupe_stub_handler)
}

/// Where calls without a signal come in.
pub fn fast() -> u64 {
    place(&raw const drupe_stub_fast)
}

/// Whether a thread that is there is on its way back from a call without a signal: its registers are in its slot.
pub fn is_leaving(rip: u64) -> bool {
    (place(&raw const drupe_stub_leave)..place(&raw const drupe_stub_left)).contains(&rip)
}

/// Whether a thread that is there has not begun its call, or looks at a futex; where its call is is in r11.
pub fn is_before_call(rip: u64) -> bool {
    (fast()..place(&raw const drupe_stub_call)).contains(&rip)
        || (place(&raw const drupe_stub_look)..place(&raw const drupe_stub_looked)).contains(&rip)
}

/// Where a thread starts that has its slot in rbx.
pub fn entry() -> u64 {
    place(&raw const drupe_stub_enter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_its_page_and_its_entries_lie_in_it() {
        let size = code().len() as u64;
        assert!(size <= layout::INPUTS as u64);
        for at in [handler(), entry(), fast()] {
            assert!((layout::CODE..layout::CODE + size).contains(&at));
        }
    }

    #[test]
    fn who_has_just_come_is_before_its_call() {
        let begins = place(&raw const drupe_stub_call);
        assert!((fast()..begins).all(is_before_call));
        assert!(!is_before_call(begins) && !is_before_call(fast() - 1) && !is_leaving(fast()));
    }
}
