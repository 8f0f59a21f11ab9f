//! Tasks, memory, signals and system calls.

pub mod platform;
