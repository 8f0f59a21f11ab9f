//! When a machine is quiet: of the last second its processors ran for a fifth at most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);
const BUSY_PART: u32 = 5;
/// A machine in which something is run now and then keeps what that needs.
const NOT_AGAIN_WITHIN: Duration = Duration::from_secs(60);

/// What is known of the current window.
pub struct Quiet {
    began: Instant,
    busy: Duration,
    awake: BTreeMap<u32, Instant>,
    taken: Option<Instant>,
}

impl Quiet {
    pub fn new(now: Instant) -> Self {
        Self { began: now, busy: Duration::ZERO, awake: BTreeMap::new(), taken: None }
    }

    pub fn woke(&mut self, processor: u32, now: Instant) {
        self.awake.insert(processor, now);
    }

    /// A processor went to sleep; whether a quiet window has ended with that.
    pub fn slept(&mut self, processor: u32, now: Instant) -> bool {
        if let Some(since) = self.awake.remove(&processor) {
            self.busy += now - since;
        }
        let window = now - self.began;
        if window < WINDOW {
            return false;
        }
        let others: Duration = self.awake.values().map(|since| now - *since).sum();
        let quiet = (self.busy + others) * BUSY_PART <= window;
        (self.began, self.busy) = (now, Duration::ZERO);
        quiet && self.taken.is_none_or(|taken| now - taken >= NOT_AGAIN_WITHIN)
    }

    /// A quiet window is used; true, for whoever asks in a chain.
    pub fn take(&mut self) -> bool {
        self.taken = Some(self.began);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(begin: Instant, ms: u64) -> Instant {
        begin + Duration::from_millis(ms)
    }

    #[test]
    fn a_window_that_was_mostly_slept_through_is_quiet() {
        let begin = Instant::now();
        let mut quiet = Quiet::new(begin);
        quiet.woke(0, at(begin, 100));
        assert!(!quiet.slept(0, at(begin, 200)), "the window has not ended");
        quiet.woke(0, at(begin, 1000));
        assert!(quiet.slept(0, at(begin, 1010)));
    }

    #[test]
    fn a_window_of_work_is_not() {
        let begin = Instant::now();
        let mut quiet = Quiet::new(begin);
        quiet.woke(0, at(begin, 0));
        assert!(!quiet.slept(0, at(begin, 1200)));
        quiet.woke(0, at(begin, 2250));
        assert!(quiet.slept(0, at(begin, 2300)), "the next one is");
    }

    #[test]
    fn nor_one_in_which_another_processor_works() {
        let begin = Instant::now();
        let mut quiet = Quiet::new(begin);
        quiet.woke(1, at(begin, 10));
        assert!(!quiet.slept(0, at(begin, 1010)));
    }

    #[test]
    fn after_one_was_used_there_is_none_for_a_minute() {
        let begin = Instant::now();
        let mut quiet = Quiet::new(begin);
        assert!(quiet.slept(0, at(begin, 1000)) && quiet.take());
        assert!(!quiet.slept(0, at(begin, 3000)));
        assert!(quiet.slept(0, at(begin, 61_500)));
    }
}
