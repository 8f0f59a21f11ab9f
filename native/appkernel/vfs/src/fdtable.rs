//! The descriptors of a process.

use std::collections::BTreeMap;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::open::OpenFile;

#[derive(Clone)]
struct Descriptor {
    file: Arc<OpenFile>,
    close_on_exec: bool,
}

/// Numbers and the open files behind them. Cloning is what fork(2) does.
#[derive(Clone, Default)]
pub struct FdTable {
    slots: Vec<Option<Descriptor>>,
    /// No number below this one is free.
    first_free: usize,
}

impl FdTable {
    pub fn new() -> Self {
        Self::default()
    }

    /// The file. EBADF.
    pub fn get(&self, fd: i32) -> Result<&Arc<OpenFile>> {
        self.slot(fd).map(|descriptor| &descriptor.file)
    }

    fn slot(&self, fd: i32) -> Result<&Descriptor> {
        let index = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        self.slots.get(index).and_then(Option::as_ref).ok_or(Errno::BADF)
    }

    /// Give `file` the lowest free number of `minimum` or higher. EMFILE at `limit` (RLIMIT_NOFILE).
    pub fn insert(&mut self, file: Arc<OpenFile>, close_on_exec: bool, minimum: i32, limit: u64) -> Result<i32> {
        let start = usize::try_from(minimum).map_err(|_| Errno::INVAL)?.max(self.first_free);
        let index = (start..).find(|&i| self.slots.get(i).is_none_or(Option::is_none)).ok_or(Errno::MFILE)?;
        let fd = i32::try_from(index).map_err(|_| Errno::MFILE)?;
        if index as u64 >= limit {
            return Err(Errno::MFILE);
        }
        if start == self.first_free {
            self.first_free = index + 1;
        }
        self.put(index, Descriptor { file, close_on_exec });
        Ok(fd)
    }

    fn put(&mut self, index: usize, descriptor: Descriptor) -> Option<Arc<OpenFile>> {
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index].replace(descriptor).map(|old| old.file)
    }

    /// dup3(2) onto `fd`: what was there, to be closed by the caller. EBADF at `limit`.
    pub fn replace(
        &mut self,
        file: Arc<OpenFile>,
        close_on_exec: bool,
        fd: i32,
        limit: u64,
    ) -> Result<Option<Arc<OpenFile>>> {
        let index = usize::try_from(fd).ok().filter(|&i| (i as u64) < limit).ok_or(Errno::BADF)?;
        Ok(self.put(index, Descriptor { file, close_on_exec }))
    }

    /// close(2): the file, which the caller drops (and whose POSIX locks of this process it releases). EBADF.
    pub fn remove(&mut self, fd: i32) -> Result<Arc<OpenFile>> {
        self.slot(fd)?;
        let index = usize::try_from(fd).map_err(|_| Errno::BADF)?;
        self.first_free = self.first_free.min(index);
        self.slots[index].take().map(|descriptor| descriptor.file).ok_or(Errno::BADF)
    }

    /// FD_CLOEXEC.
    pub fn close_on_exec(&self, fd: i32) -> Result<bool> {
        self.slot(fd).map(|descriptor| descriptor.close_on_exec)
    }

    pub fn set_close_on_exec(&mut self, fd: i32, value: bool) -> Result<()> {
        self.slot(fd)?;
        if let Some(Some(descriptor)) = usize::try_from(fd).ok().and_then(|index| self.slots.get_mut(index)) {
            descriptor.close_on_exec = value;
        }
        Ok(())
    }

    /// All descriptors in use, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (i32, &Arc<OpenFile>)> {
        let used = self.slots.iter().enumerate().filter_map(|(i, slot)| Some((i, slot.as_ref()?)));
        used.map(|(index, descriptor)| (i32::try_from(index).unwrap_or(i32::MAX), &descriptor.file))
    }

    /// execve(2): what is marked close-on-exec, removed; the caller drops it.
    pub fn remove_close_on_exec(&mut self) -> Vec<Arc<OpenFile>> {
        self.remove_where(|_, close_on_exec| close_on_exec)
    }

    /// close_range(2): all of `first..=last`.
    pub fn remove_range(&mut self, first: u32, last: u32) -> Vec<Arc<OpenFile>> {
        self.remove_where(|index, _| (first as usize..=last as usize).contains(&index))
    }

    /// close_range(2) with CLOSE_RANGE_CLOEXEC.
    pub fn mark_range(&mut self, first: u32, last: u32) {
        let length = self.slots.len();
        let range = (first as usize).min(length)..(last as usize).saturating_add(1).min(length);
        self.slots[range].iter_mut().flatten().for_each(|descriptor| descriptor.close_on_exec = true);
    }

    /// Everything; for exit.
    pub fn remove_all(&mut self) -> Vec<Arc<OpenFile>> {
        self.remove_where(|_, _| true)
    }

    fn remove_where(&mut self, chosen: impl Fn(usize, bool) -> bool) -> Vec<Arc<OpenFile>> {
        let mut removed = BTreeMap::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(|descriptor| chosen(index, descriptor.close_on_exec)) {
                removed.extend(slot.take().map(|descriptor| (index, descriptor.file)));
            }
        }
        if let Some((&lowest, _)) = removed.first_key_value() {
            self.first_free = self.first_free.min(lowest);
        }
        removed.into_values().collect()
    }
}
