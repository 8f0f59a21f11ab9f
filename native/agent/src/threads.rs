//! The agent's threads. In a machine they come before everything that runs in the containers: a guest that is busy still
//! answers its host, and so one that does not answer hangs.

use drupe_sys::{machine, process};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static FIRST: AtomicBool = AtomicBool::new(false);

/// Starts one. Errors: no thread can be made.
pub fn start(name: &str, stack_bytes: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let prompt = move || {
        if FIRST.load(Ordering::Relaxed) {
            let _ = process::be_prompt();
        }
        work();
    };
    std::thread::Builder::new().name(name.into()).stack_size(stack_bytes).spawn(prompt).map(|_| ())
}

/// From now on threads that are started come first, and so does this one. Not a page of what answers has to be read from a
/// disk that is slow. What a service has no right to is left out.
pub fn come_first() {
    FIRST.store(true, Ordering::Relaxed);
    let _ = process::be_prompt();
    let _ = machine::keep_in_memory();
}
