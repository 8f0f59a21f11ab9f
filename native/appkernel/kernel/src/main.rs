//! `drupe-appkernel`: the kernel of one pod.

mod cgroup;
mod choice;
mod claim;
mod confine;
mod containers;
mod control;
mod covers;
mod hostfs;
mod machine;
mod manual;
mod netsocket;
mod ops;
mod pace;
mod pod;
mod probe;
mod run;
mod serve;
mod settings;
mod snapshot;
mod streams;
mod terminal;
mod trap;
#[cfg(test)]
mod trap_tests;
mod tree;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let answer = match words.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("probe") => probe::run()
            .map(|figures| println!("{figures}"))
            .map(|()| 0)
            .map_err(|error| (1, format!("the trap platform does not work here: {error}"))),
        Some("probe-kvm") => probe::run_kvm().map(|figures| println!("{figures}")).map(|()| 0).map_err(|why| (1, why)),
        Some("syscalls") => {
            print!("{}", manual::page());
            Ok(0)
        }
        Some("run") => match drupe_sys::process::shed_descriptors(None) {
            Ok(_) => run::run(words),
            Err(error) => Err((1, error.to_string())),
        },
        Some("serve") => serve::run(words),
        _ => Err((2, format!("{}\n{}\n       drupe-appkernel probe | probe-kvm | syscalls", run::USAGE, serve::USAGE))),
    };
    match answer {
        Ok(code) => ExitCode::from(code),
        Err((code, message)) => {
            eprintln!("drupe-appkernel: {message}");
            ExitCode::from(code)
        }
    }
}
