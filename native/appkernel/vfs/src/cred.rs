//! Who acts, and what that permits (credentials(7), capabilities(7), path_resolution(7)).

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use crate::file::{Credentials, Metadata};
use crate::kind::{FileType, S_ISVTX};

pub const CAP_CHOWN: u32 = 0;
pub const CAP_DAC_OVERRIDE: u32 = 1;
pub const CAP_DAC_READ_SEARCH: u32 = 2;
pub const CAP_FOWNER: u32 = 3;
pub const CAP_FSETID: u32 = 4;
pub const CAP_NET_BIND_SERVICE: u32 = 10;
pub const CAP_SYS_ADMIN: u32 = 21;
pub const CAP_SYS_RESOURCE: u32 = 24;
pub const CAP_MKNOD: u32 = 27;
pub const CAP_SETFCAP: u32 = 31;

/// Access that is asked for; add them.
pub const MAY_EXEC: u32 = 1;
pub const MAY_WRITE: u32 = 2;
pub const MAY_READ: u32 = 4;

impl Credentials {
    /// This user and group, with these capabilities effective.
    pub fn new(uid: u32, gid: u32, capabilities: u64) -> Self {
        Self { uid, gid, groups: Arc::default(), capabilities }
    }

    /// root with every capability.
    pub fn root() -> Self {
        Self::new(0, 0, (1 << 41) - 1)
    }

    pub fn capable(&self, capability: u32) -> bool {
        self.capabilities >> capability & 1 == 1
    }

    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Owner of the file, or as good as (CAP_FOWNER).
    pub fn owns(&self, file: &Metadata) -> bool {
        self.uid == file.uid || self.capable(CAP_FOWNER)
    }

    /// EACCES unless all of `access` (MAY_*) is permitted on a file with these attributes.
    pub fn check(&self, file: &Metadata, access: u32) -> Result<()> {
        if access & !self.class_bits(file) == 0 || self.overrides(file, access) {
            return Ok(());
        }
        Err(Errno::ACCES)
    }

    fn class_bits(&self, file: &Metadata) -> u32 {
        let shift = match () {
            () if self.uid == file.uid => 6,
            () if self.in_group(file.gid) => 3,
            () => 0,
        };
        file.mode >> shift & 7
    }

    fn overrides(&self, file: &Metadata, access: u32) -> bool {
        let reads = access & MAY_WRITE == 0;
        if file.kind() == FileType::Directory {
            return self.capable(CAP_DAC_OVERRIDE) || (reads && self.capable(CAP_DAC_READ_SEARCH));
        }
        let executes_nothing = access & MAY_EXEC != 0 && file.mode & 0o111 == 0;
        (self.capable(CAP_DAC_OVERRIDE) && !executes_nothing)
            || (access == MAY_READ && self.capable(CAP_DAC_READ_SEARCH))
    }

    /// EPERM for a further name of another's file, unless it is a plain one that may be read and written: who links to what will
    /// run with its owner's rights keeps it beyond its removal (proc(5), protected_hardlinks = 1).
    pub fn check_hard_link(&self, file: &Metadata) -> Result<()> {
        const SET_GROUP_RUNS: u32 = 0o2010;
        let runs_as_owner = file.mode & 0o4000 != 0 || file.mode & SET_GROUP_RUNS == SET_GROUP_RUNS;
        let is_plain = file.kind() == FileType::Regular && !runs_as_owner;
        let harmless = || is_plain && self.check(file, MAY_READ | MAY_WRITE).is_ok();
        (self.owns(file) || harmless()).then_some(()).ok_or(Errno::PERM)
    }

    /// EPERM when the directory's sticky bit keeps this user from removing or renaming the entry.
    pub fn check_sticky(&self, directory: &Metadata, entry: &Metadata) -> Result<()> {
        let free = directory.mode & S_ISVTX == 0 || [entry.uid, directory.uid].contains(&self.uid);
        if free || self.capable(CAP_FOWNER) {
            return Ok(());
        }
        Err(Errno::PERM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(permissions: u32, uid: u32, gid: u32) -> Metadata {
        Metadata { uid, gid, ..Metadata::new(FileType::Regular, permissions) }
    }

    #[test]
    fn the_first_matching_class_decides() {
        let user = Credentials::new(1000, 100, 0);
        assert!(user.check(&file(0o600, 1000, 0), MAY_READ | MAY_WRITE).is_ok());
        assert_eq!(user.check(&file(0o077, 1000, 0), MAY_READ), Err(Errno::ACCES));
        assert_eq!(user.check(&file(0o707, 0, 100), MAY_READ), Err(Errno::ACCES));
        assert!(user.check(&file(0o004, 0, 0), MAY_READ).is_ok());
    }

    #[test]
    fn root_may_all_but_execute_what_nobody_may() {
        let root = Credentials::root();
        assert!(root.check(&file(0, 5, 5), MAY_READ | MAY_WRITE).is_ok());
        assert_eq!(root.check(&file(0o644, 5, 5), MAY_EXEC), Err(Errno::ACCES));
        assert!(root.check(&file(0o100, 5, 5), MAY_EXEC).is_ok());
        assert!(root.check(&Metadata::new(FileType::Directory, 0), MAY_EXEC).is_ok());
    }

    #[test]
    fn others_files_get_no_further_names_unless_they_are_open_to_all() {
        let user = Credentials::new(1000, 100, 0);
        for (permissions, uid, may) in [(0o600, 1000, true), (0o666, 7, true), (0o644, 7, false), (0o4777, 7, false)] {
            assert_eq!(user.check_hard_link(&file(permissions, uid, 7)).is_ok(), may, "{permissions:o}");
        }
        assert_eq!(user.check_hard_link(&file(0o2777, 7, 7)), Err(Errno::PERM));
        assert!(user.check_hard_link(&file(0o2767, 7, 7)).is_ok());
        assert!(Credentials::root().check_hard_link(&file(0o4600, 7, 7)).is_ok());
        let link = Metadata { uid: 7, ..Metadata::new(FileType::Symlink, 0o777) };
        assert_eq!(user.check_hard_link(&link), Err(Errno::PERM));
    }

    #[test]
    fn sticky_directories_protect_entries_of_others() {
        let directory = Metadata::new(FileType::Directory, 0o1777);
        let user = Credentials::new(1000, 100, 0);
        assert_eq!(user.check_sticky(&directory, &file(0o666, 7, 7)), Err(Errno::PERM));
        assert!(user.check_sticky(&directory, &file(0o666, 1000, 7)).is_ok());
    }
}
