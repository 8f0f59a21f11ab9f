//! timerfd_create(2).

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use drupe_appkernel_abi::{Errno, Result};

use crate::file::{Context, File, Metadata, Timestamp};
use crate::kind::FileType;
use crate::sync::Mutex;
use crate::time::{Armed, Clock, ClockId};
use crate::wait::{self, answer, when, Events, WaitQueue, Wake};

/// struct itimerspec: until the next expiration, and from then on. Zero: not armed; once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerSetting {
    pub value: Duration,
    pub interval: Duration,
}

#[derive(Default)]
pub(crate) struct State {
    /// The next expiration that was not yet counted; None: not armed.
    pub(crate) due: Option<Timestamp>,
    pub(crate) interval: Duration,
    pub(crate) expirations: u64,
    armed: Option<Box<dyn Armed>>,
}

/// A timer to wait for.
pub struct TimerFd {
    clock: Arc<dyn Clock>,
    pub(crate) id: ClockId,
    pub(crate) state: Mutex<State>,
    queue: WaitQueue,
}

struct Expired(WaitQueue);

impl Wake for Expired {
    fn wake(&self, _: Events) {
        self.0.wake(wait::READABLE);
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.since_epoch().saturating_add(by).into()
}

impl State {
    /// Count what has expired until `now`.
    fn advance(&mut self, now: Timestamp) {
        let Some(due) = self.due.filter(|&due| due <= now) else { return };
        if self.interval.is_zero() {
            self.expirations += 1;
            self.due = None;
            return;
        }
        let late = (now.since_epoch() - due.since_epoch()).as_nanos() / self.interval.as_nanos();
        let count = u64::try_from(late).unwrap_or(u64::MAX).saturating_add(1);
        self.expirations = self.expirations.saturating_add(count);
        let passed = self.interval.as_nanos() * u128::from(count);
        let passed = Duration::new((passed / 1_000_000_000) as u64, (passed % 1_000_000_000) as u32);
        self.due = Some(later(due, passed));
    }

    fn setting(&self, now: Timestamp) -> TimerSetting {
        let left = self.due.map_or(Duration::ZERO, |due| due.since_epoch().saturating_sub(now.since_epoch()));
        TimerSetting { value: left, interval: self.interval }
    }
}

impl TimerFd {
    pub fn new(clock: Arc<dyn Clock>, id: ClockId) -> Arc<Self> {
        Arc::new(Self { clock, id, state: Mutex::default(), queue: WaitQueue::new() })
    }

    /// timerfd_settime(2): what was set before. `absolute`: TFD_TIMER_ABSTIME.
    pub fn set(&self, new: TimerSetting, absolute: bool) -> TimerSetting {
        let now = self.clock.now(self.id);
        let mut state = self.state.lock();
        state.advance(now);
        let old = state.setting(now);
        let due = if absolute { new.value.into() } else { later(now, new.value) };
        state.due = (!new.value.is_zero()).then_some(due);
        state.interval = new.interval;
        state.expirations = 0;
        let replaced = self.arm(&mut state);
        drop(state);
        drop(replaced);
        old
    }

    /// timerfd_gettime(2).
    pub fn get(&self) -> TimerSetting {
        let now = self.clock.now(self.id);
        let mut state = self.state.lock();
        state.advance(now);
        state.setting(now)
    }

    /// Have the clock call at the next expiration; what was armed is for the caller to drop without the lock.
    pub(crate) fn arm(&self, state: &mut State) -> Option<Box<dyn Armed>> {
        let expired = Arc::new(Expired(self.queue.clone()));
        let armed = state.due.map(|due| self.clock.arm(self.id, due, expired));
        std::mem::replace(&mut state.armed, armed)
    }
}

impl File for TimerFd {
    fn read(&self, _: &Context, _: u64, out: &mut [u8]) -> Result<usize> {
        let out = out.get_mut(..8).ok_or(Errno::INVAL)?;
        let mut state = self.state.lock();
        state.advance(self.clock.now(self.id));
        if state.expirations == 0 {
            return Err(Errno::AGAIN);
        }
        out.copy_from_slice(&std::mem::take(&mut state.expirations).to_ne_bytes());
        let replaced = self.arm(&mut state);
        drop(state);
        drop(replaced);
        Ok(8)
    }

    fn write(&self, _: &Context, _: u64, _: &[u8]) -> Result<usize> {
        Err(Errno::INVAL)
    }

    fn poll(&self, interest: Events) -> Events {
        let mut state = self.state.lock();
        state.advance(self.clock.now(self.id));
        answer(interest, when(state.expirations > 0, wait::IN))
    }

    fn queue(&self) -> Option<&WaitQueue> {
        Some(&self.queue)
    }

    fn metadata(&self) -> Result<Metadata> {
        Ok(Metadata::new(FileType::Regular, 0o600))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
