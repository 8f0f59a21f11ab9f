//! System V IPC (sysvipc(7)): what shared memory, semaphores and message queues have in common. One set for a pod.

use std::collections::BTreeMap;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::Credentials;

use crate::calls::{msg::Queue, sem::Semaphores, shm::Segment};
use crate::encode;
use crate::kernel::Kernel;
use crate::task::Tid;

pub const IPC_CREAT: u64 = 0o1000;
pub const IPC_EXCL: u64 = 0o2000;
pub const IPC_NOWAIT: u64 = 0o4000;
pub const IPC_RMID: u64 = 0;
pub const IPC_SET: u64 = 1;
pub const IPC_STAT: u64 = 2;
pub const IPC_INFO: u64 = 3;
pub const IPC_PRIVATE: u32 = 0;
const CAP_IPC_OWNER: u32 = 15;
const CAP_SYS_ADMIN: u32 = 21;
/// Objects of one kind (SHMMNI, SEMMNI, MSGMNI are 4096 and 32 000 there).
const MAX_OBJECTS: usize = 4096;
pub const MAY_READ: u32 = 4;
pub const MAY_WRITE: u32 = 2;

/// struct ipc_perm.
#[derive(Clone, Debug, Default)]
pub struct Permissions {
    pub key: u32,
    pub uid: u32,
    pub gid: u32,
    creator: (u32, u32),
    pub mode: u32,
}

impl Permissions {
    /// EACCES unless all of these bits (4: read, 2: write) are granted.
    pub fn check(&self, by: &Credentials, wanted: u32) -> Result<()> {
        let owner = by.uid == self.uid || by.uid == self.creator.0;
        let member = |gid: u32| by.gid == gid || by.groups.contains(&gid);
        let shift = match (owner, member(self.gid) || member(self.creator.1)) {
            (true, _) => 6,
            (_, true) => 3,
            _ => 0,
        };
        let granted = self.mode >> shift & 7;
        (wanted & !granted == 0 || by.capable(CAP_IPC_OWNER)).then_some(()).ok_or(Errno::ACCES)
    }

    /// EPERM unless the caller may change or remove it.
    pub fn check_owner(&self, by: &Credentials) -> Result<()> {
        let owner = by.uid == self.uid || by.uid == self.creator.0;
        (owner || by.capable(CAP_SYS_ADMIN)).then_some(()).ok_or(Errno::PERM)
    }

    /// IPC_SET: owner and permissions from a struct ipc_perm.
    pub fn set(&mut self, bytes: &[u8]) {
        let word = |at: usize| bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        (self.uid, self.gid) = (word(4), word(8));
        self.mode = self.mode & !0o777 | word(20) & 0o777;
    }

    pub fn encode(&self, more_mode: u32) -> Vec<u8> {
        let words = [self.key, self.uid, self.gid, self.creator.0, self.creator.1, self.mode | more_mode, 0, 0];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(encode::words(&[0, 0]));
        bytes
    }
}

/// Objects of one kind, by their identifiers.
pub struct Objects<T> {
    all: BTreeMap<i32, (Permissions, T)>,
    next: i32,
}

impl<T> Default for Objects<T> {
    fn default() -> Self {
        Objects { all: BTreeMap::new(), next: 0 }
    }
}

impl<T> Objects<T> {
    /// EINVAL.
    pub fn get(&self, id: u64) -> Result<&(Permissions, T)> {
        self.all.get(&(id as i32)).ok_or(Errno::INVAL)
    }

    pub fn get_mut(&mut self, id: u64) -> Result<&mut (Permissions, T)> {
        self.all.get_mut(&(id as i32)).ok_or(Errno::INVAL)
    }

    /// The object at this place among all, for SHM_STAT and its kin. EINVAL.
    pub fn at(&self, place: u64) -> Result<i32> {
        let place = usize::try_from(place as i32).map_err(|_| Errno::INVAL)?;
        self.all.keys().nth(place).copied().ok_or(Errno::INVAL)
    }

    /// The last place where one is; 0 also when there is none.
    pub fn last_place(&self) -> i64 {
        self.all.len().saturating_sub(1) as i64
    }

    pub fn remove(&mut self, id: u64) -> Option<T> {
        self.all.remove(&(id as i32)).map(|(_, object)| object)
    }

    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.all.retain(|_, (_, object)| keep(object));
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.all.values().map(|(_, object)| object)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.all.values_mut().map(|(_, object)| object)
    }

    /// The identifier that `key` leads to, made if need be. EEXIST, ENOENT, EACCES, ENOSPC, and what `fits` and `make` say.
    pub fn find(
        &mut self,
        key: u32,
        flags: u64,
        by: &Credentials,
        fits: impl FnOnce(&T) -> Result<()>,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<i32> {
        let known = self.all.iter().find(|(_, (permissions, _))| key != IPC_PRIVATE && permissions.key == key);
        if let Some((id, (permissions, object))) = known {
            if flags & IPC_CREAT != 0 && flags & IPC_EXCL != 0 {
                return Err(Errno::EXIST);
            }
            permissions.check(by, (flags as u32 >> 6 | flags as u32 >> 3 | flags as u32) & 6)?;
            fits(object)?;
            return Ok(*id);
        }
        if key != IPC_PRIVATE && flags & IPC_CREAT == 0 {
            return Err(Errno::NOENT);
        }
        if self.all.len() >= MAX_OBJECTS {
            return Err(Errno::NOSPC);
        }
        let (object, mode) = (make()?, flags as u32 & 0o777);
        let permissions = Permissions { key, uid: by.uid, gid: by.gid, creator: (by.uid, by.gid), mode };
        self.next = (self.next + 1) & i32::MAX;
        self.all.insert(self.next, (permissions, object));
        Ok(self.next)
    }
}

/// All there is.
#[derive(Default)]
pub struct SysV {
    pub segments: Objects<Segment>,
    pub semaphores: Objects<Semaphores>,
    pub queues: Objects<Queue>,
}

impl Kernel {
    pub(crate) fn credentials(&self, tid: Tid) -> Result<Credentials> {
        Ok(self.process(tid)?.credentials.clone())
    }

    pub(crate) fn seconds(&self) -> u64 {
        self.host.now(drupe_appkernel_vfs::ClockId::Realtime).seconds as u64
    }
}
