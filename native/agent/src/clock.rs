//! The wall clock.

use crate::fault::{During, Reply};
use crate::proto::wellknown::Timestamp;
use rustix::time::{clock_gettime, clock_settime, ClockId, Timespec};

const NANOS: i64 = 1_000_000_000;

pub fn now_unix_ns() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec * NANOS + now.tv_nsec
}

/// 0: leave it as it is.
pub fn set(unix_ns: i64) -> Reply<()> {
    if unix_ns == 0 {
        return Ok(());
    }
    let time = Timespec { tv_sec: unix_ns.div_euclid(NANOS), tv_nsec: unix_ns.rem_euclid(NANOS) };
    clock_settime(ClockId::Realtime, time).during(|| format!("cannot set the clock to {unix_ns} ns"))
}

pub fn timestamp(unix_ns: i64) -> Timestamp {
    Timestamp { seconds: unix_ns.div_euclid(NANOS), nanos: unix_ns.rem_euclid(NANOS) as i32 }
}
