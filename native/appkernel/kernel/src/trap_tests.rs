//! The platform alone, with guest code of a few instructions. Needs the right to make PID namespaces.

use drupe_appkernel_abi::Registers;
use drupe_appkernel_core::platform::{Event, MemoryOp, Platform, SpaceId, ThreadId, Trap};

use crate::trap::Stubs;

const PAGE: u64 = 0x40_0000;
const ANY: u32 = 7;

fn start(code: &[u8]) -> (Stubs, SpaceId, ThreadId) {
    let mut stubs = Stubs::start().expect("the first stub process starts");
    let (space, thread) = stubs.new_space().expect("a space");
    stubs
        .change(thread, &[MemoryOp::MapAnonymous { address: PAGE, size: 0x1000, protection: ANY, shared: false }])
        .expect("a page");
    assert_eq!(stubs.write(space, PAGE, code), Ok(code.len()));
    let registers = Registers { rip: PAGE, rsp: PAGE + 0xff0, eflags: 0x202, ..Registers::default() };
    stubs.reset(thread, &registers).expect("registers");
    (stubs, space, thread)
}

fn next(stubs: &mut Stubs) -> Event {
    let mut events = Vec::new();
    while events.is_empty() {
        stubs.wait(Some(5_000_000_000), &mut events).expect("waiting works");
        assert!(!events.is_empty(), "nothing came");
    }
    events.remove(0)
}

/// mov eax, 39; mov edi, 7; syscall; mov [PAGE + 0x800], rax; mov eax, 1000; syscall
const CALLS: &[u8] = &[
    0xb8, 39, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05, 0x48, 0x89, 0x04, 0x25, 0, 8, 0x40, 0, 0xb8, 0xe8, 3, 0, 0, 0x0f,
    0x05,
];

fn word(stubs: &Stubs, space: SpaceId) -> u64 {
    let mut bytes = [0; 8];
    assert_eq!(stubs.read(space, PAGE + 0x800, &mut bytes), Ok(8));
    u64::from_le_bytes(bytes)
}

#[test]
fn calls_trap_with_their_arguments_and_get_their_result() {
    let (mut stubs, space, thread) = start(CALLS);
    stubs.resume(thread, None, &[]).unwrap();
    let Event::Trap(who, Trap::Call { number: 39, args }) = next(&mut stubs) else { panic!("no call") };
    assert_eq!((who, args[0]), (thread, 7));
    stubs.resume(thread, Some(0x1234), &[]).unwrap();
    assert!(matches!(next(&mut stubs), Event::Trap(_, Trap::Call { number: 1000, .. })));
    assert_eq!(word(&stubs, space), 0x1234);
}

#[test]
fn a_fork_has_a_copy_and_a_thread_the_same_memory() {
    let (mut stubs, space, thread) = start(CALLS);
    stubs.resume(thread, None, &[]).unwrap();
    next(&mut stubs);
    let (copy, child) = stubs.fork(thread).unwrap();
    stubs.resume(child, Some(1), &[]).unwrap();
    assert!(matches!(next(&mut stubs), Event::Trap(who, Trap::Call { number: 1000, .. }) if who == child));
    assert_eq!((word(&stubs, space), word(&stubs, copy)), (0, 1));
    let beside = stubs.new_thread(thread).unwrap();
    stubs.resume(beside, Some(2), &[]).unwrap();
    assert!(matches!(next(&mut stubs), Event::Trap(who, Trap::Call { number: 1000, .. }) if who == beside));
    assert_eq!((word(&stubs, space), word(&stubs, copy)), (2, 1));
}

#[test]
fn faults_and_kicks_come_as_such() {
    // mov [0], eax … and an endless loop
    let (mut stubs, _, thread) = start(&[0x89, 0x04, 0x25, 0, 0, 0, 0, 0xeb, 0xfe]);
    stubs.resume(thread, None, &[]).unwrap();
    assert_eq!(next(&mut stubs), Event::Trap(thread, Trap::Fault { signal: 11, code: 1, address: 0 }));
    let registers = stubs.registers(thread).unwrap();
    stubs.set_registers(thread, &Registers { rip: PAGE + 7, ..registers }).unwrap();
    stubs.resume(thread, None, &[]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    stubs.kick(thread);
    assert_eq!(next(&mut stubs), Event::Trap(thread, Trap::Kicked));
}

/// Jump to a system call of the stub's page with these registers; what comes of it.
fn jump(stubs: &mut Stubs, thread: ThreadId, registers: &Registers) {
    let code = drupe_appkernel_hostsys::stub::code();
    let at = code.windows(2).position(|pair| pair == [0x0f, 0x05]).expect("a system call in the stub");
    let rip = drupe_appkernel_hostsys::layout::CODE + at as u64;
    // rbx: what the stub takes for its slot; zeros, so that it has nothing to do and rings
    stubs.reset(thread, &Registers { rip, rbx: PAGE + 0x100, eflags: 0x202, ..*registers }).unwrap();
    stubs.resume(thread, None, &[]).unwrap();
    let mut events = Vec::new();
    stubs.wait(Some(1_000_000_000), &mut events).unwrap();
    stubs.wait(Some(100_000_000), &mut events).unwrap();
}

#[test]
fn a_jump_into_the_stub_maps_no_file() {
    let (mut stubs, space, thread) = start(&[]);
    let at = PAGE + 0x10_0000;
    let slots = Registers { rax: 9, rdi: at, rsi: 0x1000, rdx: 3, r10: 0x11, ..Registers::default() };
    for fd in 0..4 {
        jump(&mut stubs, thread, &Registers { r8: fd, ..slots });
        assert!(stubs.read(space, at, &mut [0]).is_err(), "descriptor {fd} was mapped");
    }
    // The same call without a file is the guest's own business: the jump itself works.
    jump(&mut stubs, thread, &Registers { r8: u64::MAX, r10: 0x32, ..slots });
    assert_eq!(stubs.read(space, at, &mut [0]), Ok(1));
}

#[test]
fn a_jump_into_the_stub_makes_no_process() {
    let (mut stubs, space, thread) = start(CALLS);
    assert_eq!(stubs.children(space), 0);
    jump(&mut stubs, thread, &Registers { rax: 56, rdi: 17, ..Registers::default() });
    assert_eq!(stubs.children(space), 0);
    // One that is ordered is made, and counted.
    let (mut stubs, space, thread) = start(CALLS);
    stubs.resume(thread, None, &[]).unwrap();
    next(&mut stubs);
    stubs.fork(thread).unwrap();
    assert_eq!(stubs.children(space), 1);
}

#[test]
fn no_process_outlives_its_space() {
    let (mut stubs, space, thread) = start(&[0xeb, 0xfe]);
    stubs.resume(thread, None, &[]).unwrap();
    stubs.end_space(space);
    assert!(stubs.read(space, PAGE, &mut [0]).is_err());
    assert!(stubs.new_space().is_ok());
}

#[test]
fn the_stub_of_a_killed_process_is_told() {
    let (mut stubs, space, thread) = start(&[0xeb, 0xfe]);
    stubs.resume(thread, None, &[]).unwrap();
    stubs.kill_host_process(space);
    assert_eq!(next(&mut stubs), Event::Died(space));
}
