//! What is to happen later. A timer that lost its meaning is either cancelled or ignored when it fires.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a timer is for; the number is the id of the helper, task or namespace job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    HelperDeadline(u64),
    NamespaceDeadline(u64),
    /// Is the output of an ended task drained?
    Drain(u64),
    /// Is the terminal of a task, hung up before, in use again?
    Revive(u64),
    /// Has an adopted process been reaped by its new parent?
    AdoptedExit(u64),
    /// Read on from a source that epoll cannot watch (a regular file).
    PumpStdin(u64),
    /// Accept connections again after descriptors ran out.
    Listen,
    /// Give memory back after a burst.
    Trim,
}

pub type Key = (Instant, u64);

#[derive(Default)]
pub struct Timers {
    queue: BTreeMap<Key, Timer>,
    next: u64,
}

impl Timers {
    pub fn after(&mut self, delay: Duration, timer: Timer) -> Key {
        self.next += 1;
        let key = (Instant::now() + delay, self.next);
        self.queue.insert(key, timer);
        key
    }

    pub fn cancel(&mut self, key: Key) {
        self.queue.remove(&key);
    }

    /// The next timer that is due.
    pub fn due(&mut self) -> Option<Timer> {
        let entry = self.queue.first_entry()?;
        (entry.key().0 <= Instant::now()).then(|| entry.remove())
    }

    /// Milliseconds to wait for the next one, rounded up; -1: none.
    pub fn wait_ms(&self) -> i32 {
        let Some((key, _)) = self.queue.first_key_value() else { return -1 };
        let left = key.0.saturating_duration_since(Instant::now());
        left.as_micros().div_ceil(1000).min(60_000) as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_in_order_and_cancels() {
        let mut timers = Timers::default();
        assert_eq!(timers.wait_ms(), -1);
        timers.after(Duration::ZERO, Timer::Drain(1));
        let cancelled = timers.after(Duration::ZERO, Timer::Drain(2));
        timers.after(Duration::from_secs(9), Timer::Listen);
        timers.cancel(cancelled);
        assert_eq!(timers.due(), Some(Timer::Drain(1)));
        assert_eq!(timers.due(), None);
        assert!((8_000..=9_000).contains(&timers.wait_ms()));
    }
}
