//! The host, as the application kernel uses it. All of its `unsafe` is here: system calls, memory shared with stub
//! processes, and the code that runs in these.

pub mod arena;
pub mod changes;
pub mod clock;
pub mod files;
pub mod filter;
pub mod identity;
pub mod inputs;
pub mod kernel_calls;
pub mod kvm;
pub mod kvm_types;
pub mod layout;
pub mod memory;
pub mod net;
pub mod netoptions;
pub mod notify;
pub mod poll;
pub mod remote;
pub mod rules;
pub mod runner;
pub mod slot;
mod state;
pub mod stub;
pub mod terminal;
pub mod zygote;
