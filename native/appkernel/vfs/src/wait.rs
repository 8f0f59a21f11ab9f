//! Waiting without blocking: an object has a queue; whoever finds it not ready leaves a waker there and comes again.

use std::sync::{Arc, Weak};

use crate::sync::Mutex;

/// Readiness, the bits of poll(2) (and epoll's).
pub type Events = u32;

pub const IN: Events = 0x001;
pub const PRI: Events = 0x002;
pub const OUT: Events = 0x004;
pub const ERR: Events = 0x008;
pub const HUP: Events = 0x010;
pub const NVAL: Events = 0x020;
pub const RDNORM: Events = 0x040;
pub const WRNORM: Events = 0x100;
pub const RDHUP: Events = 0x2000;

/// What an object that can be read says, and one that can be written.
pub const READABLE: Events = IN | RDNORM;
pub const WRITABLE: Events = OUT | WRNORM;

/// `events` if `condition`, else none.
pub fn when(condition: bool, events: Events) -> Events {
    if condition {
        events
    } else {
        0
    }
}

/// What poll(2) says of an object in the state `mask` to one who asks for `interest`: errors come unasked.
pub fn answer(interest: Events, mask: Events) -> Events {
    mask & (interest | ERR | HUP | NVAL)
}

/// Told that an object has become ready for something. Must be cheap, must not call back into the object.
pub trait Wake: Send + Sync {
    fn wake(&self, events: Events);
}

struct Waiter {
    id: u64,
    events: Events,
    exclusive: bool,
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
        self.add(events, wake, false)
    }

    /// As `register`, but of all exclusive waiters only the first is told (EPOLLEXCLUSIVE), and then goes to the end.
    pub fn register_exclusive(&self, events: Events, wake: Arc<dyn Wake>) -> Registration {
        self.add(events, wake, true)
    }

    fn add(&self, events: Events, wake: Arc<dyn Wake>, exclusive: bool) -> Registration {
        let mut waiters = self.0.lock();
        waiters.next += 1;
        let id = waiters.next;
        waiters.list.push(Waiter { id, events: events | ERR | HUP, exclusive, wake });
        Registration { queue: Arc::downgrade(&self.0), id }
    }

    /// Tell everybody who waits for one of `events`. Call it with no lock held.
    pub fn wake(&self, events: Events) {
        for wake in self.interested(events) {
            wake.wake(events);
        }
    }

    fn interested(&self, events: Events) -> Vec<Arc<dyn Wake>> {
        let list = &mut self.0.lock().list;
        let matching = |waiter: &&Waiter| !waiter.exclusive && waiter.events & events != 0;
        let mut found: Vec<_> = list.iter().filter(matching).map(|waiter| Arc::clone(&waiter.wake)).collect();
        if let Some(index) = list.iter().position(|waiter| waiter.exclusive && waiter.events & events != 0) {
            let first = list.remove(index);
            found.push(Arc::clone(&first.wake));
            list.push(first);
        }
        found
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.0.lock().list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Ends the waiting when dropped.
#[must_use = "dropping a registration ends the waiting"]
pub struct Registration {
    queue: Weak<Mutex<Waiters>>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(queue) = self.queue.upgrade() else { return };
        let mut waiters = queue.lock();
        let found = waiters.list.iter().position(|waiter| waiter.id == self.id);
        let removed = found.map(|index| waiters.list.remove(index));
        drop(waiters);
        drop(removed); // may be the last of a waker: without the lock
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Counter(AtomicU32);

    impl Wake for Counter {
        fn wake(&self, _: Events) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count(counter: &Counter) -> u32 {
        counter.0.load(Ordering::Relaxed)
    }

    #[test]
    fn only_what_was_asked_for_wakes_and_only_while_registered() {
        let (queue, counter) = (WaitQueue::new(), Arc::new(Counter::default()));
        let registration = queue.register(IN, counter.clone());
        queue.wake(OUT);
        assert_eq!(count(&counter), 0);
        queue.wake(IN);
        queue.wake(HUP);
        assert_eq!(count(&counter), 2);
        drop(registration);
        queue.wake(IN);
        assert_eq!((count(&counter), queue.len()), (2, 0));
    }

    #[test]
    fn one_exclusive_waiter_is_told_in_turn_and_the_others_all() {
        let queue = WaitQueue::new();
        let counters: Vec<Arc<Counter>> = (0..4).map(|_| Arc::default()).collect();
        let _shared = queue.register(IN, counters[0].clone());
        let _first = queue.register_exclusive(IN, counters[1].clone());
        let _second = queue.register_exclusive(IN, counters[2].clone());
        let _late = queue.register(IN, counters[3].clone());
        queue.wake(IN);
        assert_eq!(counters.iter().map(|c| count(c)).collect::<Vec<_>>(), [1, 1, 0, 1]);
        queue.wake(IN);
        assert_eq!(counters.iter().map(|c| count(c)).collect::<Vec<_>>(), [2, 1, 1, 2]);
    }
}
