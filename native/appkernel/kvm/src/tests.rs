//! The platform alone, with guest code of a few instructions. Needs /dev/kvm, which may be slow; says so when there is none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drupe_appkernel_abi::Registers;
use drupe_appkernel_core::platform::{Event, MemoryOp, Platform, SpaceId, ThreadId, Trap};
use drupe_appkernel_hostsys::kvm::Kvm;
use drupe_appkernel_hostsys::memory::memfd;
use drupe_appkernel_hostsys::poll::Poller;
use drupe_appkernel_vfs::HostFile;

use crate::Machines;

const PAGE: u64 = 0x40_0000;
const ANY: u32 = 7;
const MEMORY_BYTES: u64 = 16 << 20;

fn machine() -> Option<Machines> {
    match Kvm::open() {
        Ok(kvm) => {
            let poller = Arc::new(Poller::new().expect("a poller"));
            Some(Machines::start(&kvm, poller, 2, MEMORY_BYTES).expect("a machine"))
        }
        Err(error) => {
            eprintln!("skipped: /dev/kvm: {error}");
            None
        }
    }
}

struct Guest {
    machine: Machines,
    space: SpaceId,
    thread: ThreadId,
    /// Came together with another.
    more: Vec<Event>,
}

fn map(machine: &mut Machines, thread: ThreadId, address: u64, size: u64, shared: bool) {
    let op = MemoryOp::MapAnonymous { address, size, protection: ANY, shared };
    machine.change(thread, &[op]).expect("a page");
}

fn start(code: &[u8]) -> Option<Guest> {
    let mut machine = machine()?;
    let (space, thread) = machine.new_space().expect("a space");
    map(&mut machine, thread, PAGE, 0x1000, false);
    assert_eq!(machine.write(space, PAGE, code), Ok(code.len()));
    let registers = Registers { rip: PAGE, rsp: PAGE + 0xff0, eflags: 0x202, ..Registers::default() };
    machine.reset(thread, &registers).expect("registers");
    Some(Guest { machine, space, thread, more: Vec::new() })
}

impl Guest {
    fn next(&mut self) -> Event {
        for _ in 0..600 {
            if !self.more.is_empty() {
                return self.more.remove(0);
            }
            self.machine.wait(Some(200_000_000), &mut self.more).expect("waiting works");
        }
        panic!("nothing came");
    }

    fn go(&mut self) -> Event {
        self.machine.resume(self.thread, None, &[]).unwrap();
        self.next()
    }

    fn until_waiting(&mut self, thread: ThreadId) {
        let mut events = Vec::new();
        while !self.machine.is_waiting(thread) {
            self.machine.wait(Some(10_000_000), &mut events).expect("waiting works");
            assert_eq!(events, []);
        }
    }

    fn word(&self, space: SpaceId) -> u64 {
        let mut bytes = [0; 8];
        assert_eq!(self.machine.read(space, PAGE + 0x800, &mut bytes), Ok(8));
        u64::from_le_bytes(bytes)
    }
}

/// mov eax, 39; mov edi, 7; syscall; mov [PAGE + 0x800], rax; mov eax, 1000; syscall
const CALLS: &[u8] = &[
    0xb8, 39, 0, 0, 0, 0xbf, 7, 0, 0, 0, 0x0f, 0x05, 0x48, 0x89, 0x04, 0x25, 0, 8, 0x40, 0, 0xb8, 0xe8, 3, 0, 0, 0x0f,
    0x05,
];
const LOOP: &[u8] = &[0xeb, 0xfe];

#[test]
fn calls_trap_with_their_arguments_and_get_their_result() {
    let Some(mut guest) = start(CALLS) else { return };
    let Event::Trap(who, Trap::Call { number: 39, args }) = guest.go() else { panic!("no call") };
    assert_eq!((who, args[0]), (guest.thread, 7));
    let registers = guest.machine.registers(guest.thread).unwrap();
    assert_eq!((registers.rip, registers.rsp, registers.rdi), (PAGE + 12, PAGE + 0xff0, 7));
    guest.machine.resume(guest.thread, Some(0x1234), &[]).unwrap();
    assert!(matches!(guest.next(), Event::Trap(_, Trap::Call { number: 1000, .. })));
    assert_eq!(guest.word(guest.space), 0x1234);
}

#[test]
fn a_fork_has_a_copy_and_a_thread_the_same_memory() {
    let Some(mut guest) = start(CALLS) else { return };
    guest.go();
    let (copy, child) = guest.machine.fork(guest.thread).unwrap();
    guest.machine.resume(child, Some(1), &[]).unwrap();
    assert!(matches!(guest.next(), Event::Trap(who, Trap::Call { number: 1000, .. }) if who == child));
    assert_eq!((guest.word(guest.space), guest.word(copy)), (0, 1));
    let beside = guest.machine.new_thread(guest.thread).unwrap();
    guest.machine.resume(beside, Some(2), &[]).unwrap();
    assert!(matches!(guest.next(), Event::Trap(who, Trap::Call { number: 1000, .. }) if who == beside));
    assert_eq!((guest.word(guest.space), guest.word(copy)), (2, 1));
}

/// again: inc qword [PAGE + 0x800]; mov eax, 39; syscall; jmp again
const COUNT: &[u8] = &[0x48, 0xff, 0x04, 0x25, 0, 8, 0x40, 0, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xef];

#[test]
fn whoever_writes_after_a_fork_writes_to_a_page_of_its_own() {
    let Some(mut guest) = start(COUNT) else { return };
    guest.go();
    let (copy, child) = guest.machine.fork(guest.thread).unwrap();
    // The parent could write its page before: it must not be the child's that it writes now.
    for round in 0..5 {
        guest.go();
        assert_eq!((guest.word(guest.space), guest.word(copy)), (2 + round, 1));
    }
    guest.machine.resume(child, None, &[]).unwrap();
    guest.next();
    assert_eq!((guest.word(guest.space), guest.word(copy)), (6, 2));
    // And the kernel's own writes are seen, though the guest has used the page.
    let (third, grandchild) = guest.machine.fork(child).unwrap();
    guest.machine.write(copy, PAGE + 0x800, &40u64.to_le_bytes()).unwrap();
    guest.machine.resume(child, None, &[]).unwrap();
    guest.next();
    guest.machine.resume(grandchild, None, &[]).unwrap();
    guest.next();
    assert_eq!((guest.word(copy), guest.word(third)), (41, 3));
}

#[test]
fn many_spaces_come_and_go_and_none_sees_what_another_left() {
    let Some(mut guest) = start(COUNT) else { return };
    guest.go();
    for _ in 0..400 {
        let (copy, child) = guest.machine.fork(guest.thread).unwrap();
        guest.machine.resume(child, None, &[]).unwrap();
        guest.next();
        assert_eq!((guest.word(guest.space), guest.word(copy)), (1, 2));
        guest.machine.end_space(copy);
    }
}

#[test]
fn faults_and_kicks_come_as_such() {
    // mov [0], eax … and an endless loop
    let Some(mut guest) = start(&[0x89, 0x04, 0x25, 0, 0, 0, 0, 0xeb, 0xfe]) else { return };
    let thread = guest.thread;
    assert_eq!(guest.go(), Event::Trap(thread, Trap::Fault { signal: 11, code: 1, address: 0 }));
    let registers = guest.machine.registers(thread).unwrap();
    assert_eq!(registers.rip, PAGE);
    let looping = Registers { rip: PAGE + 7, rbx: 77, ..registers };
    guest.machine.set_registers(thread, &looping).unwrap();
    for _ in 0..10 {
        guest.machine.resume(thread, None, &[]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        guest.machine.kick(thread);
        assert_eq!(guest.next(), Event::Trap(thread, Trap::Kicked));
        let now = guest.machine.registers(thread).unwrap();
        assert_eq!((now.rip, now.rbx), (PAGE + 7, 77));
    }
}

#[test]
fn exceptions_are_linuxs_signals() {
    let cases: &[(&[u8], i32, i32, u64)] = &[
        (&[0x31, 0xc9, 0xf7, 0xf1], 8, 1, PAGE + 2), // xor ecx, ecx; div ecx
        (&[0x0f, 0x0b], 4, 2, PAGE),                 // ud2
        (&[0xcc], 5, 0x80, 0),                       // int3
        (&[0xf4], 11, 0x80, 0),                      // hlt
        (&[0xe6, 0xf0], 11, 0x80, 0),                // out 0xf0, al
        (&[0x0f, 0x22, 0xd8], 11, 0x80, 0),          // mov cr3, rax
        (&[0xfa], 11, 0x80, 0),                      // cli
        (&[0x48, 0xa1, 0, 0, 0, 0, 0x80, 0x7f, 0, 0], 11, 1, 0x7f80_0000_0000), // mov rax, [the text of ring 0]
    ];
    for (code, signal, si_code, address) in cases {
        let Some(mut guest) = start(code) else { return };
        let expected = Trap::Fault { signal: *signal, code: *si_code, address: *address };
        assert_eq!(guest.go(), Event::Trap(guest.thread, expected), "{code:x?}");
    }
}

#[test]
fn a_jump_to_where_no_code_can_be_is_a_fault_of_the_guest() {
    for rip in [0x8000_0000_0000, 0x7f80_0000_0000, 0x7f80_0000_0010, u64::MAX] {
        let Some(mut guest) = start(CALLS) else { return };
        let registers = guest.machine.registers(guest.thread).unwrap();
        guest.machine.set_registers(guest.thread, &Registers { rip, ..registers }).unwrap();
        assert!(matches!(guest.go(), Event::Trap(_, Trap::Fault { signal: 11, .. })), "{rip:x}");
        // Nothing else has suffered.
        guest.machine.set_registers(guest.thread, &registers).unwrap();
        assert!(matches!(guest.go(), Event::Trap(_, Trap::Call { number: 39, .. })));
    }
}

#[test]
fn a_space_of_a_spinning_thread_can_be_ended() {
    let Some(mut guest) = start(LOOP) else { return };
    guest.machine.resume(guest.thread, None, &[]).unwrap();
    guest.machine.end_space(guest.space);
    let late = Instant::now() + Duration::from_secs(10);
    while guest.machine.read(guest.space, PAGE, &mut [0]).is_ok() {
        assert!(Instant::now() < late, "its memory stays until it has left its processor");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(guest.machine.new_space().is_ok());
}

#[test]
fn threads_take_turns_where_there_are_more_than_processors() {
    let Some(mut guest) = start(LOOP) else { return };
    let spinning: Vec<ThreadId> = (0..3).map(|_| guest.machine.new_thread(guest.thread).unwrap()).collect();
    spinning.iter().for_each(|thread| guest.machine.resume(*thread, None, &[]).unwrap());
    let caller = guest.machine.new_thread(guest.thread).unwrap();
    guest.machine.write(guest.space, PAGE + 0x100, CALLS).unwrap();
    let registers = guest.machine.registers(caller).unwrap();
    guest.machine.set_registers(caller, &Registers { rip: PAGE + 0x100, ..registers }).unwrap();
    guest.machine.resume(caller, None, &[]).unwrap();
    assert!(matches!(guest.next(), Event::Trap(who, Trap::Call { number: 39, .. }) if who == caller));
}

#[test]
fn extended_state_is_each_threads_own_and_goes_into_frames() {
    // movq xmm1, rdi; mov eax, 39; syscall; movq rdi, xmm1; mov eax, 1000; syscall
    let code = [
        0x66, 0x48, 0x0f, 0x6e, 0xcf, 0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x66, 0x48, 0x0f, 0x7e, 0xcf, 0xb8, 0xe8, 3, 0, 0,
        0x0f, 0x05,
    ];
    let Some(mut guest) = start(&code) else { return };
    let threads: Vec<ThreadId> = (0..5).map(|_| guest.machine.new_thread(guest.thread).unwrap()).collect();
    for (value, thread) in (100..).zip(&threads) {
        let registers = guest.machine.registers(*thread).unwrap();
        guest.machine.set_registers(*thread, &Registers { rdi: value, ..registers }).unwrap();
        guest.machine.resume(*thread, None, &[]).unwrap();
        guest.next();
    }
    let frame = guest.machine.extended_state(threads[0]);
    assert_eq!(frame[160 + 16..160 + 24], 100u64.to_le_bytes());
    assert!(guest.machine.set_extended_state(threads[1], &frame));
    assert!(!guest.machine.set_extended_state(threads[1], &frame[..100]));
    for (expected, thread) in [100, 100, 102, 103, 104].into_iter().zip(&threads) {
        guest.machine.resume(*thread, Some(0), &[]).unwrap();
        let Event::Trap(_, Trap::Call { number: 1000, args }) = guest.next() else { panic!("no call") };
        assert_eq!(args[0], expected);
    }
}

#[test]
fn segment_bases_are_each_threads_own() {
    // mov rdi, fs:[0]; mov eax, 39; syscall
    let Some(mut guest) = start(&[0x64, 0x48, 0x8b, 0x3c, 0x25, 0, 0, 0, 0, 0xb8, 39, 0, 0, 0, 0x0f, 0x05]) else {
        return;
    };
    guest.machine.write(guest.space, PAGE + 0x800, &[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let beside = guest.machine.new_thread(guest.thread).unwrap();
    guest.machine.change(guest.thread, &[MemoryOp::SetFs(PAGE + 0x800)]).unwrap();
    guest.machine.change(beside, &[MemoryOp::SetFs(PAGE + 0x808)]).unwrap();
    for (thread, expected) in [(guest.thread, 5), (beside, 6)] {
        guest.machine.resume(thread, None, &[MemoryOp::GetFs(PAGE + 0x900)]).unwrap();
        let Event::Trap(_, Trap::Call { number: 39, args }) = guest.next() else { panic!("no call") };
        assert_eq!(args[0], expected);
    }
    let mut base = [0; 8];
    guest.machine.read(guest.space, PAGE + 0x900, &mut base).unwrap();
    assert_eq!(u64::from_le_bytes(base), PAGE + 0x808);
}

/// futex(PAGE + 0x800, OPERATION, r12, 0); then call 1000 with its result
fn futex(operation: u8) -> Vec<u8> {
    let mut code = vec![0xbf, 0, 8, 0x40, 0, 0xbe, operation, 0, 0, 0, 0x4c, 0x89, 0xe2, 0x4d, 0x31, 0xd2];
    code.extend([0xb8, 202, 0, 0, 0, 0x0f, 0x05, 0x48, 0x89, 0xc7, 0xb8, 0xe8, 3, 0, 0, 0x0f, 0x05]);
    code
}

#[test]
fn futexes_wait_and_are_woken_and_a_kick_takes_out_who_waits() {
    let Some(mut guest) = start(&futex(0)) else { return };
    guest.machine.write(guest.space, PAGE + 0x200, &futex(1)).unwrap();
    let waiter = guest.thread;
    let waker = guest.machine.new_thread(waiter).unwrap();
    let registers = guest.machine.registers(waker).unwrap();
    guest.machine.set_registers(waker, &Registers { rip: PAGE + 0x200, r12: 9, ..registers }).unwrap();
    guest.machine.resume(waiter, None, &[]).unwrap();
    guest.until_waiting(waiter);
    guest.machine.kick(waiter);
    assert_eq!(guest.next(), Event::Trap(waiter, Trap::Kicked));
    let registers = guest.machine.registers(waiter).unwrap();
    assert_eq!((registers.rip, registers.rax), (PAGE + 21, 202), "it stands before its call");
    guest.machine.resume(waiter, None, &[]).unwrap();
    guest.until_waiting(waiter);
    guest.machine.resume(waker, None, &[]).unwrap();
    let mut results = Vec::new();
    for _ in 0..2 {
        let Event::Trap(who, Trap::Call { number: 1000, args }) = guest.next() else { panic!("no call") };
        results.push((who, args[0]));
    }
    results.sort_unstable();
    assert_eq!(results, [(waiter, 0), (waker, 1)]);
}

#[test]
fn a_kick_reaches_a_thread_on_its_way_to_wait() {
    let Some(mut guest) = start(&futex(0)) else { return };
    for _ in 0..20 {
        guest.machine.resume(guest.thread, None, &[]).unwrap();
        guest.machine.kick(guest.thread);
        assert_eq!(guest.next(), Event::Trap(guest.thread, Trap::Kicked));
    }
}

struct Memfd(std::os::fd::OwnedFd);

impl HostFile for Memfd {
    fn raw_fd(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(&self.0)
    }
}

#[test]
fn files_are_mapped_private_and_shared_and_end_where_they_end() {
    let Some(mut guest) = start(COUNT) else { return };
    let file = memfd("drupe-test", 0x2000).unwrap();
    drupe_appkernel_hostsys::files::write_at(std::os::fd::AsFd::as_fd(&file), 0x800, &[7]).unwrap();
    let file: Arc<dyn HostFile> = Arc::new(Memfd(file));
    let (thread, space) = (guest.thread, guest.space);
    let at = |address, shared| MemoryOp::MapFile {
        address,
        size: 0x4000,
        protection: 3,
        shared,
        file: Arc::clone(&file),
        offset: 0,
    };
    let (private, shared) = (PAGE + 0x10_0000, PAGE + 0x20_0000);
    guest.machine.change(thread, &[at(private, false), at(shared, true)]).unwrap();
    let byte = |guest: &Guest, address| {
        let mut byte = [0];
        guest.machine.read(space, address, &mut byte).map(|_| byte[0])
    };
    assert_eq!((byte(&guest, private + 0x800), byte(&guest, shared + 0x800)), (Ok(7), Ok(7)));
    guest.machine.write(space, shared + 0x800, &[8]).unwrap();
    assert_eq!((byte(&guest, private + 0x800), byte(&guest, shared + 0x800)), (Ok(8), Ok(8)));
    guest.machine.write(space, private + 0x800, &[9]).unwrap();
    assert_eq!((byte(&guest, private + 0x800), byte(&guest, shared + 0x800)), (Ok(9), Ok(8)));
    // inc qword [shared + 0x800]; then beyond the file's end; then where it was cut.
    let increment = |address: u64| {
        let mut code = vec![0x48, 0xff, 0x04, 0x25];
        code.extend((address as u32).to_le_bytes());
        code.extend(&COUNT[8..15]);
        code
    };
    let run = |guest: &mut Guest, address: u64| {
        guest.machine.write(space, PAGE, &increment(address)).unwrap();
        let registers = guest.machine.registers(thread).unwrap();
        guest.machine.set_registers(thread, &Registers { rip: PAGE, ..registers }).unwrap();
        guest.go()
    };
    assert!(matches!(run(&mut guest, shared + 0x800), Event::Trap(_, Trap::Call { .. })));
    assert_eq!(byte(&guest, shared + 0x800), Ok(9));
    let end = shared + 0x2000;
    assert_eq!(run(&mut guest, end), Event::Trap(thread, Trap::Fault { signal: 7, code: 2, address: end }));
    assert!(matches!(run(&mut guest, shared + 0x1000), Event::Trap(_, Trap::Call { .. })));
    let cut = drupe_appkernel_hostsys::memory::with_fd(file.raw_fd(), |fd| {
        drupe_appkernel_hostsys::files::set_size(fd, 0x1000)
    });
    cut.unwrap();
    let gone = shared + 0x1000;
    assert_eq!(run(&mut guest, gone), Event::Trap(thread, Trap::Fault { signal: 7, code: 2, address: gone }));
    assert!(byte(&guest, gone).is_err());
}

#[test]
fn changes_of_memory_hold_at_once_though_the_guest_has_used_it() {
    let Some(mut guest) = start(COUNT) else { return };
    let (thread, space) = (guest.thread, guest.space);
    map(&mut guest.machine, thread, PAGE + 0x1000, 0x1000, false);
    // The counter lies in the second page: inc qword [PAGE + 0x1800]
    let mut code = COUNT.to_vec();
    code[5] = 0x18;
    guest.machine.write(space, PAGE, &code).unwrap();
    guest.go();
    guest.go();
    let address = PAGE + 0x1000;
    let protect = |protection| MemoryOp::Protect { address, size: 0x1000, protection };
    guest.machine.change(thread, &[protect(1)]).unwrap();
    let fault = |code| Event::Trap(thread, Trap::Fault { signal: 11, code, address: PAGE + 0x1800 });
    assert_eq!(guest.go(), fault(2));
    guest.machine.change(thread, &[protect(0)]).unwrap();
    assert_eq!(guest.go(), fault(2));
    guest.machine.change(thread, &[protect(3)]).unwrap();
    assert!(matches!(guest.go(), Event::Trap(_, Trap::Call { .. })));
    let to = PAGE + 0x8000;
    guest.machine.change(thread, &[MemoryOp::Move { from: address, from_size: 0x1000, to, to_size: 0x3000 }]).unwrap();
    assert_eq!(guest.go(), fault(1));
    let mut bytes = [0; 8];
    guest.machine.read(space, to + 0x800, &mut bytes).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 3);
    assert_eq!(guest.machine.read(space, to + 0x2fff, &mut [1]), Ok(1));
    guest
        .machine
        .change(thread, &[MemoryOp::Move { from: to, from_size: 0x1000, to: address, to_size: 0x1000 }])
        .unwrap();
    assert!(matches!(guest.go(), Event::Trap(_, Trap::Call { .. })));
    guest.machine.change(thread, &[MemoryOp::Unmap { address, size: 0x1000 }]).unwrap();
    assert_eq!(guest.go(), fault(1));
}

#[test]
fn memory_that_forks_share_is_the_same_and_goes_with_the_last() {
    let Some(mut guest) = start(CALLS) else { return };
    let (thread, space) = (guest.thread, guest.space);
    map(&mut guest.machine, thread, PAGE + 0x10_0000, 0x2000, true);
    let (copy, _) = guest.machine.fork(thread).unwrap();
    guest.machine.write(space, PAGE + 0x10_1000, &[3]).unwrap();
    let mut byte = [0];
    guest.machine.read(copy, PAGE + 0x10_1000, &mut byte).unwrap();
    assert_eq!(byte, [3]);
    guest.machine.end_space(space);
    guest.machine.write(copy, PAGE + 0x10_1000, &[4]).unwrap();
    guest.machine.end_space(copy);
}

#[test]
fn whoever_uses_up_the_pods_memory_is_named() {
    // again: mov [rdi], al; add rdi, 4096; jmp again
    let Some(mut guest) = start(&[0x88, 0x07, 0x48, 0x81, 0xc7, 0, 0x10, 0, 0, 0xeb, 0xf5]) else { return };
    map(&mut guest.machine, guest.thread, 0x1_0000_0000, 2 * MEMORY_BYTES, false);
    let registers = guest.machine.registers(guest.thread).unwrap();
    guest.machine.set_registers(guest.thread, &Registers { rdi: 0x1_0000_0000, ..registers }).unwrap();
    assert_eq!(guest.go(), Event::Died(guest.space));
    guest.machine.end_space(guest.space);
    let again = (0..1000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10)); // until its processor has left it
        guest.machine.new_space().ok()
    });
    assert!(again.is_some());
}

#[test]
fn the_probe_says_what_a_call_costs() {
    let Ok(kvm) = Kvm::open() else { return };
    let figures = crate::probe::run(&kvm).expect("a guest that calls");
    assert!(figures.call_ns > 0 && figures.start_ns > 0, "{figures:?}");
    eprintln!("{figures:?}");
}
