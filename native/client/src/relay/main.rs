//! drupe-relay: holds containerd's connections while drupe's daemon is restarted. containerd takes the end of a task's
//! connection for the death of the task; behind us daemons come and go, and what one did not answer the next is asked.
//! It knows nothing of tasks.

#![deny(unsafe_code)]

mod control;
mod frames;
#[path = "../shim/message.rs"]
mod message;
mod server;
mod talk;
mod wake;

use drupe_sys::daemon::{self, context, Begun, Starter};
use drupe_sys::{process, socket};
use server::Relay;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: drupe-relay --dir DIR [--log FILE] [--version]";
const SOCKET: &str = "relay.sock";
const LOCK: &str = "relay.lock";
const LOCKED: u8 = 3;

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(None) => {
            println!("drupe-relay {} (protocol {})", env!("CARGO_PKG_VERSION"), control::PROTOCOL);
            ExitCode::SUCCESS
        }
        Ok(Some((dir, log))) => start(&dir, log).unwrap_or_else(|error| {
            eprintln!("drupe-relay: {error}");
            ExitCode::FAILURE
        }),
        Err(message) => {
            eprintln!("drupe-relay: {message}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

type Options = (PathBuf, Option<PathBuf>);

fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let (mut dir, mut log) = (None, None);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut path = || {
            let value = arguments.next().ok_or(format!("{argument} needs a value"))?;
            std::path::absolute(value).map_err(|error| format!("bad {argument}: {error}"))
        };
        match argument.as_str() {
            "--dir" => dir = Some(path()?),
            "--log" => log = Some(path()?),
            "--version" => return Ok(None),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(Some((dir.ok_or("--dir is missing")?, log)))
}

/// Returns once the daemon accepts connections.
fn start(dir: &Path, log: Option<PathBuf>) -> io::Result<ExitCode> {
    process::shed_descriptors(None)?;
    Ok(match daemon::begin(&dir.join(LOCK), |starter| serve(dir, log.as_deref(), starter))? {
        Begun::Serves => ExitCode::SUCCESS,
        Begun::Locked => {
            eprintln!("drupe-relay: another one serves {}", dir.display());
            ExitCode::from(LOCKED)
        }
    })
}

fn serve(dir: &Path, log: Option<&Path>, starter: &Starter) -> i32 {
    let served = prepare(dir).and_then(|relay| {
        daemon::detach_stdio(log)?;
        starter.ready()?;
        Ok(relay)
    });
    match served {
        Err(error) => {
            starter.failed(&error);
            1
        }
        Ok(mut relay) => match relay.run() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("drupe-relay: {error}");
                1
            }
        },
    }
}

fn prepare(dir: &Path) -> io::Result<Relay> {
    process::set_name("drupe-relay");
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGPIPE, libc::SIGQUIT] {
        process::ignore_signal(signal);
    }
    let signals = process::signal_fd(&[libc::SIGTERM])?;
    let (_, most) = process::nofile_limit()?;
    process::set_nofile_limit(most, most)?;
    std::env::set_current_dir("/")?;
    let reception = listen(dir, SOCKET, socket::listen_seqpacket);
    let reception = reception.map_err(context(format!("cannot listen in {}", dir.display())))?;
    Relay::new(dir.to_owned(), reception, signals)
}

/// A socket of that name, for its owner only, in place of one that a relay before us left: the lock says that none lives.
/// A socket's path is short (unix(7)), and so goes through /proc/self/fd.
fn listen<T>(dir: &Path, name: &str, bind: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let handle = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd()));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
