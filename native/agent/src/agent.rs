//! What the agent knows, behind one lock, and the word that something has changed.

use crate::children::Children;
use crate::container::Container;
use crate::events::Events;
use crate::fault::{fault, not_found, Code, Reply};
use crate::link::Link;
use crate::pool::Pool;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Where the agent's own files are, and whether it is PID 1 of a machine that it may change and power off.
pub struct Place {
    pub run: PathBuf,
    pub owns_machine: bool,
}

#[derive(Default)]
pub struct State {
    pub containers: BTreeMap<String, Container>,
    pub children: Children,
    pub events: Events,
    pub is_set_up: bool,
    pub put_away: Vec<String>, // devices without a driver, by their places (template.rs)
    pub is_deaf: bool,
    pub pod_pid: Option<u32>,
    pub is_ending: bool,
}

pub struct Agent {
    pub place: Place,
    pub pool: Pool,
    pub oom: crate::oom::Watch,
    state: Mutex<State>,
    changed: Condvar,
}

impl Agent {
    pub fn new(place: Place) -> Self {
        Agent {
            place,
            pool: Pool::default(),
            oom: Default::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Changes the state and tells all who wait for something.
    pub fn change<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let result = work(&mut self.state());
        self.wake();
        result
    }

    /// Everybody who waits looks again.
    pub fn wake(&self) {
        // Under the lock: who has just found nothing is then sure to be asleep.
        let _state = self.state();
        self.changed.notify_all();
    }

    /// Waits until `look` finds something; not beyond `deadline`, nor for a caller who has gone.
    pub fn await_some<T>(
        &self,
        link: Option<&Link>,
        deadline: Option<Instant>,
        mut look: impl FnMut(&mut State) -> Option<T>,
    ) -> Reply<T> {
        let mut state = self.state();
        loop {
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            if link.is_some_and(Link::is_closed) {
                return Err(fault(Code::Cancelled, "the connection has ended"));
            }
            let Some(deadline) = deadline else {
                state = self.changed.wait(state).unwrap();
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(fault(Code::DeadlineExceeded, "the call's time is over"));
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits until something may have changed, a tenth of a second at most: for what nobody tells. Fails at `deadline`, and
    /// for a caller who has gone.
    pub fn await_news(&self, link: Option<&Link>, deadline: Option<Instant>) -> Reply<()> {
        if link.is_some_and(Link::is_closed) {
            return Err(fault(Code::Cancelled, "the connection has ended"));
        }
        let left = deadline.map_or(LOOK_AGAIN, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Err(fault(Code::DeadlineExceeded, "the call's time is over"));
        }
        drop(self.changed.wait_timeout(self.state(), left.min(LOOK_AGAIN)));
        Ok(())
    }

    /// Works on a container under the lock. NotFound.
    pub fn with<T>(&self, id: &str, work: impl FnOnce(&mut Container) -> Reply<T>) -> Reply<T> {
        work(self.state().container(id)?)
    }
}

impl State {
    pub fn container(&mut self, id: &str) -> Reply<&mut Container> {
        self.containers.get_mut(id).ok_or_else(|| not_found(format!("there is no container {id:?} here")))
    }
}
