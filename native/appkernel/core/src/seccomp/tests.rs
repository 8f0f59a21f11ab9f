use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::bpf::{Program, Said, MAX_INSTRUCTIONS};
use super::{words, Budget, Filter, Seccomp, ALLOW, ERRNO, KILL_PROCESS, KILL_THREAD, TRAP};

type Code = (u16, u8, u8, u32);

const LOAD_NUMBER: Code = (0x20, 0, 0, 0);
const LOAD_ARCH: Code = (0x20, 0, 0, 4);
const LOAD_ARGUMENT: Code = (0x20, 0, 0, 16);

fn ret(value: u32) -> Code {
    (0x06, 0, 0, value)
}

fn equal(value: u32, yes: u8, no: u8) -> Code {
    (0x15, yes, no, value)
}

fn bytes(program: &[Code]) -> Vec<u8> {
    let one = |(code, yes, no, k): &Code| {
        let k = k.to_le_bytes();
        [code.to_le_bytes()[0], code.to_le_bytes()[1], *yes, *no, k[0], k[1], k[2], k[3]]
    };
    program.iter().flat_map(one).collect()
}

fn parsed(program: &[Code]) -> Program {
    Program::parse(&bytes(program)).unwrap()
}

fn said(program: &[Code], number: u64, argument: u64) -> Said {
    parsed(program).run(&words(number, 0, &[argument, 0, 0, 0, 0, 0]))
}

fn refused(program: &[Code]) -> bool {
    Program::parse(&bytes(program)).is_err()
}

#[test]
fn what_it_says_and_by_what() {
    let program = [LOAD_NUMBER, equal(7, 1, 0), ret(ALLOW), LOAD_ARGUMENT, equal(9, 0, 1), ret(ERRNO | 5), ret(ALLOW)];
    assert_eq!(said(&program, 1, 9), Said { verdict: ALLOW, by_number: true });
    assert_eq!(said(&program, 7, 9), Said { verdict: ERRNO | 5, by_number: false });
    assert_eq!(said(&program, 7, 8), Said { verdict: ALLOW, by_number: false });
    let arch = [LOAD_ARCH, equal(0xc000_003e, 0, 1), ret(ALLOW), ret(KILL_PROCESS)];
    assert_eq!(said(&arch, 0, 0), Said { verdict: ALLOW, by_number: true });
}

#[test]
fn arithmetic_and_cells() {
    // a = argument; x = a; a = a * x - 3; m[2] = a; a = 0; a = m[2]; return a
    let square = [
        LOAD_ARGUMENT,
        (0x07, 0, 0, 0),
        (0x2c, 0, 0, 0),
        (0x14, 0, 0, 3),
        (0x02, 0, 0, 2),
        (0x00, 0, 0, 0),
        (0x60, 0, 0, 2),
        (0x16, 0, 0, 0),
    ];
    assert_eq!(said(&square, 0, 5).verdict, 22);
    let divide = [LOAD_ARGUMENT, (0x07, 0, 0, 0), (0x00, 0, 0, 100), (0x3c, 0, 0, 0), (0x16, 0, 0, 0)];
    assert_eq!((said(&divide, 0, 7).verdict, said(&divide, 0, 0).verdict), (14, KILL_THREAD));
    assert_eq!(said(&[(0x80, 0, 0, 0), (0x16, 0, 0, 0)], 0, 0).verdict, 64);
}

#[test]
fn what_linux_refuses_is_refused() {
    assert!(Program::parse(&[]).is_err() && Program::parse(&[6, 0, 0]).is_err());
    assert!(refused(&[LOAD_NUMBER])); // no return
    assert!(refused(&[ret(0), LOAD_NUMBER]));
    assert!(refused(&[equal(1, 1, 0), ret(0)])); // out of the program
    assert!(refused(&[(0x05, 0, 0, 7), ret(0)]) && refused(&[(0x05, 0, 0, u32::MAX), ret(0)]));
    assert!(refused(&[(0x20, 0, 0, 2), ret(0)]) && refused(&[(0x20, 0, 0, 64), ret(0)])); // alignment, size
    assert!(refused(&[(0x28, 0, 0, 0), ret(0)]) && refused(&[(0x40, 0, 0, 0), ret(0)])); // halves, indirect
    assert!(refused(&[(0x60, 0, 0, 1), ret(0)])); // a cell that nobody wrote
    assert!(refused(&[(0x02, 0, 0, 16), ret(0)]));
    assert!(refused(&[(0x34, 0, 0, 0), ret(0)]) && refused(&[(0x64, 0, 0, 32), ret(0)])); // by zero, too far
    assert!(refused(&[(0x94, 0, 0, 3), ret(0)]) && refused(&[(0xffff, 0, 0, 0), ret(0)]));
    assert!(refused(&vec![ret(0); MAX_INSTRUCTIONS + 1]) && !refused(&vec![ret(0); MAX_INSTRUCTIONS]));
    // Written on one way only.
    assert!(refused(&[equal(1, 0, 1), (0x02, 0, 0, 0), (0x60, 0, 0, 0), ret(0)]));
    assert!(!refused(&[(0x02, 0, 0, 0), equal(1, 0, 1), (0x02, 0, 0, 0), (0x60, 0, 0, 0), ret(0)]));
}

#[test]
fn bytes_by_chance_are_refused_or_run_to_an_end() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    const CODES: [u16; 24] = [
        0x20, 0x80, 0x81, 0x00, 0x01, 0x60, 0x61, 0x02, 0x03, 0x04, 0x1c, 0x2c, 0x3c, 0x44, 0x54, 0x6c, 0x7c, 0x84,
        0xa4, 0x05, 0x15, 0x2d, 0x45, 0x87,
    ];
    let mut taken = 0;
    for _ in 0..20_000 {
        let size = 1 + next() % 12;
        let mut program: Vec<Code> = (0..size)
            .map(|_| (CODES[(next() % 24) as usize], (next() % 3) as u8, (next() % 3) as u8, (next() % 17) as u32 * 4))
            .collect();
        program.push((if next() % 2 == 0 { 0x16 } else { 0x06 }, 0, 0, next() as u32));
        if let Ok(program) = Program::parse(&bytes(&program)) {
            taken += 1;
            program.run(&words(next(), next(), &[next(); 6]));
        }
        let noise: Vec<u8> = (0..8 * size).map(|_| next() as u8).collect();
        if let Ok(program) = Program::parse(&noise) {
            program.run(&words(next(), next(), &[next(); 6]));
        }
    }
    assert!(taken > 1000, "only {taken} programs were valid");
}

fn filter(program: &[Code], below: Option<Arc<Filter>>, budget: &Budget) -> Arc<Filter> {
    Filter::new(parsed(program), below, budget).unwrap()
}

#[test]
fn the_strictest_of_several_counts_and_of_equals_the_newest() {
    let budget = Budget::default();
    let first = filter(&[ret(ERRNO | 1)], None, &budget);
    let second = filter(&[ret(ERRNO | 2)], Some(Arc::clone(&first)), &budget);
    let third = filter(&[ret(TRAP)], Some(Arc::clone(&second)), &budget);
    let last = filter(&[ret(ALLOW)], Some(Arc::clone(&third)), &budget);
    let call = words(3, 0, &[0; 6]);
    assert_eq!([&first, &second, &third, &last].map(|f| f.verdict(&call)), [ERRNO | 1, ERRNO | 2, TRAP, TRAP]);
    assert_eq!(Seccomp::Filtered(Arc::clone(&last)).count(), 4);
    assert!(Seccomp::Filtered(first).is_below(&Seccomp::Filtered(Arc::clone(&last))));
    assert!(!Seccomp::Filtered(last).is_below(&Seccomp::Filtered(second)));
    assert!(Seccomp::Off.is_below(&Seccomp::Strict) && !Seccomp::Strict.is_below(&Seccomp::Strict));
    drop(third);
    assert_eq!(budget.load(Ordering::Relaxed), 0);
}

#[test]
fn what_is_always_allowed_is_remembered_and_nothing_else() {
    let budget = Budget::default();
    let program = [LOAD_NUMBER, equal(7, 1, 0), ret(ALLOW), LOAD_ARGUMENT, equal(9, 0, 1), ret(ERRNO), ret(ALLOW)];
    let filter = filter(&program, None, &budget);
    let call = |number: u64, argument: u64| words(number, 0, &[argument, 0, 0, 0, 0, 0]);
    assert_eq!((filter.verdict(&call(1, 0)), filter.verdict(&call(7, 0))), (ALLOW, ALLOW));
    assert!(filter.is_known(1) && !filter.is_known(7));
    assert_eq!(filter.verdict(&call(7, 9)), ERRNO);
    assert_eq!(filter.verdict(&call(u64::MAX, 9)), ALLOW);
    assert!(!filter.is_known(usize::MAX) && !filter.is_known(u32::MAX as usize));
}

#[test]
fn there_are_only_so_many() {
    let budget = Budget::default();
    let long = vec![ret(ALLOW); MAX_INSTRUCTIONS];
    let (mut newest, mut count) = (None, 0);
    while let Ok(filter) = Filter::new(parsed(&long), newest.clone(), &budget) {
        (newest, count) = (Some(filter), count + 1);
    }
    assert_eq!(count, 7); // 8 * 4096 and the extra do not fit into 32 768
    let mut kept = vec![newest];
    while let Ok(filter) = Filter::new(parsed(&long), None, &budget) {
        kept.push(Some(filter));
    }
    assert_eq!(budget.load(Ordering::Relaxed), 1 << 20);
}
