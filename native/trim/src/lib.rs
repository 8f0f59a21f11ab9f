//! A plugin of QEMU's emulator (TCG): a machine that has become quiet gives back the code that was translated for it, and
//! one that goes on from a saved machine shares the instructions of its kernel with all others that do (`saved`).
//!
//! Most of that code is run once, when a machine starts or a program does, and stays for as long as the machine. QEMU
//! drops it when its buffer is full, and never gives the memory back. A plugin may have it dropped at any time:
//! `qemu_plugin_reset` does so while no processor of the guest runs, calls back, and nothing refers to the buffer then.
//! What is needed again is translated again.
//!
//! The interface is that of `qemu-plugin.h`, version 1 (QEMU 4.2 to 8.2). QEMU refuses to start with a version that it
//! does not know, so whoever names this plugin has tried it.

mod code;
mod maps;
#[cfg(not(test))] // it is linked with QEMU's functions
mod plugin;
mod quiet;
mod saved;
