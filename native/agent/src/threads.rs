//! The agent's threads. They come before everything that runs in the containers: a guest that is busy still answers its
//! host, and so one that does not answer hangs.

use drupe_sys::{machine, process};
use std::io;

/// Starts one. Errors: no thread can be made.
pub fn start(name: &str, stack_bytes: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let prompt = move || {
        come_first();
        work();
    };
    std::thread::Builder::new().name(name.into()).stack_size(stack_bytes).spawn(prompt).map(|_| ())
}

/// For the first thread; the others are by `start`.
pub fn come_first() {
    let _ = process::be_prompt(); // a service may lack the right to
}

/// Not a page of what answers has to be read from a disk that is slow.
pub fn stay_in_memory() {
    let _ = machine::keep_in_memory();
}
