//! Advisory locks of a file: flock(2), and POSIX and open-file-description record locks (fcntl(2)).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use drupe_appkernel_abi::{Errno, Result};

use crate::sync::Mutex;
use crate::wait::{self, WaitQueue};

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A process (its descriptor table, by a number of the core's), for POSIX locks; `pid` is what F_GETLK tells.
    Process { table: u64, pid: i32 },
    /// An open file (`OpenFile::id`), for flock and OFD locks.
    File(u64),
}

impl Owner {
    /// The same for all locks of one owner, whatever it is called.
    fn key(self) -> Self {
        match self {
            Self::Process { table, .. } => Self::Process { table, pid: 0 },
            file => file,
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

#[derive(Default)]
struct Locks {
    records: Records,
    /// (open file, exclusive).
    whole: Vec<(u64, bool)>,
}

/// By owner (`Owner::key`). Those of one do not overlap, and are by where they start.
#[derive(Default)]
struct Records(BTreeMap<Owner, BTreeMap<u64, RecordLock>>);

/// Those of one owner that have something in `start..end`, the first one first.
fn overlapping(own: &BTreeMap<u64, RecordLock>, start: u64, end: u64) -> impl Iterator<Item = &RecordLock> {
    let before = own.range(..start).next_back().map(|(_, held)| held).filter(|held| held.end > start);
    before.into_iter().chain(own.range(start..end.max(start)).map(|(_, held)| held))
}

impl Records {
    /// The first lock that keeps `wanted` from being had.
    fn conflict(&self, wanted: &RecordLock) -> Option<RecordLock> {
        let others = self.0.iter().filter(|(owner, _)| **owner != wanted.owner.key());
        let first = others.filter_map(|(_, own)| {
            overlapping(own, wanted.start, wanted.end).find(|held| wanted.exclusive || held.exclusive)
        });
        first.min_by_key(|held| held.start).copied()
    }

    /// Take `start..end` out of what `owner` holds; what sticks out on either side stays.
    fn cut(&mut self, owner: Owner, start: u64, end: u64) {
        let Some(own) = self.0.get_mut(&owner.key()) else { return };
        let all: Vec<RecordLock> = overlapping(own, start, end).copied().collect();
        for held in all {
            own.remove(&held.start);
            let left = (held.start < start).then_some(RecordLock { end: start, ..held });
            let right = (held.end > end).then_some(RecordLock { start: end, ..held });
            own.extend(left.into_iter().chain(right).map(|held| (held.start, held)));
        }
        if own.is_empty() {
            self.0.remove(&owner.key());
        }
    }

    /// Add a lock where its owner has none, as one with neighbours of the same kind that touch it.
    fn insert(&mut self, mut wanted: RecordLock) {
        let own = self.0.entry(wanted.owner.key()).or_default();
        let before = own.range(..wanted.start).next_back().map(|(_, held)| *held);
        if let Some(held) = before.filter(|held| held.end == wanted.start && held.exclusive == wanted.exclusive) {
            own.remove(&held.start);
            wanted.start = held.start;
        }
        if let Some(held) = own.get(&wanted.end).copied().filter(|held| held.exclusive == wanted.exclusive) {
            own.remove(&held.start);
            wanted.end = held.end;
        }
        own.insert(wanted.start, wanted);
    }

    fn all(&self) -> Vec<RecordLock> {
        let mut all: Vec<RecordLock> = self.0.values().flat_map(BTreeMap::values).copied().collect();
        all.sort_by_key(|held| held.start);
        all
    }
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
        (locks.records.all(), locks.whole.clone())
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
        if locks.records.conflict(&wanted).is_some() {
            return Err(Errno::AGAIN);
        }
        let downgrades = !wanted.exclusive;
        locks.records.cut(wanted.owner, wanted.start, wanted.end);
        locks.records.insert(wanted);
        drop(locks);
        if downgrades {
            self.queue.wake(wait::IN);
        }
        Ok(())
    }

    /// F_UNLCK of a range.
    pub fn unlock(&self, owner: Owner, start: u64, end: u64) {
        self.locks.lock().records.cut(owner, start, end);
        self.queue.wake(wait::IN);
    }

    /// F_GETLK: a lock that would keep `wanted` from being had.
    pub fn conflict(&self, wanted: &RecordLock) -> Option<RecordLock> {
        self.locks.lock().records.conflict(wanted)
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
        locks.records.0.remove(&owner.key());
        locks.whole.retain(|&(file, _)| Owner::File(file) != owner);
        drop(locks);
        self.queue.wake(wait::IN);
    }
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
        assert_eq!(locks.held().0, [range(A, true, 0, 100)]);
    }

    /// What each byte is locked as, by what was asked for in this order.
    fn bytes(held: &[RecordLock], owner: Owner) -> Vec<Option<bool>> {
        let of = |at: u64| held.iter().find(|lock| lock.owner == owner && (lock.start..lock.end).contains(&at));
        (0..64).map(|at| of(at).map(|lock| lock.exclusive)).collect()
    }

    #[test]
    fn locks_are_what_they_would_be_byte_by_byte() {
        let (locks, mut seed) = (FileLocks::default(), 1u64);
        let mut expected = std::collections::HashMap::from([(A, vec![None; 64]), (B, vec![None; 64])]);
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for _ in 0..5000 {
            let (owner, other) = if random(2) == 0 { (A, B) } else { (B, A) };
            let (start, exclusive, unlocks) = (random(63), random(2) == 0, random(3) == 0);
            let end = start + 1 + random(63 - start + 1);
            let touched = start as usize..end as usize;
            let clashes = |held: &Option<bool>| held.is_some_and(|held| held || exclusive);
            let is_free = !expected[&other][touched.clone()].iter().any(clashes);
            if unlocks {
                locks.unlock(owner, start, end);
            } else {
                assert_eq!(locks.lock(range(owner, exclusive, start, end)).is_ok(), is_free);
            }
            if unlocks || is_free {
                let to = (!unlocks).then_some(exclusive);
                expected.get_mut(&owner).unwrap()[touched].iter_mut().for_each(|held| *held = to);
            }
            let held = locks.held().0;
            assert_eq!([bytes(&held, A), bytes(&held, B)], [expected[&A].clone(), expected[&B].clone()]);
        }
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
