//! Waiting without blocking: an object has a queue; whoever finds it not ready leaves a waker there and comes again.

use std::sync::{Arc, Mutex, Weak};

/// Readiness, the bits of poll(2) (and epoll's).
pub type Events = u32;

pub const IN: Events = 0x001;
pub const PRI: Events = 0x002;
pub const OUT: Events = 0x004;
pub const ERR: Events = 0x008;
pub const HUP: Events = 0x010;
pub const NVAL: Events = 0x020;
pub const RDHUP: Events = 0x2000;

/// Told that an object has become ready for something. Must be cheap, must not call back into the object.
pub trait Wake: Send + Sync {
    fn wake(&self, events: Events);
}

struct Waiter {
    id: u64,
    events: Events,
    wake: Arc<dyn Wake>,
}

#[derive(Default)]
struct Waiters {
    next: u64,
    list: Vec<Waiter>,
}

/// Those who wait for one object.
#[derive(Clone, Default)]
pub struct WaitQueue(Arc<Mutex<Waiters>>);

impl WaitQueue {
    pub fn new() -> Self {
        Self::default()
    }

    /// Be told of `events` (ERR and HUP always) until the registration is dropped.
    pub fn register(&self, events: Events, wake: Arc<dyn Wake>) -> Registration {
        let mut waiters = lock(&self.0);
        waiters.next += 1;
        let id = waiters.next;
        waiters.list.push(Waiter { id, events: events | ERR | HUP, wake });
        Registration { queue: Arc::downgrade(&self.0), id }
    }

    /// Tell everybody who waits for one of `events`. Call it with no lock held.
    pub fn wake(&self, events: Events) {
        let woken: Vec<_> =
            lock(&self.0).list.iter().filter(|w| w.events & events != 0).map(|w| Arc::clone(&w.wake)).collect();
        for wake in woken {
            wake.wake(events);
        }
    }
}

/// Ends the waiting when dropped.
pub struct Registration {
    queue: Weak<Mutex<Waiters>>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.upgrade() {
            lock(&queue).list.retain(|waiter| waiter.id != self.id);
        }
    }
}

/// A panic of another task must not spread by poison: what it left is whole enough to look at.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
