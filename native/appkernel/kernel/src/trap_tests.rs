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
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while events.is_empty() {
        assert!(std::time::Instant::now() < deadline, "nothing came");
        // A bell that a kick has rung anew wakes the kernel for nothing.
        stubs.wait(Some(5_000_000_000), &mut events).expect("waiting works");
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
    stubs.wait(Some(10_000_000_000), &mut events).unwrap();
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

/// again: mov eax, 39; lea r11, [the call]; jmp [PAGE + 0x100]; the call: syscall; mov [PAGE + 0x800], rax; jmp again
const FAST: &[u8] = &[
    0xb8, 39, 0, 0, 0, 0x4c, 0x8d, 0x1d, 6, 0, 0, 0, 0xff, 0x25, 0xee, 0, 0, 0, 0x0f, 0x05, 0x48, 0x89, 0x04, 0x25, 0,
    8, 0x40, 0, 0xeb, 0xe2,
];

/// A thread that has called without a signal; it may take some tries on a busy machine.
fn called_fast(code: &[u8]) -> (Stubs, SpaceId, ThreadId) {
    let (mut stubs, space, thread) = start(code);
    assert_ne!(stubs.call_entry(), 0, "this processor has no segment base instructions");
    stubs.write(space, PAGE + 0x100, &stubs.call_entry().to_le_bytes()).unwrap();
    stubs.resume(thread, None, &[]).unwrap();
    for round in 0..50_000 {
        assert!(matches!(next(&mut stubs), Event::Trap(who, Trap::Call { number: 39, .. }) if who == thread));
        if stubs.call_site(thread).is_none() {
            return (stubs, space, thread);
        }
        stubs.be_quick(thread);
        stubs.resume(thread, Some(round), &[]).unwrap();
    }
    panic!("no call came without a signal");
}

#[test]
fn a_call_without_a_signal_gets_its_result_and_changes_no_other_register() {
    let (mut stubs, space, thread) = called_fast(FAST);
    let before = stubs.registers(thread).unwrap();
    assert_eq!((before.rip, before.rax), (PAGE + 20, 39));
    stubs.resume(thread, Some(0x5678), &[]).unwrap();
    next(&mut stubs);
    assert_eq!(word(&stubs, space), 0x5678);
    let mut after = stubs.registers(thread).unwrap();
    (after.rcx, after.r11, after.eflags) = (before.rcx, before.r11, before.eflags);
    assert_eq!(after, before);
}

#[test]
fn a_thread_that_called_without_a_signal_can_be_changed_forked_and_kicked() {
    let (mut stubs, space, thread) = called_fast(FAST);
    let registers = stubs.registers(thread).unwrap();
    assert!(stubs.extended_state(thread).len() >= 512, "a frame of the host's");
    assert_eq!(stubs.registers(thread).unwrap(), registers);
    let (copy, child) = stubs.fork(thread).unwrap();
    stubs.resume(child, Some(77), &[]).unwrap();
    assert!(matches!(next(&mut stubs), Event::Trap(who, Trap::Call { number: 39, .. }) if who == child));
    assert_eq!(word(&stubs, copy), 77);
    stubs.set_registers(thread, &registers_at(&registers, PAGE + 28)).unwrap();
    stubs.resume(thread, None, &[]).unwrap();
    assert!(matches!(next(&mut stubs), Event::Trap(who, Trap::Call { number: 39, .. }) if who == thread));
    assert_ne!(word(&stubs, space), 77);
}

fn registers_at(registers: &Registers, rip: u64) -> Registers {
    Registers { rip, ..*registers }
}

#[test]
fn a_kick_during_a_call_without_a_signal_comes_when_it_is_over() {
    for _ in 0..20 {
        let (mut stubs, _, thread) = called_fast(FAST);
        stubs.kick(thread);
        stubs.be_quick(thread);
        stubs.resume(thread, Some(5), &[]).unwrap();
        stubs.kick(thread);
        let mut kicks = 0;
        for _ in 0..4 {
            match next(&mut stubs) {
                Event::Trap(_, Trap::Kicked) => {
                    kicks += 1;
                    let registers = stubs.registers(thread).unwrap();
                    assert!((PAGE..PAGE + 30).contains(&registers.rip), "{registers:x?}");
                    stubs.resume(thread, None, &[]).unwrap();
                }
                Event::Trap(_, Trap::Call { number: 39, .. }) => stubs.resume(thread, Some(5), &[]).unwrap(),
                other => panic!("{other:?}"),
            }
        }
        assert!(kicks > 0);
    }
}

/// mov eax, 1; mov edi, 1; mov esi, ADDRESS; mov edx, SIZE; syscall; jmp $
fn write_call(address: u32, size: u32) -> Vec<u8> {
    let mut code = vec![0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0xbe];
    code.extend(address.to_le_bytes());
    code.push(0xba);
    code.extend(size.to_le_bytes());
    code.extend([0x0f, 0x05, 0xeb, 0xfe]);
    code
}

fn input(address: u32, size: u32) -> Vec<u8> {
    let (mut stubs, space, thread) = start(&write_call(address, size));
    stubs.write(space, PAGE + 0xff0, b"0123456789abcdef").unwrap();
    stubs.resume(thread, None, &[]).unwrap();
    assert!(matches!(next(&mut stubs), Event::Trap(_, Trap::Call { number: 1, .. })));
    stubs.input(thread, address.into()).to_vec()
}

#[test]
fn what_a_call_reads_comes_with_it_as_far_as_it_is_there() {
    let end = PAGE as u32 + 0xff0;
    assert_eq!(input(end, 16), b"0123456789abcdef");
    assert_eq!(input(end + 8, 20), b"89abcdef", "up to the end of the page");
    assert_eq!(input(end + 8, 0), b"");
    assert_eq!(input(8, 20), b"", "nothing is there");
    assert_eq!(input(end, 1 << 30), b"", "too much to bring along");
    assert_eq!(input(end, u32::MAX), b"");
}

#[test]
fn what_is_staged_is_there_when_the_thread_goes_on_or_it_sees_efault() {
    let (mut stubs, space, thread) = start(CALLS);
    stubs.resume(thread, None, &[]).unwrap();
    next(&mut stubs);
    stubs.stage(thread, PAGE + 0x900, b"hello").unwrap();
    stubs.stage(thread, PAGE + 0xa00, &[7; 0x8000]).expect_err("more than there is room for is written at once");
    stubs.resume(thread, Some(3), &[]).unwrap();
    next(&mut stubs);
    let mut bytes = [0; 5];
    stubs.read(space, PAGE + 0x900, &mut bytes).unwrap();
    assert_eq!((&bytes, word(&stubs, space)), (b"hello", 3));
    stubs.stage(thread, 8, b"nowhere").unwrap();
    assert_eq!(stubs.change(thread, &[]), Err(drupe_appkernel_abi::Errno::FAULT));
    stubs.stage(thread, 8, b"nowhere").unwrap();
    let registers = stubs.registers(thread).unwrap();
    stubs.set_registers(thread, &registers_at(&registers, PAGE + 12)).unwrap();
    stubs.resume(thread, Some(3), &[]).unwrap();
    next(&mut stubs);
    assert_eq!(word(&stubs, space) as i64, -14);
}

#[test]
fn a_slot_full_of_nonsense_is_no_danger() {
    // again: getppid; the slot's header is written over by the guest
    let slot = drupe_appkernel_hostsys::layout::SLOTS;
    for offset in (0..0x80).step_by(8) {
        // mov rax, SLOT; mov qword [rax + OFFSET], -1; mov eax, 39; syscall; jmp $
        let mut code = vec![0x48, 0xb8];
        code.extend((slot + offset).to_le_bytes());
        code.extend([0x48, 0xc7, 0x00, 0xff, 0xff, 0xff, 0xff, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xfe]);
        let (mut stubs, _, thread) = start(&code);
        stubs.resume(thread, None, &[]).unwrap();
        let mut events = Vec::new();
        stubs.wait(Some(300_000_000), &mut events).unwrap();
        if !events.is_empty() {
            assert!(stubs.input(thread, 0).len() <= 0x2000);
            let _whatever = stubs.resume(thread, Some(0), &[]);
        }
        stubs.kick(thread);
        stubs.wait(Some(20_000_000), &mut events).unwrap();
    }
}

#[test]
fn a_crowd_keeps_nobody_of_another_lane_waiting() {
    let (mut stubs, space, thread) = start(CALLS);
    stubs.set_lane(space, 1);
    stubs.resume(thread, None, &[]).unwrap();
    next(&mut stubs);
    let crowd: Vec<_> = (0..10).map(|_| stubs.fork(thread).unwrap()).collect();
    let (lone, last) = *crowd.last().unwrap();
    stubs.set_lane(lone, 2);
    crowd.iter().for_each(|(_, thread)| stubs.resume(*thread, Some(1), &[]).unwrap());
    stubs.gather(crowd.len());
    let mut events = Vec::new();
    stubs.wait(Some(0), &mut events).unwrap();
    let place = events.iter().position(|event| matches!(event, Event::Trap(who, _) if *who == last));
    assert!(place.is_some_and(|place| place < 2), "{place:?} of {}", events.len());
}

/// A slot is memory that the guest writes as it likes: its header, from guest code.
#[test]
fn nonsense_in_a_slot_is_nobodys_panic() {
    use drupe_appkernel_hostsys::layout::{FRAME, INFO, IN_SIZE, OP_COUNT, SIGNAL, SLOTS};
    let nonsense = [0, 65, 1 << 31, u64::MAX, SLOTS + 1, SLOTS + 0xffff];
    for (word, value) in [SIGNAL, FRAME, INFO, IN_SIZE, OP_COUNT].into_iter().flat_map(|w| nonsense.map(|v| (w, v))) {
        let (mut stubs, space, thread) = start(CALLS);
        stubs.resume(thread, None, &[]).unwrap();
        next(&mut stubs);
        stubs.spoil(thread, word, value);
        let trap = stubs.trapped(thread);
        let told = matches!(trap, Trap::Fault { signal: 1..=64, .. } | Trap::Call { .. } | Trap::Kicked);
        assert!(told, "{word:#x} = {value:#x}: {trap:?}");
        let _unsound = (stubs.registers(thread), stubs.set_registers(thread, &Registers::default()));
        let _unsound = (stubs.extended_state(thread), stubs.resume(thread, Some(0), &[]));
        stubs.end_space(space);
        assert!(stubs.new_space().is_ok(), "{word:#x} = {value:#x}");
    }
}

/// Some processes whose calls have come and were not served, and one that stands in a call.
fn with_calls_put_by() -> (Stubs, SpaceId, ThreadId, Vec<SpaceId>) {
    let (mut stubs, space, thread) = start(CALLS);
    stubs.resume(thread, None, &[]).unwrap();
    next(&mut stubs);
    let crowd: Vec<_> = (0..12).map(|_| stubs.fork(thread).expect("a fork")).collect();
    crowd.iter().for_each(|(_, child)| stubs.resume(*child, Some(1), &[]).expect("it goes on"));
    stubs.gather(crowd.len());
    (stubs, space, thread, crowd.into_iter().map(|(space, _)| space).collect())
}

#[test]
fn a_call_of_somebody_who_is_gone_is_not_taken_for_that_of_a_new_thread() {
    let (mut stubs, space, thread, crowd) = with_calls_put_by();
    crowd.into_iter().for_each(|one| stubs.end_space(one));
    let beside = stubs.new_thread(thread).expect("a thread");
    stubs.resume(beside, Some(2), &[]).unwrap();
    assert_eq!(next(&mut stubs), Event::Trap(beside, Trap::Call { number: 1000, args: [7, 0, 0, 0, 0, 0] }));
    assert_eq!(word(&stubs, space), 2);
}

#[test]
fn a_call_that_comes_after_its_process_was_ended_is_nobodys() {
    for _ in 0..20 {
        let (mut stubs, space, thread) = start(CALLS);
        stubs.resume(thread, None, &[]).unwrap();
        next(&mut stubs);
        let (gone, child) = stubs.fork(thread).unwrap();
        stubs.resume(child, Some(1), &[]).unwrap();
        while !stubs.is_called() {
            std::thread::yield_now();
        }
        stubs.end_space(gone); // killed with its call on the way
        let beside = stubs.new_thread(thread).expect("a thread");
        stubs.resume(beside, Some(2), &[]).unwrap();
        assert!(matches!(next(&mut stubs), Event::Trap(who, Trap::Call { number: 1000, .. }) if who == beside));
        assert_eq!(word(&stubs, space), 2);
    }
}
