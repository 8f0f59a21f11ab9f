//! The messages of the two services; all but this file is written by scripts/gen-protobuf.py.

#![allow(dead_code)] // messages of methods that an agent does not have

pub mod cgroup2;
pub mod guest;
pub mod mount;
pub mod task;
pub mod ttrpc;
pub mod types;
pub mod wellknown;
