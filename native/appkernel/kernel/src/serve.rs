//! `drupe-appkernel serve`: the kernel of one pod, told what to do by its control socket.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use drupe_appkernel_hostsys::files;
use drupe_sys::landlock::Access;
use drupe_sys::{fd, process};

use crate::choice::Choice;
use crate::confine::Confinement;
use crate::control::Control;
use crate::machine::Machine;
use crate::pod::Pod;

pub const USAGE: &str = "usage: drupe-appkernel serve --control DESCRIPTOR --share DIRECTORY --uid UID --pidfile FILE \
[--netns DESCRIPTOR] [--hostname NAME] [--platform trap|kvm]";

#[derive(Default)]
struct Options {
    /// A listening SOCK_SEQPACKET socket, by its number.
    control: i32,
    /// A mount that holds all of the host that the pod may open, now or later.
    share: String,
    /// The host's user that the kernel runs as; the next one is that of its stubs.
    uid: u32,
    /// Where the pid of the kernel is written.
    pidfile: String,
    hostname: String,
    /// What runs guest code; "": see `Choice::of`.
    platform: String,
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
            "--share" => options.share = value,
            "--uid" => options.uid = value.parse().map_err(|_| format!("bad user {value}"))?,
            "--netns" => options.netns = Some(descriptor(&value)?),
            "--pidfile" => options.pidfile = value,
            "--platform" => options.platform = value,
            "--hostname" => options.hostname = value,
            _ => return Err(format!("unknown option {word}")),
        }
    }
    if options.control < 0 || options.share.is_empty() || options.uid == 0 || options.pidfile.is_empty() {
        return Err(String::from("a control socket, a directory, a user that is not root, and a pidfile are needed"));
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

/// The platform and a kernel, in a process that can do no more than it must.
fn start(options: &Options) -> Result<Pod, String> {
    let choice = Choice::of(&options.platform)?;
    let machine = Machine::new(0).map_err(|error| format!("/proc: {error}"))?;
    std::env::set_current_dir(&options.share).map_err(|error| format!("{}: {error}", options.share))?;
    if options.netns.is_some() {
        machine.join_network().map_err(|error| format!("/proc/self/net: {error}"))?;
    }
    let network = machine.network_directory().map(|fd| fd.try_clone_to_owned()).transpose();
    let network = network.map_err(|error| format!("/proc/self/net: {error}"))?;
    let directories = network.iter().map(|fd| (fd.as_fd(), Access::Read)).collect();
    let confinement = Confinement {
        uid: options.uid,
        directories,
        network: network.is_some(),
        machine: choice.is_kvm(),
        share: true,
    };
    let identity = confinement.enter().map_err(|error| error.to_string())?;
    let pod = Pod::start(machine, &choice, identity.as_ref());
    let mut pod = pod.map_err(|error| format!("the {} platform does not work here: {error}", choice.name()))?;
    let share = files::open_path(b"/", libc::O_PATH | libc::O_DIRECTORY);
    pod.share = Some(share.map_err(|error| format!("the shared directory: {error}"))?);
    confinement.seal().map_err(|error| error.to_string())?;
    Ok(pod)
}

fn serve(listener: OwnedFd, options: &Options) -> Result<(), String> {
    fd::set_nonblocking(&listener).map_err(|error| format!("control socket: {error}"))?;
    let mut pod = start(options)?;
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
