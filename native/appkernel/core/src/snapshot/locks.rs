//! Record locks (fcntl(2)): who holds which part of which file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use drupe_appkernel_vfs::locks::{Owner, RecordLock};
use drupe_appkernel_vfs::sync::Mutex;
use drupe_appkernel_vfs::{FdTable, OpenFile};

use super::files::Files;
use super::state::SavedLock;
use super::{damaged, Refusal};
use crate::calls::descriptors::table_owner;

impl Files<'_> {
    /// The locks of all files that were found. `tables`: numbers of tables of descriptors, by where they lie.
    pub(super) fn locks(&self, tables: &HashMap<usize, u32>) -> Result<Vec<SavedLock>, Refusal> {
        let (mut seen, mut saved) = (HashSet::new(), Vec::new());
        for (number, file) in (0..).zip(&self.found) {
            let Some(path) = file.path().filter(|path| seen.insert(Arc::as_ptr(path.inode()).cast::<u8>())) else {
                continue;
            };
            for lock in path.inode().attachment().locks.held().0 {
                let saved_lock = self.lock(&lock, number, tables);
                let name = || String::from_utf8_lossy(&path.dentry.name()).into_owned();
                saved.push(saved_lock.ok_or_else(|| format!("a record lock (fcntl) of nobody on {}", name()))?);
            }
        }
        Ok(saved)
    }

    fn lock(&self, lock: &RecordLock, file: u32, tables: &HashMap<usize, u32>) -> Option<SavedLock> {
        let (file, table) = match lock.owner {
            Owner::Process { table, pid } => (file, Some((*tables.get(&usize::try_from(table).ok()?)?, pid))),
            Owner::File(id) => (*self.numbers.get(&id)?, None),
        };
        Some(SavedLock { file, table, exclusive: lock.exclusive, start: lock.start, end: lock.end })
    }
}

/// Have them held again.
pub(super) fn lock_again(
    saved: &[SavedLock],
    files: &[Arc<OpenFile>],
    tables: &[Arc<Mutex<FdTable>>],
) -> Result<(), Refusal> {
    for lock in saved {
        let file = files.get(lock.file as usize).ok_or_else(|| damaged("a lock of a file that is not there"))?;
        let path = file.path().filter(|_| lock.start < lock.end).ok_or_else(|| damaged("a lock"))?;
        let owner = match lock.table {
            None => Owner::File(file.id()),
            Some((table, pid)) => {
                let table = tables.get(table as usize).ok_or_else(|| damaged("a lock of nobody"))?;
                table_owner(table, pid)
            }
        };
        let wanted = RecordLock { owner, exclusive: lock.exclusive, start: lock.start, end: lock.end };
        let locked = path.inode().attachment().locks.lock(wanted);
        locked.map_err(|_| damaged("locks that exclude one another"))?;
    }
    Ok(())
}
