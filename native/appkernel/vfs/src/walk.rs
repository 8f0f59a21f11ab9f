//! From a path to a place: path_resolution(7), with the restrictions of openat2(2).

use drupe_appkernel_abi::{Errno, Result};

use crate::cred::MAY_EXEC;
use crate::dentry::Path;
use crate::file::Context;
use crate::inode::LinkTarget;
use crate::kind::FileType;
use crate::mount::{MountNamespace, MS_NOSYMFOLLOW};
use crate::ops::SpecialFiles;

pub const RESOLVE_NO_XDEV: u64 = 1;
pub const RESOLVE_NO_MAGICLINKS: u64 = 2;
pub const RESOLVE_NO_SYMLINKS: u64 = 4;
pub const RESOLVE_BENEATH: u64 = 8;
pub const RESOLVE_IN_ROOT: u64 = 16;

const PATH_MAX: usize = 4096;
const MAX_LINKS: u32 = 40;

/// The tree of files as one task sees it during one call.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub context: &'a Context<'a>,
    pub namespace: &'a MountNamespace,
    pub root: &'a Path,
    pub umask: u32,
    /// Opens devices and FIFOs.
    pub specials: &'a dyn SpecialFiles,
}

/// The last component of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Last {
    Name(Vec<u8>),
    Dot,
    DotDot,
    /// The path was only slashes, or ended with a link that jumped.
    Root,
}

/// Where a path led.
pub struct Found {
    /// The directory of the last component.
    pub parent: Path,
    pub last: Last,
    /// What is there; None: nothing.
    pub target: Option<Path>,
    /// The path ended with a slash: it must be a directory.
    pub slash: bool,
}

/// How to walk.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// Follow a symbolic link that the path ends with.
    pub follow: bool,
    /// Follow it, if a slash comes after it, even when `follow` is false.
    pub follow_slash: bool,
    /// RESOLVE_*.
    pub resolve: u64,
}

impl How {
    pub const FOLLOW: Self = Self { follow: true, follow_slash: true, resolve: 0 };
    pub const NO_FOLLOW: Self = Self { follow: false, follow_slash: true, resolve: 0 };
    /// For what makes or removes names.
    pub const NAME: Self = Self { follow: false, follow_slash: false, resolve: 0 };
}

struct Walk<'a> {
    view: &'a View<'a>,
    how: How,
    start: Path,
    root: Path,
    at: Path,
    /// Components still to go, the next one last.
    pending: Vec<Vec<u8>>,
    links: u32,
    slash: bool,
}

enum Step {
    On,
    Done(Found),
}

impl View<'_> {
    /// Where `path` leads from `start`. ENOENT for an empty path or a missing directory; ENOTDIR, EACCES, ELOOP,
    /// ENAMETOOLONG; EXDEV as openat2(2) has it.
    pub fn find(&self, start: &Path, path: &[u8], how: How) -> Result<Found> {
        let confined = how.resolve & RESOLVE_IN_ROOT != 0;
        let root = if confined { start } else { self.root };
        let mut walk = Walk {
            view: self,
            how,
            start: start.clone(),
            root: root.clone(),
            at: start.clone(),
            pending: Vec::new(),
            links: 0,
            slash: false,
        };
        walk.push(path)?;
        walk.run()
    }

    /// The existing file at `path`. As `find`, and ENOENT, or ENOTDIR for a slash after what is no directory.
    pub fn walk(&self, start: &Path, path: &[u8], how: How) -> Result<Path> {
        let found = self.find(start, path, how)?;
        let target = found.target.ok_or(Errno::NOENT)?;
        if found.slash && target.inode().kind() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        Ok(target)
    }
}

impl Walk<'_> {
    fn push(&mut self, path: &[u8]) -> Result<()> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        if path.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if path[0] == b'/' {
            if self.how.resolve & RESOLVE_BENEATH != 0 {
                return Err(Errno::XDEV);
            }
            self.jump(self.root.clone())?;
        }
        if self.pending.is_empty() {
            self.slash |= path.ends_with(b"/");
        }
        let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        self.pending.extend(names.rev().map(<[u8]>::to_vec));
        Ok(())
    }

    fn jump(&mut self, to: Path) -> Result<()> {
        let to = self.view.namespace.descend(to);
        self.check_mount(&to)?;
        self.at = to;
        Ok(())
    }

    fn check_mount(&self, to: &Path) -> Result<()> {
        let crosses = to.mount.id() != self.at.mount.id();
        (!crosses || self.how.resolve & RESOLVE_NO_XDEV == 0).then_some(()).ok_or(Errno::XDEV)
    }

    fn run(mut self) -> Result<Found> {
        while let Some(name) = self.pending.pop() {
            if let Step::Done(found) = self.step(&name)? {
                return Ok(found);
            }
        }
        let target = Some(self.at.clone());
        Ok(Found { parent: self.at, last: Last::Root, target, slash: self.slash })
    }

    fn step(&mut self, name: &[u8]) -> Result<Step> {
        let directory = self.at.inode().metadata()?;
        if !directory.is_directory() {
            return Err(Errno::NOTDIR);
        }
        self.view.context.credentials.check(&directory, MAY_EXEC)?;
        match name {
            b"." => Ok(self.dots(Last::Dot)),
            b".." => {
                self.up()?;
                Ok(self.dots(Last::DotDot))
            }
            name => self.down(name),
        }
    }

    fn dots(&self, last: Last) -> Step {
        if !self.pending.is_empty() {
            return Step::On;
        }
        Step::Done(Found { parent: self.at.clone(), last, target: Some(self.at.clone()), slash: true })
    }

    fn up(&mut self) -> Result<()> {
        if self.how.resolve & RESOLVE_BENEATH != 0 && self.at.is(&self.start) {
            return Err(Errno::XDEV);
        }
        self.jump(self.at.parent(&self.root))
    }

    fn down(&mut self, name: &[u8]) -> Result<Step> {
        let is_last = self.pending.is_empty();
        let child = match self.at.dentry.lookup(name) {
            Err(Errno::NOENT) if is_last => return Ok(Step::Done(self.found(name, None))),
            other => Path::new(self.at.mount.clone(), other?),
        };
        let child = self.view.namespace.descend(child);
        self.check_mount(&child)?;
        let follows = !is_last || self.how.follow || (self.slash && self.how.follow_slash);
        if child.inode().kind() == FileType::Symlink && follows {
            return self.follow(&child, name);
        }
        if is_last {
            return Ok(Step::Done(self.found(name, Some(child))));
        }
        self.at = child;
        Ok(Step::On)
    }

    fn found(&self, name: &[u8], target: Option<Path>) -> Found {
        Found { parent: self.at.clone(), last: Last::Name(name.to_vec()), target, slash: self.slash }
    }

    fn follow(&mut self, link: &Path, name: &[u8]) -> Result<Step> {
        self.links += 1;
        let forbidden = self.how.resolve & RESOLVE_NO_SYMLINKS != 0 || link.mount.has(MS_NOSYMFOLLOW);
        if self.links > MAX_LINKS || forbidden {
            return Err(Errno::LOOP);
        }
        link.inode().check_follow(self.view.context)?;
        match link.inode().read_link()? {
            LinkTarget::Text(text) => self.push(&text).map(|()| Step::On),
            LinkTarget::Jump(_) if self.how.resolve & RESOLVE_NO_MAGICLINKS != 0 => Err(Errno::LOOP),
            LinkTarget::Jump(_) if self.how.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT) != 0 => Err(Errno::XDEV),
            LinkTarget::Jump(to) if self.pending.is_empty() => {
                self.check_mount(&to)?;
                Ok(Step::Done(self.found(name, Some(to))))
            }
            LinkTarget::Jump(to) => {
                self.check_mount(&to)?;
                self.at = to;
                Ok(Step::On)
            }
        }
    }
}
