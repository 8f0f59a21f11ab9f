//! Files as the application kernel's core uses them. No crate below this one calls the host or blocks.

pub mod file;
pub mod wait;

pub use file::{Context, Credentials, File, HostFile, Mapping, Metadata, SeekFrom, Timestamp};
pub use wait::{Events, Registration, WaitQueue, Wake};
