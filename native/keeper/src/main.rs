//! drupe-keeper: parent of workloads. It holds their stdio, writes their logs, records how they ended, and makes
//! namespaces and mounts for a daemon that must not do so itself. It takes no decisions; docs/keeper.md is its contract.

#![deny(unsafe_code)]

mod attach;
mod clock;
mod create;
mod exec;
mod foreign;
mod helper;
mod log;
mod mounts;
mod namespaces;
mod recent;
mod server;
mod start;
mod streams;
mod task;
mod tasks;
mod timers;
mod watch;

use std::process::ExitCode;

use drupe_packets as protocol;

const USAGE: &str = "usage: drupe-keeper --run-dir DIR [--log FILE] [--mount-namespace FD] [--version]";

fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<start::Options>, String> {
    let mut options = start::Options { run_dir: "".into(), log: None, mount_namespace: None };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--run-dir" => options.run_dir = value()?.into(),
            "--log" => {
                // The daemon's working directory is another one.
                let path = std::path::absolute(value()?).map_err(|error| format!("bad --log: {error}"))?;
                options.log = Some(path);
            }
            "--mount-namespace" => {
                let number = value()?;
                options.mount_namespace = Some(number.parse().map_err(|_| format!("bad descriptor {number}"))?);
            }
            "--version" => return Ok(None),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    match options.run_dir.as_os_str().is_empty() {
        true => Err("--run-dir is missing".into()),
        false => Ok(Some(options)),
    }
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(None) => {
            println!("drupe-keeper {} (protocol {})", env!("CARGO_PKG_VERSION"), server::PROTOCOL);
            ExitCode::SUCCESS
        }
        Ok(Some(options)) => match start::start(&options) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("drupe-keeper: {error}");
                ExitCode::from(start::FAILED)
            }
        },
        Err(message) => {
            eprintln!("drupe-keeper: {message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
