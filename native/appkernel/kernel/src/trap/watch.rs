//! Slots that are looked at instead of waiting until their threads ring.

use drupe_appkernel_core::platform::{Event, ThreadId};

use super::{Stubs, Waiting};

/// How long slots are looked at before this process sleeps; looks between two readings of the clock.
const WATCH_NS: u64 = 40_000;
const LOOKS: u32 = 32;

impl Stubs {
    /// Look at the slots of quick threads for a while; then sleep will be better.
    pub(super) fn watch(&mut self, timeout_ns: Option<u64>, events: &mut Vec<Event>) {
        let begun = self.now_ns();
        let limit = begun + timeout_ns.map_or(WATCH_NS, |ns| ns.min(WATCH_NS));
        loop {
            for _ in 0..LOOKS {
                let rung = |id: &&ThreadId| self.threads.get(id).is_some_and(|thread| thread.slot.has_rung());
                if let Some(&id) = self.watched.iter().find(rung) {
                    return self.rung(id, events);
                }
                std::hint::spin_loop();
            }
            if self.now_ns() >= limit {
                break;
            }
        }
        for id in std::mem::take(&mut self.watched) {
            let Some(thread) = self.threads.get_mut(&id) else { continue };
            if thread.slot.unwatch() {
                thread.pace.missed();
            } else {
                self.rung(id, events);
            }
        }
    }

    fn rung(&mut self, id: ThreadId, events: &mut Vec<Event>) {
        self.watched.retain(|watched| *watched != id);
        if let Some(thread) = self.threads.get_mut(&id) {
            thread.waiting = Some(Waiting::Slot);
            thread.pace.hit();
            events.push(Event::Trap(id, self.trap(id)));
        }
    }
}
