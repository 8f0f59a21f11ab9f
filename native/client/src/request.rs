//! What the warm process is told of us. An error means: be Python instead.

use crate::home;
use drupe_sys::{fd, process, socket, terminal};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const MAGIC: &[u8; 8] = b"drupe-1\n";
/// The warm process takes no more: argument list and environment are rarely over some kilobytes.
const MAX_BYTES: usize = 8 << 20;
const MAX_FDS: usize = 30;
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the outcome can be the same as Python's own, as far as we can tell.
pub fn is_possible() -> bool {
    !is_set("DRUPE_NO_WARM") && !is_set("DRUPE_DEBUG") && !(0..3).any(stopped_by_terminal)
}

/// Sends our request. blocked: the signals that were blocked when we were started.
pub fn send(mut stream: &UnixStream, blocked: u64) -> io::Result<()> {
    let numbers = open_descriptors()?;
    let body = body(&numbers, blocked)?;
    let header = [MAGIC.as_slice(), &(body.len() as u32).to_le_bytes()].concat();
    socket::send(stream, &header, &descriptors(&numbers)?)?;
    stream.write_all(&body)
}

/// A switch in the environment.
pub fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0")
}

/// Job control knows only us: where it would stop a program that reads or writes, the program must be ours.
fn stopped_by_terminal(number: i32) -> bool {
    terminal::at(number).is_some_and(|terminal| !terminal.foreground || terminal.stops_output)
}

/// A connection to the warm process of our user.
pub fn connect() -> io::Result<UnixStream> {
    let run = env::var_os("DRUPE_RUN").filter(|run| !run.is_empty()).unwrap_or_else(|| "/run/drupe".into());
    let stream = UnixStream::connect(PathBuf::from(run).join("cli.sock"))?;
    if socket::peer_uid(&stream)? != process::effective_uid() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The numbers of the descriptors that we were given: a shell's `<(…)` is one of them. Our own are close-on-exec.
fn open_descriptors() -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        numbers.extend(number.filter(|number| fd::is_inherited(*number)));
    }
    match numbers.len() > MAX_FDS {
        true => Err(io::ErrorKind::Unsupported.into()),
        false => Ok(numbers),
    }
}

/// The working directory, then duplicates of `numbers`.
fn descriptors(numbers: &[i32]) -> io::Result<Vec<OwnedFd>> {
    let directory = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(".")?;
    let mut all = vec![OwnedFd::from(directory)];
    for number in numbers {
        all.push(fd::duplicate_number(*number)?);
    }
    Ok(all)
}

/// Numbers first, then texts, each with its NUL: version, directory, arguments, environment.
fn body(numbers: &[i32], blocked: u64) -> io::Result<Vec<u8>> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let environment: Vec<(OsString, OsString)> = env::vars_os().collect();
    let home = home::directory().ok_or(io::ErrorKind::NotFound)?;
    let mut body = Vec::with_capacity(4096);
    for count in [arguments.len(), environment.len(), numbers.len(), process::umask() as usize] {
        body.extend((count as u32).to_le_bytes());
    }
    body.extend(blocked.to_le_bytes());
    numbers.iter().for_each(|number| body.extend(number.to_le_bytes()));
    let mut text = |parts: &[&[u8]]| {
        parts.iter().for_each(|part| body.extend_from_slice(part));
        body.push(0);
    };
    text(&[env!("CARGO_PKG_VERSION").as_bytes()]);
    text(&[home.as_os_str().as_bytes()]);
    arguments.iter().for_each(|argument| text(&[argument.as_bytes()]));
    environment.iter().for_each(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()]));
    match body.len() > MAX_BYTES {
        true => Err(io::ErrorKind::Unsupported.into()),
        false => Ok(body),
    }
}
