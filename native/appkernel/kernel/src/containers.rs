//! The containers of the pod and their tasks: first processes and those that came from outside later. How a task ended is
//! kept until whoever asked for it has it forgotten.

mod snapshots;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::Errno;
use drupe_appkernel_core::pids::seen;
use drupe_appkernel_core::seccomp::bpf::Program as Filter;
use drupe_appkernel_core::seccomp::Seccomp;
use drupe_appkernel_core::task::{Exit, Pid};
use drupe_appkernel_core::Surroundings;
use drupe_appkernel_hostsys::files;
use drupe_appkernel_vfs::{ClockId, FdTable, MountNamespace, OpenFile, Path};
use drupe_packets::{errno_name, Failure, Outcome};
use serde_json::{json, Value};

use crate::machine::errno;
use crate::pod::Pod;
use crate::settings::{Settings, Tree};
use crate::terminal::Console;
use crate::tree::{failed, Builder, Root};

pub use snapshots::{refused, SavedContainer, Successor};

/// More would be a caller that never lets go.
const MAX_CONTAINERS: usize = 1024;
const MAX_TASKS: usize = 16_384;

/// A container's id, and that of a process from outside in it; "": its first.
pub type Key = (String, String);

/// How a task ended, and when (Unix time).
#[derive(Clone, Copy)]
struct Ended {
    exit: Exit,
    at: f64,
}

struct Task {
    pid: Pid,
    started_at: f64,
    ended: Option<Ended>,
    console: Option<Arc<Console>>,
    /// Its standard streams, while somebody has them open.
    streams: [Weak<OpenFile>; 3],
}

/// Its end is told once its terminal has shown everything, or nobody has looked for so long.
struct Ending {
    key: Key,
    latest_ns: u64,
}

const SHOWN_WITHIN_NS: u64 = 5_000_000_000;
/// How often terminals of what has ended are looked at.
const LOOK_AGAIN_NS: u64 = 20_000_000;

struct Container {
    number: u32,
    /// Its numbers of processes (`drupe_appkernel_core::pids`).
    view: u32,
    namespace: Arc<MountNamespace>,
    root: Path,
    /// What all that is run in it from outside begins with.
    seccomp: Seccomp,
}

#[derive(Default)]
pub struct Containers {
    containers: HashMap<String, Container>,
    tasks: BTreeMap<Key, Task>,
    by_pid: HashMap<Pid, Key>,
    ending: Vec<Ending>,
    last: u32,
}

fn unix_seconds(pod: &Pod) -> f64 {
    pod.now(ClockId::Realtime).since_epoch().as_secs_f64()
}

pub fn monotonic_ns(pod: &Pod) -> u64 {
    pod.now(ClockId::Monotonic).since_epoch().as_nanos() as u64
}

/// As of a shell: the code, or 128 and the signal.
fn code_of(exit: Exit) -> (i32, i32) {
    match exit {
        Exit::Code(code) => (code.into(), 0),
        Exit::Signal(signal) => (128 + signal, signal),
    }
}

/// The program could not be run: its error by its own name.
fn not_run(program: &[u8], errno: Errno) -> Failure {
    Failure::new(&errno_name(errno.0), format!("cannot run {}", String::from_utf8_lossy(program)))
}

impl Task {
    /// waits: it was not told to begin.
    fn told(&self, key: &Key, waits: bool) -> Value {
        let mut told = json!({"container": key.0, "exec": key.1, "pid": seen(self.pid), "started_at": self.started_at});
        // While its terminal shows what is left it counts as running.
        if let (Some(ended), None) = (self.ended, &self.console) {
            let (code, signal) = code_of(ended.exit);
            told["exit"] = json!({"code": code, "signal": signal, "at": ended.at});
        }
        if waits {
            told["waits"] = json!(true);
        }
        told
    }
}

/// Descriptors by name.
pub type Descriptors = HashMap<String, OwnedFd>;

fn take_fd(fds: &mut Descriptors, name: &str) -> Outcome<OwnedFd> {
    fds.remove(name).ok_or_else(|| Failure::new("EBADF", format!("no descriptor {name:?} was sent")))
}

fn take_streams(fds: &mut Descriptors) -> Outcome<[OwnedFd; 3]> {
    Ok([take_fd(fds, "stdin")?, take_fd(fds, "stdout")?, take_fd(fds, "stderr")?])
}

/// What all that is run in a container begins with.
fn first_filter(pod: &Pod, program: Option<Filter>) -> Outcome<Seccomp> {
    let made = program.map(|program| pod.kernel.filter(program)).transpose();
    Ok(made.map_err(|errno| failed("the filter of system calls", errno))?.unwrap_or_default())
}

impl Containers {
    /// Make a container and run its first process; its pid.
    pub fn start(
        &mut self,
        pod: &mut Pod,
        id: &str,
        settings: Settings,
        tree: Tree,
        mut fds: Descriptors,
    ) -> Outcome<Pid> {
        if self.containers.contains_key(id) {
            return Err(Failure::new("EEXIST", format!("container {id:?} exists")));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(Failure::new("EUSERS", format!("{MAX_CONTAINERS} containers are there already")));
        }
        let seccomp = first_filter(pod, tree.filter)?;
        let root = match tree.root {
            Some(place) => Root::Shared(place),
            None => Root::Image(take_fd(&mut fds, "root")?),
        };
        let builder = Builder::new(pod, root)?;
        builder.mount_all(tree.mounts)?;
        builder.make_devices(&tree.devices)?;
        builder.make_directory(&settings.cwd)?;
        builder.cover(&tree.masked, &tree.protected)?;
        let (namespace, root) = builder.finish(tree.read_only);
        self.last += 1;
        let fresh =
            || pod.kernel.fresh_view().ok_or_else(|| Failure::new("EUSERS", "there are too many PID namespaces"));
        let view = if tree.share_pid { 0 } else { fresh()? };
        let container = Container { number: self.last, view, namespace, root, seccomp };
        pod.kernel.bound_tasks(Some(self.last), tree.tasks);
        let cgroup = fds.remove("cgroup").map(|cgroup| place(pod, self.last, &cgroup)).transpose();
        if tree.waits {
            pod.kernel.hold_first(self.last, None);
        }
        let begun = cgroup.and_then(|_| run(pod, &container, settings, &mut fds, true));
        let (pid, console, streams) = begun.inspect_err(|_| unbound(pod, container.number))?;
        if tree.waits {
            pod.kernel.hold_first(self.last, Some(pid));
        }
        self.containers.insert(id.into(), container);
        self.know(pod, (id.into(), String::new()), pid, console, streams);
        Ok(pid)
    }

    /// Run a further process in a container; its pid.
    pub fn exec(&mut self, pod: &mut Pod, key: Key, settings: Settings, mut fds: Descriptors) -> Outcome<Pid> {
        if key.1.is_empty() || self.tasks.contains_key(&key) {
            return Err(Failure::new("EEXIST", format!("task {key:?} exists")));
        }
        if self.tasks.len() >= MAX_TASKS {
            return Err(Failure::new("EUSERS", format!("{MAX_TASKS} tasks are there already")));
        }
        let container = self.running(pod, &key.0)?;
        let (pid, console, streams) = run(pod, container, settings, &mut fds, false)?;
        self.know(pod, key, pid, console, streams);
        Ok(pid)
    }

    fn know(&mut self, pod: &Pod, key: Key, pid: Pid, console: Option<Arc<Console>>, streams: [Weak<OpenFile>; 3]) {
        self.by_pid.insert(pid, key.clone());
        self.tasks.insert(key, Task { pid, started_at: unix_seconds(pod), ended: None, console, streams });
    }

    fn container(&self, id: &str) -> Outcome<&Container> {
        self.containers.get(id).ok_or_else(|| Failure::new("ENOENT", format!("no container {id:?}")))
    }

    fn running(&self, pod: &Pod, id: &str) -> Outcome<&Container> {
        let container = self.container(id)?;
        match pod.kernel.runs(container.number) {
            true => Ok(container),
            false => Err(Failure::new("EBUSY", format!("container {id:?} has ended"))),
        }
    }

    fn live(&self, key: &Key) -> Outcome<Pid> {
        let task = self.tasks.get(key).filter(|task| task.ended.is_none());
        task.map(|task| task.pid).ok_or_else(|| Failure::new("ESRCH", format!("task {key:?} has ended")))
    }

    /// Take what has ended from the kernel; the events to tell.
    pub fn take_ended(&mut self, pod: &mut Pod) -> Vec<Value> {
        let at = unix_seconds(pod);
        let latest_ns = monotonic_ns(pod) + SHOWN_WITHIN_NS;
        for (pid, exit) in pod.kernel.take_ended() {
            let Some(key) = self.by_pid.remove(&pid) else { continue };
            if let Some(task) = self.tasks.get_mut(&key) {
                task.ended = Some(Ended { exit, at });
                self.ending.push(Ending { key, latest_ns });
            }
        }
        self.take_shown(pod)
    }

    /// Those of which all output is out.
    fn take_shown(&mut self, pod: &Pod) -> Vec<Value> {
        let now_ns = monotonic_ns(pod);
        let tasks = &self.tasks;
        let waits = |ending: &Ending| {
            let console = tasks.get(&ending.key).and_then(|task| task.console.as_ref());
            now_ns < ending.latest_ns && console.is_some_and(|console| !console.is_drained())
        };
        let (waiting, shown) = std::mem::take(&mut self.ending).into_iter().partition(waits);
        self.ending = waiting;
        shown.into_iter().filter_map(|ending: Ending| self.tell(&ending.key)).collect()
    }

    fn tell(&mut self, key: &Key) -> Option<Value> {
        let task = self.tasks.get_mut(key)?;
        task.console = None;
        let mut event = task.told(key, false);
        event["event"] = json!("exit");
        Some(event)
    }

    /// When to look again at what has ended; None: there is no need.
    pub fn look_again_ns(&self) -> Option<u64> {
        (!self.ending.is_empty()).then_some(LOOK_AGAIN_NS)
    }

    fn console(&self, key: &Key) -> Outcome<&Arc<Console>> {
        self.live(key)?;
        let console = self.tasks.get(key).and_then(|task| task.console.as_ref());
        console.ok_or_else(|| Failure::new("ENOTTY", format!("task {key:?} has no terminal")))
    }

    pub fn resize(&self, key: &Key, rows: u16, columns: u16) -> Outcome<()> {
        self.console(key).map(|console| console.resize(rows, columns))
    }

    /// The end of what is typed.
    pub fn end_input(&self, key: &Key) -> Outcome<()> {
        self.console(key).map(|console| console.end_input())
    }

    /// Tasks after this one, as many as `room` bytes take; whether there are more.
    pub fn list(&self, pod: &Pod, after: &Key, mut room: usize) -> (Vec<Value>, bool) {
        let mut told = Vec::new();
        for (key, task) in self.tasks.range((std::ops::Bound::Excluded(after.clone()), std::ops::Bound::Unbounded)) {
            let one = task.told(key, pod.kernel.waits_to_begin(task.pid));
            let size = one.to_string().len() + 1;
            if size > room && !told.is_empty() {
                return (told, true);
            }
            room = room.saturating_sub(size);
            told.push(one);
        }
        (told, false)
    }

    /// Move a container's processes, now and later, into a cgroup of the host's, by the file that takes them.
    pub fn place(&self, pod: &mut Pod, id: &str, mut fds: Descriptors) -> Outcome<()> {
        let number = self.container(id)?.number;
        place(pod, number, &take_fd(&mut fds, "cgroup")?)
    }

    /// Have programs of a container see this as the memory that there is; 0: the pod's.
    pub fn bound_memory(&self, pod: &mut Pod, id: &str, bytes: u64) -> Outcome<()> {
        pod.kernel.bound_memory(self.container(id)?.number, Some(bytes).filter(|bytes| *bytes > 0));
        Ok(())
    }

    /// Have programs of a container run for so long (first) in each period (second) at most, in microseconds; None: as they like.
    pub fn bound_time(&self, pod: &mut Pod, id: &str, quota: Option<(u64, u64)>) -> Outcome<()> {
        let ns = |us: u64| us.saturating_mul(1000);
        pod.kernel.bound_time(self.container(id)?.number, quota.map(|(quota, period)| (ns(quota), ns(period))));
        Ok(())
    }

    /// Have all of a container stand still until it is to go on. ETIMEDOUT: somebody does not.
    pub fn rest(&self, pod: &mut Pod, id: &str) -> Outcome<()> {
        const WITHIN_NS: u64 = 5_000_000_000;
        let number = self.container(id)?.number;
        let latest_ns = monotonic_ns(pod) + WITHIN_NS;
        pod.kernel.rest_container(number, latest_ns).map_err(|pid| {
            Failure::new("ETIMEDOUT", format!("process {} of container {id:?} does not come to rest", seen(pid)))
        })
    }

    /// Have a container, or with "" the pod, have this many tasks at most (None: any number).
    pub fn bound_tasks(&self, pod: &mut Pod, id: &str, tasks: Option<u64>) -> Outcome<()> {
        let of = if id.is_empty() { None } else { Some(self.container(id)?.number) };
        pod.kernel.bound_tasks(of, tasks);
        Ok(())
    }

    /// Signal one process (`family`: with all that descend from it), or everything in its container.
    pub fn kill(&mut self, pod: &mut Pod, key: &Key, signal: i32, reach: Reach) -> Outcome<()> {
        if !(0..=64).contains(&signal) {
            return Err(Failure::invalid(format!("no signal {signal}")));
        }
        let pid = self.live(key)?;
        let sent = match reach {
            Reach::One => pod.kernel.signal_process(pid, signal),
            Reach::Family => pod.kernel.signal_family(pid, signal),
            Reach::All => {
                let number = self.container(&key.0)?.number;
                pod.kernel.signal_container(number, signal)
            }
        };
        sent.map_err(|errno| Failure::new(&errno_name(errno.0), format!("cannot signal {key:?}")))
    }

    /// Processes of a container above this pid, as many as `room` bytes take; whether there are more.
    pub fn processes(&self, pod: &Pod, id: &str, after: Pid, mut room: usize) -> Outcome<(Vec<Value>, bool)> {
        const COMMAND_BYTES: usize = 512;
        let number = self.container(id)?.number;
        let now_ns = monotonic_ns(pod);
        let now = unix_seconds(pod);
        let mut told = Vec::new();
        for one in pod.kernel.seen(number).into_iter().filter(|one| one.pid > after) {
            let command = &one.command[..one.command.len().min(COMMAND_BYTES)];
            let value = json!({
                "pid": one.pid, "ppid": one.parent, "uid": one.uid, "state": char::from(one.state).to_string(),
                "threads": one.threads, "cpu_ns": one.cpu_ns, "rss_bytes": one.resident_bytes,
                "started_at": now - now_ns.saturating_sub(one.started_ns) as f64 / 1e9,
                "command": String::from_utf8_lossy(command),
            });
            let size = value.to_string().len() + 1;
            if size > room && !told.is_empty() {
                return Ok((told, true));
            }
            room = room.saturating_sub(size);
            told.push(value);
        }
        Ok((told, false))
    }

    /// Let go of how an exec ended.
    pub fn forget(&mut self, key: &Key) -> Outcome<()> {
        match self.tasks.get(key) {
            Some(task) if task.ended.is_none() => Err(Failure::new("EBUSY", format!("task {key:?} has not ended"))),
            _ if key.1.is_empty() => Err(Failure::invalid("a container is deleted, not forgotten")),
            _ => {
                self.tasks.remove(key);
                Ok(())
            }
        }
    }

    /// Kill what lives of a container and let go of it. One that is not there is fine.
    pub fn delete(&mut self, pod: &mut Pod, id: &str) {
        let Some(container) = self.containers.remove(id) else { return };
        let _ended = pod.kernel.signal_container(container.number, libc::SIGKILL);
        unbound(pod, container.number);
        let of_it: Vec<Key> = self.tasks.keys().filter(|key| key.0 == id).cloned().collect();
        for key in of_it {
            if let Some(task) = self.tasks.remove(&key) {
                self.by_pid.remove(&task.pid);
            }
        }
    }
}

fn place(pod: &mut Pod, container: u32, cgroup: &OwnedFd) -> Outcome<()> {
    let mut take = |process: i32| {
        let written = files::write_at(cgroup.as_fd(), 0, process.to_string().as_bytes());
        written.map(drop).map_err(errno)
    };
    pod.kernel.place(container, &mut take).map_err(|errno| match errno {
        Errno::NOTSUP => failed("this platform has no memory limit for one container of several: limit the pod", errno),
        errno => failed("the cgroup", errno),
    })
}

/// Nothing holds for a container any more.
fn unbound(pod: &mut Pod, container: u32) {
    pod.kernel.bound_tasks(Some(container), None);
    pod.kernel.bound_memory(container, None);
    pod.kernel.unplace(container);
    pod.kernel.forget_rest(container);
}

/// Whom a signal is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    One,
    Family,
    All,
}

/// Where its input comes from and its output goes: three descriptors, or a terminal between two of them.
fn streams(
    pod: &Pod,
    container: &Container,
    terminal: Option<(u16, u16)>,
    fds: &mut Descriptors,
    first: bool,
) -> Outcome<(FdTable, Option<Arc<Console>>)> {
    let [stdin, stdout, stderr] = take_streams(fds)?;
    let Some((rows, columns)) = terminal else {
        let files = pod.streams([stdin, stdout, stderr]).map_err(|errno| failed("standard streams", errno))?;
        return Ok((files, None));
    };
    let made = |errno| failed("a terminal", errno);
    let console = pod.console(&container.namespace, &container.root, first).map_err(made)?;
    if rows > 0 && columns > 0 {
        console.resize(rows, columns);
    }
    let files = console.streams().map_err(made)?;
    console.attach(Some(stdin), Some(stdout));
    Ok((files, Some(console)))
}

/// A first process or a further one, its terminal, and its standard streams while it has them.
type Begun = (Pid, Option<Arc<Console>>, [Weak<OpenFile>; 3]);

fn run(pod: &mut Pod, container: &Container, settings: Settings, fds: &mut Descriptors, first: bool) -> Outcome<Begun> {
    let (files, console) = streams(pod, container, settings.terminal, fds, first)?;
    let open_streams = [0, 1, 2].map(|fd| files.get(fd).map(Arc::downgrade).unwrap_or_default());
    let namespace = Arc::clone(&container.namespace);
    let (root, seccomp) = (container.root.clone(), container.seccomp.clone());
    let cwd = pod.walk(&namespace, &root, &settings.cwd);
    let cwd = cwd.map_err(|errno| failed(&format!("cwd {}", String::from_utf8_lossy(&settings.cwd)), errno))?;
    let Settings { program, credentials, rights, limits, umask, oom_score_adj, .. } = settings;
    if let Some(console) = &console {
        console.give_to(credentials.uid).map_err(|errno| failed("a terminal's owner", errno))?;
    }
    let name = program.path.clone();
    let around =
        Surroundings { namespace, root, cwd, credentials, rights, files, limits, seccomp, umask, oom_score_adj };
    let begun = match first {
        true => pod.kernel.spawn(container.number, container.view, around, program),
        false => pod.kernel.enter(container.number, around, program),
    };
    let pid = begun.map_err(|errno| not_run(&name, errno))?;
    console.iter().for_each(|console| console.lead(pid));
    Ok((pid, console, open_streams))
}
