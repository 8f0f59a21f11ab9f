//! Advisory locks of a file: flock(2), and POSIX and open-file-description record locks (fcntl(2)).

use std::sync::atomic::{AtomicBool, Ordering};

use drupe_appkernel_abi::{Errno, Result};

use crate::sync::Mutex;
use crate::wait::{self, WaitQueue};

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A process (its descriptor table, by a number of the core's), for POSIX locks; `pid` is what F_GETLK tells.
    Process { table: u64, pid: i32 },
    /// An open file (`OpenFile::id`), for flock and OFD locks.
    File(u64),
}

impl Owner {
    fn same(self, other: Self) -> bool {
        match (self, other) {
            (Self::Process { table: a, .. }, Self::Process { table: b, .. }) => a == b,
            (a, b) => a == b,
        }
    }
}

/// A locked range, `start..end` (end u64::MAX: to the end of the file, whatever that will be).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLock {
    pub owner: Owner,
    pub exclusive: bool,
    pub start: u64,
    pub end: u64,
}

impl RecordLock {
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.start < other.end && other.start < self.end;
        overlap && (self.exclusive || other.exclusive) && !self.owner.same(other.owner)
    }
}

#[derive(Default)]
struct Locks {
    records: Vec<RecordLock>,
    /// (open file, exclusive).
    whole: Vec<(u64, bool)>,
}

/// The locks of one file, and who waits for them.
#[derive(Default)]
pub struct FileLocks {
    locks: Mutex<Locks>,
    queue: WaitQueue,
    /// So that files that were never locked are closed quickly.
    used: AtomicBool,
}

impl FileLocks {
    /// Told whenever a lock was released.
    pub fn wait_queue(&self) -> &WaitQueue {
        &self.queue
    }

    /// All of them: ranges; whole files, by open file and whether exclusive.
    pub fn held(&self) -> (Vec<RecordLock>, Vec<(u64, bool)>) {
        let locks = self.locks.lock();
        (locks.records.clone(), locks.whole.clone())
    }

    /// flock(2) LOCK_SH or LOCK_EX for the open file; converts the one that it has. EAGAIN.
    ///
    /// A conversion first gives up what it had, as Linux's does.
    pub fn flock(&self, file: u64, exclusive: bool) -> Result<()> {
        self.used.store(true, Ordering::Relaxed);
        let mut locks = self.locks.lock();
        let had = locks.whole.len();
        locks.whole.retain(|&(other, kind)| other != file || kind == exclusive);
        let released = locks.whole.len() < had;
        let held = locks.whole.contains(&(file, exclusive));
        let free = locks.whole.iter().all(|&(other, kind)| other == file || !(kind || exclusive));
        if free && !held {
            locks.whole.push((file, exclusive));
        }
        drop(locks);
        if released {
            self.queue.wake(wait::IN);
        }
        free.then_some(()).ok_or(Errno::AGAIN)
    }

    /// flock(2) LOCK_UN.
    pub fn unlock_flock(&self, file: u64) {
        self.locks.lock().whole.retain(|&(other, _)| other != file);
        self.queue.wake(wait::IN);
    }

    /// F_SETLK: lock the range. EAGAIN when another holds one that conflicts.
    pub fn lock(&self, wanted: RecordLock) -> Result<()> {
        self.used.store(true, Ordering::Relaxed);
        let mut locks = self.locks.lock();
        if locks.records.iter().any(|held| held.conflicts(&wanted)) {
            return Err(Errno::AGAIN);
        }
        let downgrades = !wanted.exclusive;
        cut(&mut locks.records, wanted.owner, wanted.start, wanted.end);
        insert(&mut locks.records, wanted);
        drop(locks);
        if downgrades {
            self.queue.wake(wait::IN);
        }
        Ok(())
    }

    /// F_UNLCK of a range.
    pub fn unlock(&self, owner: Owner, start: u64, end: u64) {
        cut(&mut self.locks.lock().records, owner, start, end);
        self.queue.wake(wait::IN);
    }

    /// F_GETLK: a lock that would keep `wanted` from being had.
    pub fn conflict(&self, wanted: &RecordLock) -> Option<RecordLock> {
        self.locks.lock().records.iter().find(|held| held.conflicts(wanted)).copied()
    }

    /// A descriptor of this process for the file was closed: its POSIX locks go, all of them.
    pub fn release_process(&self, table: u64) {
        self.release(Owner::Process { table, pid: 0 });
    }

    pub(crate) fn release_file(&self, file: u64) {
        self.release(Owner::File(file));
    }

    fn release(&self, owner: Owner) {
        if !self.used.load(Ordering::Relaxed) {
            return;
        }
        let mut locks = self.locks.lock();
        locks.records.retain(|held| !held.owner.same(owner));
        locks.whole.retain(|&(file, _)| Owner::File(file) != owner);
        drop(locks);
        self.queue.wake(wait::IN);
    }
}

/// Take `start..end` out of what `owner` holds; what sticks out on either side stays.
fn cut(records: &mut Vec<RecordLock>, owner: Owner, start: u64, end: u64) {
    let (own, mut rest): (Vec<_>, Vec<_>) =
        records.drain(..).partition(|held| held.owner.same(owner) && held.start < end && start < held.end);
    for held in own {
        rest.extend((held.start < start).then_some(RecordLock { end: start, ..held }));
        rest.extend((held.end > end).then_some(RecordLock { start: end, ..held }));
    }
    *records = rest;
}

/// Add a lock, as one with neighbours of the same kind that touch it.
fn insert(records: &mut Vec<RecordLock>, mut wanted: RecordLock) {
    records.retain(|held| {
        let same = held.owner.same(wanted.owner) && held.exclusive == wanted.exclusive;
        let joins = same && held.start <= wanted.end && wanted.start <= held.end;
        if joins {
            wanted.start = wanted.start.min(held.start);
            wanted.end = wanted.end.max(held.end);
        }
        !joins
    });
    records.push(wanted);
    records.sort_by_key(|held| held.start);
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Owner = Owner::Process { table: 1, pid: 10 };
    const B: Owner = Owner::Process { table: 2, pid: 20 };

    fn range(owner: Owner, exclusive: bool, start: u64, end: u64) -> RecordLock {
        RecordLock { owner, exclusive, start, end }
    }

    #[test]
    fn ranges_conflict_split_and_join() {
        let locks = FileLocks::default();
        locks.lock(range(A, true, 0, 100)).unwrap();
        assert_eq!(locks.lock(range(B, false, 50, 60)), Err(Errno::AGAIN));
        locks.unlock(A, 40, 60);
        locks.lock(range(B, false, 50, 60)).unwrap();
        assert_eq!(locks.conflict(&range(B, true, 30, 55)), Some(range(A, true, 0, 40)));
        assert_eq!(locks.lock(range(A, true, 55, 56)), Err(Errno::AGAIN));
        locks.release_process(2);
        locks.lock(range(A, true, 40, 60)).unwrap();
        assert_eq!(locks.locks.lock().records, [range(A, true, 0, 100)]);
    }

    #[test]
    fn whole_file_locks_belong_to_the_open_file() {
        let locks = FileLocks::default();
        locks.flock(1, false).unwrap();
        locks.flock(2, false).unwrap();
        assert_eq!(locks.flock(1, true), Err(Errno::AGAIN));
        locks.release_file(2);
        locks.flock(1, true).unwrap();
        assert_eq!(locks.flock(3, false), Err(Errno::AGAIN));
        locks.unlock_flock(1);
        locks.flock(3, false).unwrap();
    }
}
