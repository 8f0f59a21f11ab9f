//! `drupe-appkernel run`: one program in a pod of its own, with this process's streams.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use drupe_appkernel_core::seccomp::Seccomp;
use drupe_appkernel_core::task::Exit;
use drupe_appkernel_core::{default_limits, Program, Rights, Surroundings, USUAL_UMASK};
use drupe_appkernel_hostsys::files;
use drupe_appkernel_hostsys::terminal::{self, Raw};
use drupe_appkernel_vfs::inode::FileSystem;
use drupe_appkernel_vfs::mount::MS_NODEV;
use drupe_appkernel_vfs::{Credentials, Mount, WaitQueue};
use drupe_sys::landlock::Access;

use crate::choice::Choice;
use crate::confine::{self, Confinement};
use crate::hostfs::{HostDirectory, Sharing};
use crate::machine::Machine;
use crate::pod::{root_at, Pod};
use crate::terminal::Console;

pub const USAGE: &str = "usage: drupe-appkernel run --root DIRECTORY|IMAGE [-t] [--env NAME=VALUE]... [--user UID[:GID]] \
[--uid UID] [--bind DIRECTORY:PLACE]... [--memory BYTES] [--network] [--platform trap|kvm] [--no-confine] [--no-rewriting] [--verbose] [--trace] -- PROGRAM [ARGUMENT]...
       --uid: the host's user that the kernel runs as, and the next one for its stubs (by default by its process's number)
       --bind: a directory of the host, seen at a place of the pod that is there; both may change it
       --network: TCP and UDP are sockets of this network namespace; without it they end within the pod
       --no-confine: for debugging only: a guest that breaks out is who you are";

/// What the command line asks for.
#[derive(Default)]
struct Options {
    root: Vec<u8>,
    /// Directories of the host that are shared, and their places.
    binds: Vec<(Vec<u8>, Vec<u8>)>,
    environment: Vec<Vec<u8>>,
    user: (u32, u32),
    uid: Option<u32>,
    network: bool,
    memory_bytes: u64,
    platform: String,
    no_confine: bool,
    terminal: bool,
    verbose: bool,
    trace: bool,
    no_rewriting: bool,
    command: Vec<Vec<u8>>,
}

fn parse(mut words: impl Iterator<Item = Vec<u8>>) -> Result<Options, String> {
    let mut options = Options {
        environment: vec![b"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_vec()],
        ..Options::default()
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{} needs a value", String::from_utf8_lossy(&word)));
        match word.as_slice() {
            b"--" => {
                options.command = words.collect();
                break;
            }
            b"--root" => options.root = value()?,
            b"--env" => options.environment.push(value()?),
            b"--user" => options.user = user(&value()?)?,
            b"--bind" => options.binds.push(bind(&value()?)?),
            b"--uid" => options.uid = Some(user(&value()?)?.0),
            b"--memory" => options.memory_bytes = number(&value()?)?,
            b"--platform" => options.platform = String::from_utf8_lossy(&value()?).into_owned(),
            b"--network" => options.network = true,
            b"--no-confine" => options.no_confine = true,
            b"-t" | b"--tty" => options.terminal = true,
            b"--no-rewriting" => options.no_rewriting = true,
            b"--trace" => options.trace = true,
            b"--verbose" => options.verbose = true,
            _ => return Err(format!("unknown option {}", String::from_utf8_lossy(&word))),
        }
    }
    if options.root.is_empty() || options.command.is_empty() {
        return Err(String::from("a root and a program are needed"));
    }
    Ok(options)
}

fn number(text: &[u8]) -> Result<u64, String> {
    let text = String::from_utf8_lossy(text);
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn bind(text: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let colon = text.iter().position(|byte| *byte == b':');
    let at = colon.ok_or(format!("{} is no DIRECTORY:PLACE", String::from_utf8_lossy(text)))?;
    Ok((text[..at].to_vec(), text[at + 1..].to_vec()))
}

fn user(text: &[u8]) -> Result<(u32, u32), String> {
    let text = String::from_utf8_lossy(text);
    let (uid, gid) = text.split_once(':').unwrap_or((&text, &text));
    let number = |word: &str| word.parse().map_err(|_| format!("{text} is no UID[:GID]"));
    Ok((number(uid)?, number(gid)?))
}

type Refusal = (u8, String);

fn failed(what: &str, why: &dyn std::fmt::Display) -> Refusal {
    (1, format!("{what}: {why}"))
}

/// A directory of the host as a tree of its own, mounted nowhere: nothing leads up from it.
fn apart(path: &[u8]) -> std::io::Result<OwnedFd> {
    let tree = drupe_sys::mount::open_tree(std::path::Path::new(OsStr::from_bytes(path)))?;
    let directory = files::open(tree.as_fd(), b".", libc::O_DIRECTORY);
    std::mem::forget(tree); // it is mounted nowhere but here
    directory
}

/// The platform and a kernel, in a process that can do no more than it must.
fn start(options: &Options, binds: &[OwnedFd]) -> Result<Pod, Refusal> {
    let choice = Choice::of(&options.platform).map_err(|message| (1, message))?;
    let machine = Machine::new(options.memory_bytes).map_err(|error| failed("/proc", &error))?;
    if options.network {
        machine.join_network().map_err(|error| failed("/proc/self/net", &error))?;
    }
    let no_platform = |error| failed(&format!("the {} platform does not work here", choice.name()), &error);
    if options.no_confine {
        eprintln!("drupe-appkernel: NOT CONFINED (--no-confine): this is no sandbox");
        return Pod::start(machine, &choice, None).map_err(no_platform);
    }
    let directory = files::open_path(&options.root, libc::O_PATH | libc::O_DIRECTORY).ok();
    let network = machine.network_directory().map(|fd| fd.try_clone_to_owned()).transpose();
    let network = network.map_err(|error| failed("/proc/self/net", &error))?;
    let read = directory.iter().chain(&network).map(|fd| (fd.as_fd(), Access::Read));
    let directories = read.chain(binds.iter().map(|fd| (fd.as_fd(), Access::Change))).collect();
    let uid = options.uid.unwrap_or_else(confine::own_uid);
    let confinement =
        Confinement { uid, directories, network: options.network, machine: choice.is_kvm(), share: false };
    let identity = confinement.enter().map_err(|error| (1, error.to_string()))?;
    let pod = Pod::start(machine, &choice, identity.as_ref()).map_err(no_platform)?;
    confinement.seal().map_err(|error| (1, error.to_string()))?;
    Ok(pod)
}

/// The program's exit code; a message when it could not be run.
pub fn run(words: impl Iterator<Item = std::ffi::OsString>) -> Result<u8, Refusal> {
    let options = parse(words.map(OsStringExt::into_vec)).map_err(|message| (2, format!("{message}\n{USAGE}")))?;
    let streams = [0, 1, 2].map(files::inherited);
    let [Ok(a), Ok(b), Ok(c)] = streams else { return Err((1, String::from("standard streams must be open"))) };
    let name = String::from_utf8_lossy(&options.root).into_owned();
    let root = match apart(&options.root) {
        Ok(directory) => HostDirectory::new(directory, Sharing::Image).map(|tree| tree as Arc<dyn FileSystem>),
        Err(_) => root_at(&options.root), // an image
    };
    let root = root.map_err(|errno| failed(&name, &errno))?;
    let binds = options.binds.iter().map(|(host, _)| apart(host)).collect::<std::io::Result<Vec<_>>>();
    let binds = binds.map_err(|error| failed("--bind", &error))?;
    let mut pod = start(&options, &binds)?;
    pod.kernel.trace = options.trace;
    pod.kernel.rewrites = !options.no_rewriting;
    let (namespace, root) = pod.mount(root).map_err(|errno| failed(&name, &errno))?;
    for (fd, (_, place)) in binds.into_iter().zip(&options.binds) {
        let share = HostDirectory::new(fd, Sharing::Change).and_then(|share| {
            let at = pod.walk(&namespace, &root, place)?;
            namespace.mount(Mount::new(share, b"host", MS_NODEV), at)
        });
        share.map_err(|errno| failed(&String::from_utf8_lossy(place), &errno))?;
    }
    let console = match options.terminal {
        true => Some(pod.console(&namespace, &root, true).map_err(|errno| failed("a terminal", &errno))?),
        false => None,
    };
    let files = match &console {
        Some(console) => console.streams(),
        None => pod.streams([a, b, c]),
    };
    let files = files.map_err(|errno| failed("standard streams", &errno))?;
    let (uid, gid) = options.user;
    let credentials = if uid == 0 { Credentials::root() } else { Credentials::new(uid, gid, 0) };
    let limits = default_limits();
    let rights = Rights::of(&credentials);
    let (seccomp, umask, oom_score_adj) = (Seccomp::Off, USUAL_UMASK, 0);
    let cwd = root.clone();
    let around =
        Surroundings { namespace, cwd, root, credentials, rights, files, limits, seccomp, umask, oom_score_adj };
    let command = options.command[0].clone();
    let program = Program { path: command.clone(), arguments: options.command, environment: options.environment };
    let pid = pod.kernel.spawn(0, 0, around, program).map_err(|errno| {
        let code = if errno == drupe_appkernel_abi::Errno::NOENT { 127 } else { 126 };
        (code, format!("{}: {errno}", String::from_utf8_lossy(&command)))
    })?;
    let attached = console.map(|console| Attached::new(&pod, console, pid));
    let exit = serve(&mut pod, pid, attached.transpose().map_err(|error| failed("the terminal", &error))?)?;
    if options.verbose {
        let missed: Vec<String> = pod.kernel.missed().map(|number| number.to_string()).collect();
        eprintln!("drupe-appkernel: calls asked for that are not there: {}", missed.join(" "));
    }
    Ok(exit)
}

/// This process's terminal and the pod's, one behind the other.
struct Attached {
    console: Arc<Console>,
    resizes: OwnedFd,
    _watch: WaitQueue,
    _raw: Option<Raw>,
}

impl Attached {
    fn new(pod: &Pod, console: Arc<Console>, pid: u32) -> std::io::Result<Attached> {
        let (resizes, watch) = (terminal::resizes()?, WaitQueue::new());
        pod.machine.watched.add(resizes.as_raw_fd(), &watch);
        console.lead(pid);
        let raw = Raw::new(0);
        console.attach(Some(files::inherited(0)?), Some(files::inherited(1)?));
        let attached = Attached { console, resizes, _watch: watch, _raw: raw };
        attached.resize();
        Ok(attached)
    }

    fn resize(&self) {
        if let Some((rows, columns)) = terminal::window_size(0) {
            self.console.resize(rows, columns);
        }
    }
}

fn serve(pod: &mut Pod, pid: u32, attached: Option<Attached>) -> Result<u8, (u8, String)> {
    loop {
        if let Some(attached) = attached.as_ref().filter(|a| terminal::take_resize(a.resizes.as_fd())) {
            attached.resize();
        }
        if let Some(exit) = pod.kernel.take_ended().remove(&pid) {
            while attached.as_ref().is_some_and(|attached| !attached.console.is_drained()) {
                pod.kernel.step(None).map_err(|errno| (1, format!("the terminal is lost: {errno}")))?;
            }
            return Ok(match exit {
                Exit::Code(code) => code,
                Exit::Signal(signal) => 128 + signal as u8,
            });
        }
        pod.kernel.step(None).map_err(|errno| (1, format!("the kernel cannot go on: {errno}")))?;
    }
}
