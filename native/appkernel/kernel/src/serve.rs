//! `drupe-appkernel serve`: the kernel of one pod, told what to do by its control socket. With `--claim` it waits, made and
//! confined as far as that goes without a pod, until it is told whose it is.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use drupe_appkernel_core::platform::Platform;
use drupe_appkernel_hostsys::identity::{self, Identity};
use drupe_appkernel_hostsys::{files, zygote};
use drupe_sys::landlock::Access;
use drupe_sys::{cgroup, fd, process};

use crate::choice::Choice;
use crate::claim::{self, Claim};
use crate::confine::Confinement;
use crate::control::Control;
use crate::machine::Machine;
use crate::pod::Pod;
use crate::trap::Stubs;

pub const USAGE: &str = "usage: drupe-appkernel serve --control DESCRIPTOR --share DIRECTORY --uid UID --pidfile FILE \
[--claim DESCRIPTOR] [--restores yes] [--platform trap|kvm]";

/// The name of the processes of a kernel that waits.
const WAITS: &str = "drupe-spare";

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
    /// It is to go on from a snapshot.
    restores: bool,
    /// A socket on which it is told its pod (`Claim`). Without one it is a pod's at once, which has no network.
    claim: Option<i32>,
    /// What runs guest code; "": see `Choice::of`.
    platform: String,
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
            "--claim" => options.claim = Some(descriptor(&value)?),
            "--platform" => options.platform = value,
            "--pidfile" => options.pidfile = value,
            "--restores" => options.restores = value == "yes",
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
    let claims = options.claim.map(fd::duplicate_number).transpose();
    let claims = claims.map_err(|error| (1, format!("socket of the claim: {error}")))?;
    let child = process::fork_child(|| match serve(listener, claims, &options) {
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

/// All that a kernel is before it is a pod's: nothing of a pod is in it, and it is confined as far as it can be. One process,
/// which waits with the holder of its stubs' namespaces and the first stub.
struct Spare<'a> {
    machine: Machine,
    choice: Choice,
    confinement: Confinement<'a>,
    /// Of stubs: who they are, and the first of them.
    stubs: Option<(Identity, zygote::Waiting)>,
    share: OwnedFd,
}

/// `network`: the directory of /proc that shows the network namespace, wherever this process is then.
fn prepare<'a>(
    options: &Options,
    choice: Choice,
    machine: Machine,
    network: Option<&'a OwnedFd>,
) -> Result<Spare<'a>, String> {
    std::env::set_current_dir(&options.share).map_err(|error| format!("{}: {error}", options.share))?;
    let directories = network.into_iter().map(|fd| (fd.as_fd(), Access::Read)).collect();
    let (network, with_machine) = (network.is_some(), choice.is_kvm());
    let confinement = Confinement { uid: options.uid, directories, network, machine: with_machine, share: true };
    let identity = confinement.enter().map_err(|error| error.to_string())?;
    let begin = |identity| zygote::begin(Some(&identity), options.restores).map(|first| (identity, first));
    let stubs = identity.map(begin).transpose().map_err(|error| no_platform(&choice, &error))?;
    let share = files::open_path(b"/", libc::O_PATH | libc::O_DIRECTORY);
    let share = share.map_err(|error| format!("the shared directory: {error}"))?;
    Ok(Spare { machine, choice, confinement, stubs, share })
}

fn no_platform(choice: &Choice, error: &std::io::Error) -> String {
    format!("the {} platform does not work here: {error}", choice.name())
}

impl Spare<'_> {
    /// Become the kernel of a pod, in a process that can do no more than it must.
    fn serve(mut self, claim: Claim) -> Result<Pod, String> {
        process::set_name(identity::NAME);
        if let Some((identity, _)) = &self.stubs {
            identity.join_cgroups(&claim.cgroups).map_err(|error| format!("cgroup: {error}"))?;
        }
        claim.cgroups.iter().try_for_each(cgroup::join).map_err(|error| format!("cgroup: {error}"))?;
        if let Some(netns) = &claim.netns {
            let joined = drupe_sys::mount::setns(netns, libc::CLONE_NEWNET);
            joined.map_err(|error| format!("network namespace: {error}"))?;
            self.machine.limit(claim.memory_bytes, claim.processors as usize);
        }
        let platform = match self.stubs {
            Some((identity, first)) => first.finish(&claim.cgroups).and_then(|zygote| {
                let stubs = Stubs::over(zygote, self.machine.watched.poller(), Some(&identity))?;
                Ok(Box::new(stubs) as Box<dyn Platform>)
            }),
            None => self.choice.start(&self.machine, None),
        };
        let mut pod = Pod::on(platform.map_err(|error| no_platform(&self.choice, &error))?, self.machine);
        pod.share = Some(self.share);
        if !claim.hostname.is_empty() {
            pod.kernel.set_hostname(claim.hostname.as_bytes());
        }
        self.confinement.seal().map_err(|error| error.to_string())?;
        Ok(pod)
    }
}

fn serve(listener: OwnedFd, claims: Option<OwnedFd>, options: &Options) -> Result<(), String> {
    fd::set_nonblocking(&listener).map_err(|error| format!("control socket: {error}"))?;
    let choice = Choice::of(&options.platform)?;
    if choice.is_kvm() && options.restores {
        return Err(String::from("a snapshot cannot be restored on the kvm platform"));
    }
    let machine = Machine::new(0).map_err(|error| format!("/proc: {error}"))?;
    if claims.is_some() {
        process::set_name(WAITS);
        machine.join_network().map_err(|error| format!("/proc/self/net: {error}"))?;
    }
    let network = machine.network_directory().map(|fd| fd.try_clone_to_owned()).transpose();
    let network = network.map_err(|error| format!("/proc/self/net: {error}"))?;
    let spare = prepare(options, choice, machine, network.as_ref())?;
    let claim = match &claims {
        None => Claim::default(),
        Some(socket) => match Claim::wait(socket)? {
            None => return Ok(()),
            Some(claim) => claim,
        },
    };
    let begun = spare.serve(claim).and_then(|pod| {
        let control = Control::new(listener, &pod).map_err(|error| format!("control socket: {error}"))?;
        Ok((pod, control))
    });
    if let Some(socket) = claims {
        claim::answer(&socket, &begun.as_ref().map(drop).map_err(Clone::clone));
    }
    let (mut pod, mut control) = begun?;
    while !control.is_over {
        control.turn(&mut pod);
        let again_ns = control.again_ns(&mut pod);
        pod.kernel.step(again_ns).map_err(|errno| format!("the kernel cannot go on: {errno}"))?;
    }
    Ok(())
}
