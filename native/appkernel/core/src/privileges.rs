//! What execve(2) and changes of user ids do to capabilities (capabilities(7)).

use drupe_appkernel_vfs::{Credentials, Path};

use crate::task::{Ids, Process};

pub const SECBIT_NOROOT: u32 = 1;
pub const SECBIT_NO_SETUID_FIXUP: u32 = 1 << 2;
pub const SECBIT_KEEP_CAPS: u32 = 1 << 4;
pub const SECBIT_NO_CAP_AMBIENT_RAISE: u32 = 1 << 6;
/// Every bit and the lock of each, which is the next bit.
pub const SECURE_ALL: u32 = 0xff;

const ALL: u64 = (1 << 41) - 1;
const S_ISUID: u32 = 0o4000;
const S_ISGID: u32 = 0o2000;
const XATTR: &[u8] = b"security.capability";

/// What a program file gives.
#[derive(Clone, Copy, Default)]
struct OfFile {
    permitted: u64,
    inheritable: u64,
    effective: bool,
}

/// Who a process is once a program has started.
pub(crate) struct Privileges {
    pub credentials: Credentials,
    pub ids: Ids,
    /// For AT_SECURE: it has more than its caller could give it, who is not to be trusted with its environment.
    pub secure: bool,
}

/// struct vfs_cap_data of the file, versions 1 to 3; None where it has none that counts.
fn of_file(path: &Path) -> Option<OfFile> {
    let value = path.inode().xattrs().ok()?.get(XATTR).ok()?;
    let word = |at: usize| value.get(4 * at..4 * at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (permitted, inheritable) = match (word(0)? >> 24, value.len()) {
        (1, 12) => (u64::from(word(1)?), u64::from(word(2)?)),
        (2, 20) | (3, 24) => {
            (u64::from(word(1)?) | u64::from(word(3)?) << 32, u64::from(word(2)?) | u64::from(word(4)?) << 32)
        }
        _ => return None,
    };
    Some(OfFile { permitted: permitted & ALL, inheritable: inheritable & ALL, effective: word(0)? & 1 == 1 })
}

impl Privileges {
    /// As they are: a first process was given what it is to have.
    pub fn kept(process: &Process) -> Privileges {
        Privileges { credentials: process.credentials.clone(), ids: process.ids, secure: false }
    }

    /// After an execve(2) of this file.
    pub fn after(process: &Process, path: &Path, mode: u32, owner: (u32, u32), trusted: bool) -> Privileges {
        let mut new = Privileges::kept(process);
        let given = if trusted { of_file(path) } else { None };
        if trusted && mode & S_ISUID != 0 {
            new.credentials.uid = owner.0;
        }
        if trusted && mode & (S_ISGID | 0o010) == S_ISGID | 0o010 {
            new.credentials.gid = owner.1;
        }
        new.transform(process, given);
        new
    }

    /// "Transformation of capabilities during execve()".
    fn transform(&mut self, old: &Process, given: Option<OfFile>) {
        let uid = self.credentials.uid;
        let changed = uid != old.credentials.uid || self.credentials.gid != old.credentials.gid;
        let of_root = OfFile { permitted: ALL, inheritable: ALL, effective: uid == 0 };
        let by_root = self.ids.securebits & SECBIT_NOROOT == 0 && (uid == 0 || self.ids.uid == 0);
        let file = match given {
            Some(given) if by_root && uid == 0 && self.ids.uid != 0 => given,
            _ if by_root => of_root,
            given => given.unwrap_or_default(),
        };
        if given.is_some() || changed {
            self.ids.ambient = 0;
        }
        let gained = self.ids.inheritable & file.inheritable | file.permitted & self.ids.bounding;
        self.ids.permitted = gained | self.ids.ambient;
        if old.no_new_privileges {
            self.ids.permitted &= old.ids.permitted;
        }
        self.credentials.capabilities = if file.effective { self.ids.permitted } else { self.ids.ambient };
        (self.ids.saved_uid, self.ids.saved_gid) = (uid, self.credentials.gid);
        (self.ids.fs_uid, self.ids.fs_gid) = (None, None);
        self.ids.securebits &= !SECBIT_KEEP_CAPS;
        let more = self.ids.permitted & !self.ids.ambient != 0 && self.ids.uid != 0 && file.effective;
        self.secure = changed || uid != self.ids.uid || self.credentials.gid != self.ids.gid || more;
    }
}

/// Effect of setfsuid(2): who was root to files and is it no more has lost the rights on them, and the other way round.
pub(crate) fn file_user_changed(process: &mut Process, old: u32, new: u32) {
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, LINUX_IMMUTABLE, MKNOD, MAC_OVERRIDE
    const ON_FILES: u64 = 0x1f | 1 << 9 | 1 << 27 | 1 << 32;
    if process.ids.securebits & SECBIT_NO_SETUID_FIXUP != 0 {
        return;
    }
    match (old == 0, new == 0) {
        (true, false) => process.credentials.capabilities &= !ON_FILES,
        (false, true) => process.credentials.capabilities |= process.ids.permitted & ON_FILES,
        _ => {}
    }
}

/// Effect of changing user ids from `old` (real, effective, saved) to what they are now.
pub(crate) fn user_changed(process: &mut Process, old: [u32; 3]) {
    if process.ids.securebits & SECBIT_NO_SETUID_FIXUP != 0 {
        return;
    }
    let (ids, effective) = (&mut process.ids, process.credentials.uid);
    if old.contains(&0) && ![ids.uid, effective, ids.saved_uid].contains(&0) {
        ids.ambient = 0;
        if ids.securebits & SECBIT_KEEP_CAPS == 0 {
            ids.permitted = 0;
            process.credentials.capabilities = 0;
        }
    }
    match (old[1] == 0, effective == 0) {
        (true, false) => process.credentials.capabilities = 0,
        (false, true) => process.credentials.capabilities = ids.permitted,
        _ => {}
    }
}
