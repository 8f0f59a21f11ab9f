//! Files as the application kernel's core uses them. No crate below this one calls the host or blocks.
//!
//! What a file, an inode, a file system is (traits); how paths are walked; what descriptors and open files are. An operation
//! that cannot go on now returns EAGAIN; the caller registers with the object's wait queue and tries again.

#![forbid(unsafe_code)]

pub mod anonymous;
pub mod backing;
pub mod cred;
pub mod dentry;
pub mod devices;
pub mod directory;
pub mod event;
pub mod fdtable;
pub mod file;
#[cfg(test)]
mod hostile;
pub mod inode;
pub mod inotify;
pub mod ioctl;
pub mod kind;
pub mod locks;
pub mod mount;
mod names;
pub mod open;
pub mod ops;
pub mod overlay;
pub mod pipe;
pub mod proc;
pub mod pseudo;
pub mod saved;
pub mod socket;
pub mod sync;
#[cfg(test)]
mod testing;
pub mod time;
pub mod tmpfs;
pub mod tty;
pub mod wait;
pub mod walk;

pub use backing::{Backing, Backings};
pub use dentry::{Dentry, Path};
pub use fdtable::FdTable;
pub use file::{Context, Credentials, File, HostFile, Mapping, Metadata, SeekFrom, Timestamp};
pub use inode::{FileSystem, Inode, InodeRef, NewNode, Xattrs};
pub use kind::FileType;
pub use mount::{Mount, MountNamespace};
pub use open::{OpenFile, OpenFlags};
pub use ops::{SpecialFiles, TimeChange};
pub use time::{Clock, ClockId};
pub use wait::{Events, Registration, WaitQueue, Wake};
pub use walk::{How, View};
