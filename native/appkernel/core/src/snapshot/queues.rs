//! POSIX message queues: with their names, what they hold, and who is to be told.

use std::collections::HashMap;
use std::sync::Arc;

use drupe_appkernel_abi::coded;

use super::{damaged, Refusal};
use crate::kernel::Kernel;
use crate::mqueue::{MessageQueue, SavedMessages};

coded! {
    /// None: its name was removed.
    pub struct SavedNamed {
        pub name: Option<Vec<u8>>,
        pub queue: SavedMessages,
    }
}

/// Queues while a kernel is saved, each with its number.
#[derive(Default)]
pub(super) struct Queues {
    numbers: HashMap<usize, u32>,
    pub saved: Vec<SavedNamed>,
}

impl Queues {
    /// All that have a name.
    pub fn named(kernel: &Kernel) -> Queues {
        let mut queues = Queues::default();
        for (name, queue) in &kernel.message_queues.named {
            queues.add(queue, Some(name.clone()));
        }
        queues
    }

    fn add(&mut self, queue: &MessageQueue, name: Option<Vec<u8>>) -> u32 {
        let number = self.saved.len() as u32;
        self.numbers.insert(std::ptr::from_ref(queue) as usize, number);
        self.saved.push(SavedNamed { name, queue: queue.save() });
        number
    }

    pub fn number(&mut self, queue: &MessageQueue) -> u32 {
        let known = self.numbers.get(&(std::ptr::from_ref(queue) as usize)).copied();
        known.unwrap_or_else(|| self.add(queue, None))
    }
}

impl Kernel {
    /// All of them again, by their numbers.
    pub(super) fn restore_queues(&mut self, saved: &[SavedNamed]) -> Result<Vec<Arc<MessageQueue>>, Refusal> {
        let one = |SavedNamed { name, queue }: &SavedNamed| {
            let queue = MessageQueue::restore(queue)?;
            if let Some(name) = name {
                let sound = crate::calls::mq::is_name(name);
                self.message_queues.named.insert(sound.then(|| name.clone())?, Arc::clone(&queue));
            }
            Some(queue)
        };
        saved.iter().map(one).collect::<Option<_>>().ok_or_else(|| damaged("a message queue"))
    }
}
