//! Making, removing, moving and changing what lies in a directory of the host.

use std::os::fd::AsFd;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_hostsys::{changes, files};
use drupe_appkernel_vfs::inode::{NewNode, RenameMode, XattrMode, Xattrs};
use drupe_appkernel_vfs::kind::SetAttributes;
use drupe_appkernel_vfs::{Context, FileType, Timestamp};

use super::Node;
use crate::machine::{errno, Owned};

/// The only names that the host lets a process without capabilities set, and that mean nothing to it.
const USER: &[u8] = b"user.";

impl Node {
    pub(super) fn make(&self, name: &[u8], new: &NewNode<'_>) -> Result<Arc<Node>> {
        self.check_writable()?;
        let directory = self.host.0.as_fd();
        let made = match new.kind {
            FileType::Regular => return self.make_file(name, new),
            FileType::Directory => changes::make_directory(directory, name),
            FileType::Symlink => changes::make_link(directory, name, new.target),
            FileType::Fifo | FileType::Socket => {
                changes::make_node(directory, name, new.kind.mode_bits() | new.permissions & 0o777)
            }
            FileType::CharDevice if new.device_number == 0 => changes::make_node(directory, name, new.kind.mode_bits()),
            FileType::CharDevice | FileType::BlockDevice => return Err(Errno::PERM),
        };
        made.map_err(errno)?;
        let settled = self.child(name).and_then(|node| {
            let permissions = (new.kind == FileType::Directory).then_some(new.permissions);
            changes::settle(&node.host.0, new.uid, new.gid, permissions).map_err(errno)?;
            Ok(node)
        });
        settled.inspect_err(|_| {
            let _there = changes::remove(directory, name, new.kind == FileType::Directory);
        })
    }

    fn make_file(&self, name: &[u8], new: &NewNode<'_>) -> Result<Arc<Node>> {
        let directory = self.host.0.as_fd();
        let writer = changes::create(directory, name).map_err(errno)?;
        let settled = changes::settle(&writer, new.uid, new.gid, Some(new.permissions)).map_err(errno);
        let node = settled.and_then(|()| self.child(name)).inspect_err(|_| {
            let _there = changes::remove(directory, name, false);
        })?;
        let stat = files::stat(writer.as_fd(), b"").map_err(errno)?;
        if (stat.device, stat.inode) == node.key {
            *node.writer.lock() = Some(Arc::new(Owned(writer)));
        }
        Ok(node)
    }

    pub(super) fn make_unnamed(&self, new: &NewNode<'_>) -> Result<Arc<Node>> {
        self.check_writable()?;
        if new.kind != FileType::Regular {
            return Err(Errno::NOTSUP);
        }
        let file = changes::create_unnamed(self.host.0.as_fd()).map_err(errno)?;
        changes::settle(&file, new.uid, new.gid, Some(new.permissions)).map_err(errno)?;
        let stat = files::stat(file.as_fd(), b"").map_err(errno)?;
        let node = self.shared.node(&stat, file, None)?;
        *node.writer.lock() = Some(Arc::clone(&node.host));
        Ok(node)
    }

    pub(super) fn link_to(&self, name: &[u8], target: &Node) -> Result<()> {
        self.check_writable()?;
        changes::link(target.host.0.as_fd(), self.host.0.as_fd(), name).map_err(errno)?;
        self.remember(target, name);
        Ok(())
    }

    pub(super) fn remove(&self, name: &[u8], directory: bool) -> Result<()> {
        self.check_writable()?;
        changes::remove(self.host.0.as_fd(), name, directory).map_err(errno)
    }

    pub(super) fn move_to(&self, old: &[u8], to: &Node, new: &[u8], mode: RenameMode) -> Result<()> {
        self.check_writable()?;
        let flags = match mode {
            RenameMode::Replace => 0,
            RenameMode::NoReplace => 1,
            RenameMode::Exchange => 2,
        };
        changes::rename(self.host.0.as_fd(), old, to.host.0.as_fd(), new, flags).map_err(errno)?;
        to.find_again(new);
        if mode == RenameMode::Exchange {
            self.find_again(old);
        }
        Ok(())
    }

    /// A node in use learns its new name.
    fn find_again(&self, name: &[u8]) {
        let stat = files::stat(self.host.0.as_fd(), name).ok();
        if let Some(node) = stat.and_then(|stat| self.shared.known(&stat)) {
            self.remember(&node, name);
        }
    }

    pub(super) fn set(&self, context: &Context, wanted: &SetAttributes) -> Result<()> {
        self.check_writable()?;
        if let Some(size_bytes) = wanted.size_bytes {
            let writer = self.writer()?;
            files::set_size(writer.0.as_fd(), size_bytes).map_err(errno)?;
            self.drop_set_ids(context, writer.0.as_fd())?;
        }
        let file = self.host.0.as_fd();
        if wanted.uid.is_some() || wanted.gid.is_some() {
            let id = |id: Option<u32>| id.unwrap_or(u32::MAX);
            changes::set_owner(file, id(wanted.uid), id(wanted.gid)).map_err(errno)?;
        }
        // A link's permissions are never asked for.
        if let (Some(permissions), false) = (wanted.permissions, self.kind == FileType::Symlink) {
            changes::set_permissions(file, permissions).map_err(errno)?;
        }
        if wanted.accessed.is_some() || wanted.modified.is_some() {
            let time = |time: Option<Timestamp>| time.map(|time| (time.seconds, time.nanoseconds));
            changes::set_times(file, [time(wanted.accessed), time(wanted.modified)]).map_err(errno)?;
        }
        Ok(())
    }
}

impl Node {
    /// EOPNOTSUPP for other names; `otherwise` for what is no file or directory, which has none.
    fn check_attribute(&self, name: &[u8], otherwise: Errno) -> Result<()> {
        match self.kind {
            _ if !name.starts_with(USER) => Err(Errno::NOTSUP),
            FileType::Regular | FileType::Directory => Ok(()),
            _ => Err(otherwise),
        }
    }
}

impl Xattrs for Node {
    fn get(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.check_attribute(name, Errno::NODATA)?;
        changes::get_attribute(self.host.0.as_fd(), name).map_err(errno)
    }

    fn list(&self) -> Result<Vec<Vec<u8>>> {
        if !matches!(self.kind, FileType::Regular | FileType::Directory) {
            return Ok(Vec::new());
        }
        let mut names = changes::attributes(self.host.0.as_fd()).map_err(errno)?;
        names.retain(|name| name.starts_with(USER));
        Ok(names)
    }

    fn set(&self, _: &Context, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.check_writable()?;
        self.check_attribute(name, Errno::PERM)?;
        let flags = match mode {
            XattrMode::Any => 0,
            XattrMode::Create => 1,
            XattrMode::Replace => 2,
        };
        changes::set_attribute(self.host.0.as_fd(), name, value, flags).map_err(errno)
    }

    fn remove(&self, _: &Context, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.check_attribute(name, Errno::PERM)?;
        changes::remove_attribute(self.host.0.as_fd(), name).map_err(errno)
    }
}
