//! Events, numbered; the last ones are kept for a host that comes back.

use crate::children::Exit;
use crate::proto::guest::{self, Event};
use std::collections::VecDeque;

const KEPT: usize = 1024;

#[derive(Default)]
pub struct Events {
    last: u64,
    kept: VecDeque<Event>,
}

impl Events {
    fn add(&mut self, event: Event) {
        self.last += 1;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Event { number: self.last, ..event });
    }

    pub fn exit(&mut self, id: &str, exec_id: &str, pid: u32, exit: Exit, oom_killed: bool) {
        let exit = guest::Exit {
            id: id.into(),
            exec_id: exec_id.into(),
            pid,
            status: exit.status,
            at_unix_ns: exit.at_unix_ns,
            oom_killed,
        };
        self.add(Event { exit: Some(exit), ..Event::default() });
    }

    pub fn oom(&mut self, id: &str) {
        self.add(Event { oom: Some(guest::Oom { id: id.into() }), ..Event::default() });
    }

    pub fn device(&mut self, path: &str, is_added: bool) {
        let (added, removed) = if is_added { (Some(path.into()), None) } else { (None, Some(path.into())) };
        self.add(Event { device_added: added, device_removed: removed, ..Event::default() });
    }

    /// Those after `number`; None: there are none yet.
    pub fn after(&self, number: u64) -> Option<Vec<Event>> {
        let found: Vec<Event> = self.kept.iter().filter(|event| event.number > number).cloned().collect();
        (!found.is_empty()).then_some(found)
    }
}
