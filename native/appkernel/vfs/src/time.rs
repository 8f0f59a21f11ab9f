//! Times, and the clock that the core gives.

use std::sync::Arc;
use std::time::Duration;

use crate::file::Timestamp;
use crate::wait::Wake;

impl Timestamp {
    pub const ZERO: Self = Self { seconds: 0, nanoseconds: 0 };

    pub const fn new(seconds: i64, nanoseconds: u32) -> Self {
        Self { seconds, nanoseconds }
    }

    /// The time after the epoch; zero for what lies before it.
    pub fn since_epoch(self) -> Duration {
        u64::try_from(self.seconds).map_or(Duration::ZERO, |seconds| Duration::new(seconds, self.nanoseconds))
    }
}

impl From<Duration> for Timestamp {
    fn from(duration: Duration) -> Self {
        Self::new(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), duration.subsec_nanos())
    }
}

/// Which clock (clock_gettime(2)); the coarse and raw ones are for the core to fold into these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClockId {
    Realtime,
    Monotonic,
    Boottime,
    /// The time of the last tick, to be read alone.
    RealtimeCoarse,
    MonotonicCoarse,
}

/// Reads clocks and calls back at a time. The core implements it; tests have one that they turn by hand.
pub trait Clock: Send + Sync {
    fn now(&self, clock: ClockId) -> Timestamp;

    /// Call `waker` once `clock` has reached `deadline`; at once if it has already. Dropping the handle disarms it.
    fn arm(&self, clock: ClockId, deadline: Timestamp, waker: Arc<dyn Wake>) -> Box<dyn Armed>;
}

/// A timer that runs until it is dropped.
pub trait Armed: Send + Sync {}
