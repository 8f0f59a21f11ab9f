//! How often a thread calls: whether it pays to watch its slot instead of sleeping until it rings.

/// A call this soon after the last answer is a quick one.
const QUICK_NS: u64 = 60_000;
/// Quick calls in a row that make a thread quick; doubled by each time that it was watched in vain, up to the limit.
const PATIENCE: u32 = 2;
const MAX_MISSES: u32 = 6;

/// What is known of one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    resumed_ns: u64,
    quick: u32,
    misses: u32,
}

impl Pace {
    pub fn is_quick(&self) -> bool {
        self.quick >= PATIENCE << self.misses
    }

    pub fn resumed(&mut self, now_ns: u64) {
        self.resumed_ns = now_ns;
    }

    /// It has rung the doorbell.
    pub fn rang(&mut self, now_ns: u64) {
        let soon = now_ns.saturating_sub(self.resumed_ns) < QUICK_NS;
        self.quick = if soon { self.quick.saturating_add(1) } else { 0 };
    }

    /// It has trapped while it was watched.
    pub fn hit(&mut self) {
        self.misses = self.misses.saturating_sub(1);
    }

    /// It was watched, and did not trap in that time.
    pub fn missed(&mut self) {
        self.quick = 0;
        self.misses = (self.misses + 1).min(MAX_MISSES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_was_watched_in_vain_must_be_quick_for_longer() {
        let mut pace = Pace::default();
        let calls_until_quick = |pace: &mut Pace| {
            let mut calls = 0;
            while !pace.is_quick() {
                pace.resumed(calls);
                pace.rang(calls + 1000);
                calls += 1;
            }
            calls
        };
        let first = calls_until_quick(&mut pace);
        pace.missed();
        assert!(calls_until_quick(&mut pace) > first);
        pace.hit();
        pace.resumed(0);
        pace.rang(QUICK_NS * 2);
        assert!(!pace.is_quick());
    }
}
