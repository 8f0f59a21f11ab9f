//! System V IPC: objects that no process need have open. Shared memory is a file like others.

use std::sync::Arc;

use drupe_appkernel_vfs::OpenFile;

use super::files::Files;
use super::state::{SavedIpc, SavedSegment, SavedSysV};
use super::{damaged, Refusal};
use crate::calls::{msg::Queue, sem::Semaphores, shm::Segment};
use crate::kernel::Kernel;
use crate::sysv::{Objects, Permissions};

impl<T> Objects<T> {
    fn save<S>(&self, one: impl Fn(&T) -> S) -> Vec<SavedIpc<S>> {
        let saved = |(id, (permissions, object)): (&i32, &(Permissions, T))| (*id, permissions.to_words(), one(object));
        self.all.iter().map(saved).collect()
    }

    /// None: one of them is not sound.
    fn restore<S>(next: i32, saved: &[SavedIpc<S>], one: impl Fn(&S) -> Option<T>) -> Option<Objects<T>> {
        let made = |(id, permissions, object): &SavedIpc<S>| {
            (*id > 0).then_some((*id, (Permissions::from_words(permissions), one(object)?)))
        };
        let all = saved.iter().map(made).collect::<Option<_>>()?;
        (next >= 0).then_some(Objects { all, next })
    }
}

impl Kernel {
    pub(super) fn save_sysv(&self, files: &mut Files<'_>) -> SavedSysV {
        let sysv = &self.sysv;
        let numbers: Vec<u32> = sysv.segments.values().map(|segment| files.number(segment.file())).collect();
        let mut segments = sysv.segments.save(|segment| segment.save());
        segments.iter_mut().zip(numbers).for_each(|((_, _, segment), file)| segment.file = file);
        SavedSysV {
            next: [sysv.segments.next, sysv.semaphores.next, sysv.queues.next],
            segments,
            semaphores: sysv.semaphores.save(Semaphores::save),
            queues: sysv.queues.save(Queue::save),
        }
    }

    pub(super) fn restore_sysv(&mut self, saved: &SavedSysV, files: &[Arc<OpenFile>]) -> Result<(), Refusal> {
        let segment = |saved: &SavedSegment| Segment::restore(saved, files.get(saved.file as usize)?);
        let lost = |what: &str| damaged(&format!("{what} of System V"));
        let [segments, semaphores, queues] = saved.next;
        self.sysv.segments =
            Objects::restore(segments, &saved.segments, segment).ok_or_else(|| lost("shared memory"))?;
        let made = Objects::restore(semaphores, &saved.semaphores, Semaphores::restore);
        self.sysv.semaphores = made.ok_or_else(|| lost("semaphores"))?;
        self.sysv.queues = Objects::restore(queues, &saved.queues, Queue::restore).ok_or_else(|| lost("a queue"))?;
        Ok(())
    }
}
