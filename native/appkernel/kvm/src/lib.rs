//! The `kvm` platform: guest code in ring 3 of a virtual machine of our own, behind the same trait as `trap`.
//!
//! One machine for each pod, with some processors, and no kernel in it: a page of text in ring 0 takes every trap out to this
//! process, which answers it as it would a stub's. Memory is ours, by page tables of ours. No process of the host's runs guest
//! code, and none of its addresses are in the guest's tables.

mod area;
mod cpu;
mod frames;
mod futex;
mod memory;
mod platform;
mod pool;
pub mod probe;
mod state;
mod tables;
#[cfg(test)]
mod tests;
mod text;

pub use platform::Machines;
