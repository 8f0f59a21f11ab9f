//! crun, the OCI runtime of the guest.

use crate::agent::Agent;
use crate::cgroup::Cgroup;
use crate::children;
use crate::fault::{fault, Code, During, Fault, Reply};
use crate::streams::Streams;
use rustix::fs::{fcntl_add_seals, memfd_create, MemfdFlags, SealFlags};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

static COUNT: AtomicU64 = AtomicU64::new(0);
static SEALED: OnceLock<Option<OwnedFd>> = OnceLock::new();
const PROGRAM: &str = "crun";
const PLACES: [&str; 2] = ["/usr/bin/crun", "/usr/sbin/crun"];

/// What to run. crun protects its file from the container by running itself again from a copy, which costs half of a
/// call: a sealed copy that is made once needs no other (cloned_binary.c of runc and crun).
fn program() -> String {
    match SEALED.get_or_init(|| sealed().ok()) {
        Some(file) => format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()),
        None => PROGRAM.into(),
    }
}

fn sealed() -> std::io::Result<OwnedFd> {
    let path = PLACES.iter().find(|path| Path::new(path).exists()).ok_or(ErrorKind::NotFound)?;
    let file = memfd_create(c"crun", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = std::fs::File::from(file);
    std::io::copy(&mut std::fs::File::open(path)?, &mut copy)?;
    fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(copy.into())
}

/// The files of one call of crun, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(agent: &Agent) -> Reply<Self> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = agent.place.run.join(format!("calls/{number}"));
        std::fs::create_dir_all(&path).during(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What crun makes: a container from a bundle, or a process in one.
pub enum What<'a> {
    Container { bundle: &'a Path },
    Process { spec: &'a [u8] },
}

/// `crun create` or `crun exec`: the pid of what is made, whose streams are `streams`.
pub fn make(agent: &Agent, id: &str, what: &What, terminal: bool, wanted: [bool; 3], streams: &Streams) -> Reply<u32> {
    let scratch = Scratch::new(agent)?;
    let mut words = match what {
        What::Container { bundle } => words(&["create", "--bundle", &bundle.to_string_lossy()]),
        What::Process { spec } => {
            std::fs::write(scratch.path("process.json"), spec).during(|| "cannot write process.json")?;
            words(&["exec", "--detach", "--process", &scratch.path("process.json")])
        }
    };
    words.extend(["--pid-file".into(), scratch.path("pid")]);
    let console = terminal.then(|| UnixListener::bind(scratch.path("tty"))).transpose();
    let console = console.during(|| "cannot listen for the terminal")?;
    if console.is_some() {
        words.extend(["--console-socket".into(), scratch.path("tty")]);
    }
    words.push(id.into());
    let stdio = streams.connect(if terminal { [false; 3] } else { wanted })?;
    run(agent, &scratch, &words, &stdio)?;
    if let Some(console) = console {
        streams.attach(receive_terminal(&console)?)?;
    }
    let pid = std::fs::read_to_string(scratch.path("pid")).during(|| "cannot read the pid that crun wrote")?;
    pid.trim().parse().map_err(|_| fault(Code::Internal, format!("crun wrote the pid {pid:?}")))
}

/// Any other command of crun; nothing comes from it but success or an error.
pub fn command(agent: &Agent, arguments: &[&str]) -> Reply<()> {
    let scratch = Scratch::new(agent)?;
    run(agent, &scratch, &words(arguments), &Streams::default().connect([false; 3])?)
}

/// What `crun start` does, without the time that it takes to load it (ten times that of all else on an emulated
/// processor): the container's first process waits for a byte in a pipe. With hooks, or where there is no such pipe,
/// crun does it itself.
pub fn start(agent: &Agent, id: &str, bundle: &Path) -> Reply<()> {
    let gate = state(agent, id).join("exec.fifo");
    let open = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&gate);
    match (has_hooks(bundle), open()) {
        (false, Ok(mut pipe)) => {
            let let_go = std::fs::remove_file(&gate).and_then(|()| pipe.write_all(&[0]));
            let_go.during(|| "cannot let the container go")
        }
        _ => command(agent, &["start", id]),
    }
}

/// What `crun delete --force` does: ends all that is left in the cgroup, and removes that and what crun wrote down.
pub fn delete(agent: &Agent, id: &str, bundle: &Path, cgroup: &Cgroup) -> Reply<()> {
    if has_hooks(bundle) {
        return command(agent, &["delete", "--force", id]);
    }
    cgroup.kill();
    cgroup.await_event("populated", false, None)?;
    cgroup.remove().during(|| format!("cannot remove the cgroup of {id}"))?;
    match std::fs::remove_dir_all(state(agent, id)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).during(|| "cannot remove the container's state")
        }
        _ => Ok(()),
    }
}

/// Where crun keeps what it knows of a container.
fn state(agent: &Agent, id: &str) -> PathBuf {
    agent.place.run.join("crun").join(id)
}

/// Whether config.json asks for programs around a start; also where it cannot be read.
fn has_hooks(bundle: &Path) -> bool {
    let text = std::fs::read(bundle.join("config.json")).unwrap_or_default();
    let config: Option<serde_json::Value> = serde_json::from_slice(&text).ok();
    config.is_none_or(|config| config["hooks"].as_object().is_some_and(|hooks| !hooks.is_empty()))
}

/// `crun update` with the LinuxResources of the runtime specification.
pub fn update(agent: &Agent, id: &str, resources: &[u8]) -> Reply<()> {
    let scratch = Scratch::new(agent)?;
    let file = scratch.path("resources.json");
    std::fs::write(&file, resources).during(|| "cannot write resources.json")?;
    command(agent, &["update", "--resources", &file, id])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn run(agent: &Agent, scratch: &Scratch, arguments: &[String], stdio: &[OwnedFd; 3]) -> Reply<()> {
    let (root, log) = (agent.place.run.join("crun"), scratch.path("log"));
    let mut argv = words(&[&program(), "--root", &root.to_string_lossy(), "--cgroup-manager", "cgroupfs"]);
    argv.extend(words(&["--log-format", "json", "--log", &log]));
    argv.extend_from_slice(arguments);
    let stdio = [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()];
    let pid = children::spawn(agent, &argv, stdio).during(|| "cannot start crun")?;
    match children::wait(agent, pid).status {
        0 => Ok(()),
        status => Err(failure(&log, &arguments[0], status)),
    }
}

/// crun's own words, from its log.
fn failure(log: &str, verb: &str, status: u32) -> Fault {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let entries = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let errors = entries.filter(|entry| entry["level"] == "error");
    let words: Vec<String> = errors.filter_map(|entry| Some(entry["msg"].as_str()?.to_string())).collect();
    match words.is_empty() {
        true => fault(Code::Internal, format!("crun {verb} failed with status {status}")),
        false => fault(Code::Internal, format!("crun {verb}: {}", words.join("; "))),
    }
}

fn receive_terminal(console: &UnixListener) -> Reply<OwnedFd> {
    let (socket, _) = console.accept().during(|| "cannot take the terminal")?;
    let received = drupe_sys::socket::receive(&socket, &mut [0; 256]).during(|| "cannot take the terminal")?;
    received.fds.into_iter().next().ok_or_else(|| fault(Code::Internal, "crun sent no terminal"))
}
