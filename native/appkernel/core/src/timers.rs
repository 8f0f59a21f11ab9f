//! Deadlines: a queue on the monotonic clock, and the clock that objects of the VFS get.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::time::Armed;
use drupe_appkernel_vfs::wait::IN;
use drupe_appkernel_vfs::{Clock, ClockId, Timestamp, Wake};

use crate::host::Host;

type Queue = Arc<Mutex<BTreeMap<(u64, u64), Arc<dyn Wake>>>>;

/// Deadlines to come. One on another clock than the monotonic one is converted when it is armed: a later change of the
/// host's time does not move it.
pub struct Timers {
    host: Arc<dyn Host>,
    queue: Queue,
    next: AtomicU64,
}

pub fn nanoseconds(time: Timestamp) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(time.nanoseconds))
}

pub fn timestamp(ns: u64) -> Timestamp {
    Timestamp::new((ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as u32)
}

struct Handle {
    key: (u64, u64),
    queue: Queue,
}

impl Armed for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        let removed = self.queue.lock().remove(&self.key);
        drop(removed);
    }
}

impl Timers {
    pub fn new(host: Arc<dyn Host>) -> Arc<Timers> {
        Arc::new(Timers { host, queue: Queue::default(), next: AtomicU64::new(0) })
    }

    pub fn now_ns(&self) -> u64 {
        nanoseconds(self.host.now(ClockId::Monotonic))
    }

    /// Nanoseconds from now to the next deadline; None: there is none.
    pub fn until_next_ns(&self) -> Option<u64> {
        let first = self.queue.lock().first_key_value().map(|(key, _)| key.0)?;
        Some(first.saturating_sub(self.now_ns()))
    }

    /// Wake all whose time has come.
    pub fn fire(&self) {
        if self.queue.lock().is_empty() {
            return;
        }
        let now = self.now_ns();
        loop {
            let mut queue = self.queue.lock();
            match queue.first_key_value() {
                Some((&key, _)) if key.0 <= now => {
                    let waker = queue.remove(&key);
                    drop(queue);
                    waker.into_iter().for_each(|waker| waker.wake(IN));
                }
                _ => return,
            }
        }
    }

    /// Call `waker` at this time of the monotonic clock.
    pub fn at(&self, deadline_ns: u64, waker: Arc<dyn Wake>) -> Box<dyn Armed> {
        let key = (deadline_ns, self.next.fetch_add(1, Ordering::Relaxed));
        self.queue.lock().insert(key, waker);
        Box::new(Handle { key, queue: Arc::clone(&self.queue) })
    }

    /// The same moment on the monotonic clock.
    pub fn to_monotonic_ns(&self, clock: ClockId, deadline: Timestamp) -> u64 {
        let left = nanoseconds(deadline).saturating_sub(nanoseconds(self.host.now(clock)));
        self.now_ns().saturating_add(left)
    }
}

impl Clock for Timers {
    fn now(&self, clock: ClockId) -> Timestamp {
        self.host.now(clock)
    }

    fn arm(&self, clock: ClockId, deadline: Timestamp, waker: Arc<dyn Wake>) -> Box<dyn Armed> {
        self.at(self.to_monotonic_ns(clock, deadline), waker)
    }
}
