//! drupe-client: the command `drupe`. A warm process that has everything imported runs the command in a fork of itself,
//! with our descriptors, directory and environment; we stand for it towards the shell: signals, job control, exit code.
//! Whenever that is not possible, or would not be the same, we become the Python program instead.

#![deny(unsafe_code)]

mod home;
mod python;
mod request;
mod session;

use drupe_sys::process;
use std::io;
use std::process::ExitCode;

const NOT_WARM: u8 = 125;

fn main() -> ExitCode {
    match run_warm() {
        Ok(code) => ExitCode::from(code),
        Err(_) if request::is_set("DRUPE_WARM_ONLY") => {
            eprintln!("drupe: no warm process takes this command, and DRUPE_WARM_ONLY is set");
            ExitCode::from(NOT_WARM)
        }
        Err(_) => python::become_it(),
    }
}

/// An error means that nothing was done yet, and that signals are as they were.
fn run_warm() -> io::Result<u8> {
    if !request::is_possible() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let blocked = process::blocked_signals()?;
    let outcome = session::run(blocked);
    if outcome.is_err() {
        // those that came meanwhile act now
        process::set_blocked_signals(blocked)?;
    }
    outcome
}
