use std::sync::Arc;
use std::time::Duration;

use drupe_appkernel_abi::Errno;

use super::*;
use crate::file::{File, Timestamp};
use crate::sync::Mutex;
use crate::testing::{Asker, Counter, HandClock};
use crate::time::ClockId;
use crate::wait::{self, WaitQueue};

fn expirations(timer: &TimerFd) -> Result<u64, Errno> {
    let (asker, mut out) = (Asker::root(), [0; 8]);
    timer.read(&asker.context(), 0, &mut out).map(|_| u64::from_ne_bytes(out))
}

#[test]
fn a_timer_counts_what_nobody_read_and_wakes_once() {
    let clock = Arc::new(HandClock::default());
    let timer = TimerFd::new(clock.clone(), ClockId::Monotonic);
    let woken = Arc::new(Counter::default());
    let _registration = timer.queue().unwrap().register(wait::IN, woken.clone());
    let second = Duration::from_secs(1);
    timer.set(TimerSetting { value: second * 2, interval: second }, false);
    clock.turn_to(Timestamp::new(1, 999_999_999));
    assert_eq!((expirations(&timer), woken.count()), (Err(Errno::AGAIN), 0));
    clock.turn_to(Timestamp::new(5, 500_000_000));
    assert_eq!((timer.poll(wait::IN), woken.count()), (wait::IN, 1));
    assert_eq!(timer.get(), TimerSetting { value: second / 2, interval: second });
    assert_eq!(expirations(&timer), Ok(4)); // at 2, 3, 4 and 5 s
    clock.turn_to(Timestamp::new(6, 0));
    assert_eq!((expirations(&timer), woken.count()), (Ok(1), 2));
}

#[test]
fn a_timer_that_is_set_anew_forgets_and_one_of_zero_is_off() {
    let clock = Arc::new(HandClock::default());
    let timer = TimerFd::new(clock.clone(), ClockId::Realtime);
    let (value, interval) = (Duration::from_secs(10), Duration::ZERO);
    timer.set(TimerSetting { value, interval }, true);
    clock.turn_to(Timestamp::new(4, 0));
    let old = timer.set(TimerSetting::default(), false);
    assert_eq!(old, TimerSetting { value: Duration::from_secs(6), interval });
    clock.turn_to(Timestamp::new(20, 0));
    assert_eq!(expirations(&timer), Err(Errno::AGAIN));
    timer.set(TimerSetting { value, interval }, true); // in the past: at once
    assert_eq!(expirations(&timer), Ok(1));
    assert_eq!(expirations(&timer), Err(Errno::AGAIN));
}

struct Pending(Mutex<Vec<u8>>);

impl Signals for Pending {
    fn take(&self, mask: u64) -> Option<[u8; SIGINFO_BYTES]> {
        let mut pending = self.0.lock();
        let at = pending.iter().position(|signal| mask >> (signal - 1) & 1 == 1)?;
        let mut info = [0; SIGINFO_BYTES];
        info[0] = pending.remove(at);
        Some(info)
    }

    fn is_pending(&self, mask: u64) -> bool {
        self.0.lock().iter().any(|signal| mask >> (signal - 1) & 1 == 1)
    }
}

#[test]
fn a_signalfd_gives_the_signals_of_its_mask_only() {
    let pending = Arc::new(Pending(Mutex::new(vec![2, 10, 15])));
    let file = SignalFd::new(1 << 9 | 1 << 14, pending.clone(), WaitQueue::new());
    let (asker, mut out) = (Asker::root(), [0; 300]);
    assert_eq!(file.read(&asker.context(), 0, &mut out[..127]), Err(Errno::INVAL));
    assert_eq!(file.poll(wait::IN), wait::IN);
    assert_eq!(file.read(&asker.context(), 0, &mut out), Ok(256));
    assert_eq!((out[0], out[128], file.poll(wait::IN)), (10, 15, 0));
    assert_eq!(file.read(&asker.context(), 0, &mut out), Err(Errno::AGAIN));
    file.set_mask(1 << 1);
    assert_eq!(file.read(&asker.context(), 0, &mut out), Ok(128));
}
