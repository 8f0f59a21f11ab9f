//! `drupe-appkernel serve`: the kernel of one pod, told what to do by its control socket.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;

use drupe_sys::{fd, process};

use crate::control::Control;
use crate::pod::Pod;

pub const USAGE: &str = "usage: drupe-appkernel serve --control DESCRIPTOR --pidfile FILE [--netns DESCRIPTOR] \
[--hostname NAME]";

/// A listening SOCK_SEQPACKET socket by its number; where the pid of the kernel is written.
#[derive(Default)]
struct Options {
    control: i32,
    pidfile: String,
    hostname: String,
    /// The network namespace to be in.
    netns: Option<i32>,
}

fn parse(words: impl Iterator<Item = OsString>) -> Result<Options, String> {
    let mut options = Options { control: -1, ..Options::default() };
    let mut words = words.map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--control" => options.control = descriptor(&value)?,
            "--netns" => options.netns = Some(descriptor(&value)?),
            "--pidfile" => options.pidfile = value,
            "--hostname" => options.hostname = value,
            _ => return Err(format!("unknown option {word}")),
        }
    }
    if options.control < 0 || options.pidfile.is_empty() {
        return Err(String::from("a control socket and a pidfile are needed"));
    }
    Ok(options)
}

fn descriptor(word: &str) -> Result<i32, String> {
    word.parse().map_err(|_| format!("bad descriptor {word}"))
}

/// Returns once the kernel is on its way, in a process of its own whose pid is written down.
pub fn run(words: impl Iterator<Item = OsString>) -> Result<u8, (u8, String)> {
    let options = parse(words).map_err(|message| (2, format!("{message}\n{USAGE}")))?;
    let listener = fd::duplicate_number(options.control).map_err(|error| (1, format!("control socket: {error}")))?;
    if let Some(number) = options.netns {
        let joined = fd::duplicate_number(number).and_then(|netns| drupe_sys::mount::setns(&netns, libc::CLONE_NEWNET));
        joined.map_err(|error| (1, format!("network namespace: {error}")))?;
    }
    let child = process::fork_child(|| match serve(listener, &options) {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("drupe-appkernel: {message}");
            1
        }
    });
    let pid = child.map_err(|error| (1, format!("cannot fork: {error}")))?;
    fs::write(&options.pidfile, pid.to_string()).map_err(|error| (1, format!("{}: {error}", options.pidfile)))?;
    Ok(0)
}

fn serve(listener: OwnedFd, options: &Options) -> Result<(), String> {
    fd::set_nonblocking(&listener).map_err(|error| format!("control socket: {error}"))?;
    let mut pod = Pod::start(0).map_err(|error| format!("the trap platform does not work here: {error}"))?;
    if !options.hostname.is_empty() {
        pod.kernel.set_hostname(options.hostname.as_bytes());
    }
    let mut control = Control::new(listener, &pod).map_err(|error| format!("control socket: {error}"))?;
    while !control.is_over {
        control.turn(&mut pod);
        pod.kernel.step(control.again_ns()).map_err(|errno| format!("the kernel cannot go on: {errno}"))?;
    }
    Ok(())
}
