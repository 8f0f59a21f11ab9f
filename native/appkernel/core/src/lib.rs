//! Tasks, memory, signals, system calls: the application kernel's core, in safe Rust, above any platform.

#![forbid(unsafe_code)]

pub mod auxv;
mod bounds;
mod calls;
pub mod census;
mod clone;
mod container;
mod deliver;
pub mod elf;
pub mod encode;
mod exec;
mod exit;
mod grow;
mod guest;
pub mod host;
pub mod jobs;
pub mod kernel;
pub mod mm;
mod mqueue;
mod nursery;
mod pages;
pub mod pids;
pub mod platform;
mod privileges;
mod quota;
pub mod rest;
mod rewrite;
mod robust;
mod seat;
pub mod seccomp;
mod send;
pub mod signal;
pub mod snapshot;
mod sysctl;
mod sysv;
pub mod table;
pub mod task;
mod texts;
pub mod timers;
pub mod usage;

pub use calls::system::{RELEASE, VERSION};
pub use clone::{default_limits, Rights, Surroundings, USUAL_UMASK};
pub use container::Seen;
pub use host::Host;
pub use kernel::{Done, Kernel, Program};
