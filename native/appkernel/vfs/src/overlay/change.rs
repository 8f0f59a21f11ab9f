//! Making, removing and moving names in an overlay. The caller holds `Shared::changes`.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::node::OverlayNode;
use super::{entry, is_whiteout, set_opaque};
use crate::file::Context;
use crate::inode::{Inode, InodeRef, NewNode, RenameMode};
use crate::kind::FileType;

impl OverlayNode {
    fn lower_has(&self, name: &[u8]) -> Result<bool> {
        Ok(!self.lower_entries(name)?.is_empty())
    }

    fn check_free(&self, name: &[u8]) -> Result<()> {
        match self.child(name) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Hide what the lower layers have under this name.
    fn hide(&self, context: &Context, upper: &InodeRef, name: &[u8]) -> Result<()> {
        if self.lower_has(name)? {
            upper.link(context, name, &self.shared.whiteout)?;
        }
        Ok(())
    }

    /// Run `make`, which makes `name` in `upper`, without the whiteout that may be there; it comes back if that fails.
    fn unhidden<T>(
        &self,
        context: &Context,
        upper: &InodeRef,
        name: &[u8],
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let hidden = entry(upper, name)?.is_some_and(|inode| is_whiteout(&inode));
        if hidden {
            upper.unlink(context, name)?;
        }
        let made = make();
        if made.is_err() && hidden {
            upper.link(context, name, &self.shared.whiteout)?;
        }
        made
    }

    pub(super) fn create_child(&self, context: &Context, name: &[u8], node: &NewNode<'_>) -> Result<Arc<Self>> {
        if node.kind == FileType::CharDevice && node.device_number == 0 {
            return Err(Errno::PERM); // would be a whiteout
        }
        self.check_free(name)?;
        let upper = self.copy_up(context, true)?;
        let covers = self.lower_has(name)?;
        self.unhidden(context, &upper, name, || {
            let made = upper.create(context, name, node)?;
            if covers && node.kind == FileType::Directory {
                set_opaque(context, &made)?;
            }
            Ok(())
        })?;
        self.child(name)
    }

    pub(super) fn link_child(&self, context: &Context, name: &[u8], target: &Self) -> Result<()> {
        self.check_free(name)?;
        let upper = self.copy_up(context, true)?;
        let inode = target.copy_up(context, true)?;
        self.unhidden(context, &upper, name, || upper.link(context, name, &inode))
    }

    pub(super) fn remove_child(&self, context: &Context, name: &[u8], directory: bool) -> Result<()> {
        let child = self.child(name)?;
        if directory {
            child.check_empty()?;
        }
        let upper = self.copy_up(context, true)?;
        if let Some(inode) = entry(&upper, name)? {
            clear(context, &inode)?;
            let remove = if directory { Inode::rmdir } else { Inode::unlink };
            remove(upper.as_ref(), context, name)?;
        }
        self.hide(context, &upper, name)?;
        child.removed.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn rename_child(
        &self,
        context: &Context,
        old: &[u8],
        to: &Self,
        new: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let source = self.child(old)?;
        let target = match to.child(new) {
            Ok(target) => Some(target),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        match (&target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(Errno::EXIST),
            (None, RenameMode::Exchange) => return Err(Errno::NOENT),
            (Some(target), RenameMode::Exchange) => check_movable(target)?,
            (Some(target), _) if target.kind() == FileType::Directory => target.check_empty()?,
            _ => {}
        }
        check_movable(&source)?;
        let (from, into) = (self.named(context, &source, old)?, to.copy_up(context, true)?);
        to.cover(context, &source, new)?;
        if let (Some(target), RenameMode::Exchange) = (&target, mode) {
            to.named(context, target, new)?;
            self.cover(context, target, old)?;
            from.rename(context, old, &into, new, RenameMode::Exchange)?;
        } else {
            entry(&into, new)?.map_or(Ok(()), |inode| clear(context, &inode))?;
            from.rename(context, old, &into, new, RenameMode::Replace)?;
            self.hide(context, &from, old)?;
            target.iter().for_each(|target| target.removed.store(true, Ordering::Relaxed));
        }
        self.moved(&source, to, new, target.as_ref().filter(|_| mode == RenameMode::Exchange), old)
    }

    /// The upper directory, with the child's copy in it under this name.
    fn named(&self, context: &Context, child: &Self, name: &[u8]) -> Result<InodeRef> {
        let upper = self.copy_up(context, true)?;
        let inode = child.copy_up(context, true)?;
        if entry(&upper, name)?.is_none() {
            upper.link(context, name, &inode)?; // a further name of a lower file that was copied under another
        }
        Ok(upper)
    }

    /// A directory that comes to this name shows nothing of what lower layers have there.
    fn cover(&self, context: &Context, comes: &Self, name: &[u8]) -> Result<()> {
        if comes.kind() == FileType::Directory && self.lower_has(name)? {
            set_opaque(context, &comes.copy_up(context, true)?)?;
        }
        Ok(())
    }

    fn moved(&self, source: &Self, to: &Self, new: &[u8], target: Option<&Arc<Self>>, old: &[u8]) -> Result<()> {
        *source.place.lock() = Some((to.own()?, new.to_vec()));
        if let Some(target) = target {
            *target.place.lock() = Some((self.own()?, old.to_vec()));
        }
        Ok(())
    }
}

/// EXDEV for a directory that a lower layer has.
fn check_movable(node: &OverlayNode) -> Result<()> {
    let merged = node.kind() == FileType::Directory && !node.lowers.is_empty();
    (!merged).then_some(()).ok_or(Errno::XDEV)
}

/// Take the whiteouts out of an upper directory that is to go.
fn clear(context: &Context, inode: &InodeRef) -> Result<()> {
    if inode.kind() != FileType::Directory {
        return Ok(());
    }
    OverlayNode::whiteouts(inode)?.iter().try_for_each(|name| inode.unlink(context, name))
}
