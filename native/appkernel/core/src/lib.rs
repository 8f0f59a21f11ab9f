//! Tasks, memory, signals: the application kernel's core, in safe Rust, above any platform.

#![forbid(unsafe_code)]

pub mod mm;
pub mod platform;
pub mod signal;
pub mod task;
