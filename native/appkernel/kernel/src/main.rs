//! `drupe-appkernel`: the kernel of one pod.
//!
//! What there is of it can be probed: `drupe-appkernel probe` runs a guest of a few instructions on the platform and prints what one
//! of its system calls costs here. It runs no program yet.

mod ops;
mod probe;
mod trap;
#[cfg(test)]
mod trap_tests;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() != Some("probe") {
        eprintln!("drupe-appkernel: runs no program yet; usage: drupe-appkernel probe");
        return ExitCode::from(2);
    }
    match probe::run() {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("drupe-appkernel: the trap platform does not work here: {error}");
            ExitCode::FAILURE
        }
    }
}
