//! PID namespaces: containers number their processes each for itself, unless they share a view.
//!
//! Inside the kernel a number says its view too, in the bits above; what programs see is the rest. So the numbers of one
//! container mean nothing in another, whatever is done with them, and in the first view both are the same.

use crate::kernel::{Answer, Done, Kernel};
use crate::task::{Pid, Tid};

/// Bits of a number as programs see it: they count to four million (PID_MAX_LIMIT of 64-bit hosts).
const BITS: u32 = 22;
/// One more than the highest view; the bits above are not numbers (`task::ALARM`).
pub const MAX_VIEWS: u32 = 256;

pub fn view_of(pid: Pid) -> u32 {
    pid >> BITS
}

/// As programs see it.
pub fn seen(pid: Pid) -> u32 {
    pid & ((1 << BITS) - 1)
}

/// As programs see it from `view`; 0: it is not in there.
pub fn seen_from(view: u32, pid: Pid) -> u32 {
    if view_of(pid) == view {
        seen(pid)
    } else {
        0
    }
}

/// A program's number in this view; one that no process can have stays such a number.
pub fn known(view: u32, number: u32) -> Pid {
    match number >> BITS {
        0 => view << BITS | number,
        _ => u32::MAX >> 1,
    }
}

/// Rewrite the number at the beginning of some bytes, as programs see it from `view`.
pub(crate) fn show(view: u32, bytes: &mut [u8]) {
    if let Some(place) = bytes.first_chunk_mut::<4>() {
        *place = seen_from(view, u32::from_le_bytes(*place)).to_le_bytes();
    }
}

/// The other way round.
pub(crate) fn take(view: u32, bytes: &mut [u8]) {
    if let Some(place) = bytes.first_chunk_mut::<4>() {
        *place = known(view, u32::from_le_bytes(*place)).to_le_bytes();
    }
}

/// The same of a number with a sign: groups are negative; 0 and -1 have meanings of their own.
fn signed(view: u32, number: u64) -> u64 {
    let number = number as i32;
    let whole = match number {
        0 | -1 | i32::MIN => number,
        n if n < 0 => -(known(view, n.unsigned_abs()) as i32),
        n => known(view, n as u32) as i32,
    };
    whole as i64 as u64
}

/// Which arguments of a call are numbers of processes, groups or threads.
fn places(number: u64, args: &[u64; 6]) -> &'static [usize] {
    const F_SETOWN: u64 = 8;
    match number {
        // wait4, kill, getpgid, getsid, rt_sigqueueinfo, sched_*, tkill, prlimit64, pidfd_open, process_vm_*
        61 | 62 | 121 | 124 | 129 | 142..=145 | 148 | 200 | 203 | 204 | 302 | 310 | 311 | 314 | 315 | 434 => &[0],
        109 | 234 | 297 => &[0, 1],
        101 | 140 | 141 => &[1],
        247 if matches!(args[0], 1 | 2) => &[1],
        72 if args[1] == F_SETOWN => &[2],
        274 => &[0],
        _ => &[],
    }
}

/// Whether a call answers with such a number.
fn answers(number: u64, args: &[u64; 6]) -> bool {
    const F_GETOWN: u64 = 9;
    matches!(number, 39 | 56..=58 | 61 | 110..=112 | 121 | 124 | 186 | 218 | 435)
        || (number == 72 && args[1] == F_GETOWN)
}

/// The arguments of a call made in `view`, with whole numbers.
pub(crate) fn inward(view: u32, number: u64, args: &[u64; 6]) -> [u64; 6] {
    let mut whole = *args;
    if view > 0 {
        places(number, args).iter().for_each(|&at| whole[at] = signed(view, args[at]));
    }
    whole
}

/// The answer of a call made in `view`, as programs see it.
pub(crate) fn outward(view: u32, number: u64, args: &[u64; 6], answer: Answer) -> Answer {
    match answer {
        Ok(Done::Value(value)) if view > 0 && answers(number, args) => Ok(Done::Value(match value.signum() {
            1 => seen_from(view, value as u32).into(),
            -1 if number == 72 => -i64::from(seen(value.unsigned_abs() as u32)),
            _ => value,
        })),
        other => other,
    }
}

impl Kernel {
    /// A view that nobody has; 0 while there is none at all. None: there are too many.
    pub fn fresh_view(&self) -> Option<u32> {
        let used = |view: &u32| self.tasks.processes.keys().any(|pid| view_of(*pid) == *view);
        (0..MAX_VIEWS).find(|view| !used(view))
    }

    /// The view of the task that makes a call.
    pub(crate) fn view(&self, tid: Tid) -> u32 {
        view_of(tid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways_and_stay_in_their_view() {
        for view in [0, 1, MAX_VIEWS - 1] {
            let whole = known(view, 77);
            assert_eq!((view_of(whole), seen(whole)), (view, 77));
            assert_eq!(seen_from(view, whole), 77);
            assert_eq!(seen_from(view + 1, whole), 0);
        }
        // A program cannot name another view's numbers by their upper bits.
        let foreign = known(3, known(5, 1));
        assert!(view_of(foreign) >= MAX_VIEWS);
    }

    #[test]
    fn groups_and_the_special_numbers() {
        let kill = |which: i32| inward(2, 62, &[which as i64 as u64, 9, 0, 0, 0, 0])[0] as i32;
        assert_eq!((kill(0), kill(-1), kill(i32::MIN)), (0, -1, i32::MIN));
        assert_eq!(kill(5), known(2, 5) as i32);
        assert_eq!(kill(-5), -(known(2, 5) as i32));
        assert_eq!(inward(0, 62, &[5, 9, 0, 0, 0, 0]), [5, 9, 0, 0, 0, 0]);
    }

    #[test]
    fn only_what_is_a_number_of_a_process_is_changed() {
        let read = [1, 2, 3, 0, 0, 0];
        assert_eq!(inward(4, 0, &read), read);
        let Ok(Done::Value(value)) = outward(4, 39, &read, Ok(Done::Value(known(4, 9).into()))) else { panic!() };
        assert_eq!(value, 9);
        let Ok(Done::Value(value)) = outward(4, 0, &read, Ok(Done::Value(known(4, 9).into()))) else { panic!() };
        assert_eq!(value, i64::from(known(4, 9)));
    }
}
