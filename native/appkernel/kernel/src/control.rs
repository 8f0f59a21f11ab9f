//! The control socket: packets as of the keeper's (docs/appkernel.md). Whoever connects may ask; any number, one after the
//! other or at once, and none is needed: what happens meanwhile is kept until it is asked for.

mod snapshots;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use drupe_appkernel_core::pids::seen;
use drupe_appkernel_hostsys::files;
use drupe_appkernel_vfs::wait::{IN, OUT};
use drupe_appkernel_vfs::{Events, Registration, WaitQueue, Wake};
use drupe_packets::{errno_name, reply, Failure, Fds, Fields, Outcome, Pairs, Reply, MAX_PACKET};
use drupe_sys::socket;
use serde_json::{json, Value};

use crate::containers::{Containers, Descriptors, Key, Reach};
use crate::pod::Pod;
use crate::settings::{Settings, Tree};
use crate::streams::Watched;

const PROTOCOL: i64 = 1;
/// What one answer lists at most, with room for the rest of the packet.
const LIST_BYTES: usize = MAX_PACKET - 16 * 1024;
/// Packets that may wait for a slow client before its connection is closed.
const MAX_QUEUED: usize = 4096;
const MAX_CONNECTIONS: usize = 64;
/// Requests of one connection that are served before the workload has its turn.
const TURN: usize = 16;
/// The longest description of a process; execve(2) takes less.
const MAX_CONFIG_BYTES: usize = 8 << 20;

/// Set when a descriptor of the control socket has something.
#[derive(Default)]
struct Rung(AtomicBool);

impl Wake for Rung {
    fn wake(&self, _: Events) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A descriptor in the pod's poller.
struct Watch {
    fd: OwnedFd,
    word: u64,
    watched: Arc<Watched>,
    _ringing: Registration,
}

impl Watch {
    fn new(fd: OwnedFd, watched: &Arc<Watched>, rung: &Arc<Rung>) -> io::Result<Watch> {
        let queue = WaitQueue::new();
        let ringing = queue.register(IN | OUT, rung.clone());
        let word = watched.add(fd.as_raw_fd(), &queue);
        let word = word.ok_or_else(|| io::Error::from_raw_os_error(libc::EPERM))?;
        rung.wake(IN); // what came before
        Ok(Watch { fd, word, watched: Arc::clone(watched), _ringing: ringing })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watched.remove(self.fd.as_raw_fd(), self.word);
    }
}

struct Connection {
    watch: Watch,
    subscribed: bool,
    queue: VecDeque<Vec<u8>>,
}

pub struct Control {
    listener: Watch,
    rung: Arc<Rung>,
    watched: Arc<Watched>,
    connections: HashMap<u64, Connection>,
    containers: Containers,
    /// Whose connection has everything rest.
    saver: Option<u64>,
    last: u64,
    buffer: Vec<u8>,
    pub is_over: bool,
}

impl Control {
    /// Serve a listening socket that does not block.
    pub fn new(listener: OwnedFd, pod: &Pod) -> io::Result<Control> {
        let rung = Arc::new(Rung::default());
        let watched = Arc::clone(&pod.machine.watched);
        Ok(Control {
            listener: Watch::new(listener, &watched, &rung)?,
            rung,
            watched,
            connections: HashMap::new(),
            containers: Containers::default(),
            saver: None,
            last: 0,
            buffer: vec![0; MAX_PACKET + 1],
            is_over: false,
        })
    }

    /// When `turn` has something to do though nothing happens; None: never.
    pub fn again_ns(&self, pod: &mut Pod) -> Option<u64> {
        let governed_ns = pod.kernel.govern();
        match self.rung.0.load(Ordering::Relaxed) {
            true => Some(0),
            false => [self.containers.look_again_ns(), governed_ns].into_iter().flatten().min(),
        }
    }

    /// Serve what has come, and tell what has ended.
    pub fn turn(&mut self, pod: &mut Pod) {
        if self.rung.0.swap(false, Ordering::Relaxed) {
            self.accept();
            let ids: Vec<u64> = self.connections.keys().copied().collect();
            for id in ids {
                self.flush(id);
                self.serve(pod, id);
            }
            self.release_abandoned(pod);
        }
        if pod.kernel.has_ended() || self.containers.look_again_ns().is_some() {
            for event in self.containers.take_ended(pod) {
                self.publish(&event);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok(fd) = socket::accept(&self.listener.fd) {
            let is_root = socket::peer_uid(&fd).is_ok_and(|uid| uid == 0);
            if !is_root || self.connections.len() >= MAX_CONNECTIONS {
                continue;
            }
            if let Ok(watch) = Watch::new(fd, &self.watched, &self.rung) {
                self.last += 1;
                self.connections.insert(self.last, Connection { watch, subscribed: false, queue: VecDeque::new() });
            }
        }
    }

    fn serve(&mut self, pod: &mut Pod, id: u64) {
        for _ in 0..TURN {
            let Some(connection) = self.connections.get(&id) else { return };
            let received = match socket::receive(&connection.watch.fd, &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(received) if received.length > 0 || !received.fds.is_empty() => received,
                _ => return drop(self.connections.remove(&id)),
            };
            let lost = received.fds_lost;
            let too_long = received.truncated || received.length > MAX_PACKET;
            let packet = if too_long { &[][..] } else { &self.buffer[..received.length] };
            let (fields, request) = parse(packet, too_long);
            let result = fields.and_then(|fields| match lost {
                true => Err(Failure::new("EMFILE", "there are no free descriptors for those sent")),
                false => self.request(pod, id, fields, received.fds),
            });
            self.answer(id, &request, result);
        }
        self.rung.wake(IN); // there may be more; the workload has its turn first
    }

    fn answer(&mut self, id: u64, request: &Value, result: Outcome<Reply>) {
        let packet = match result {
            Ok(value) => json!({"id": request, "ok": value.map_or(Value::Null, |(value, _)| value)}),
            Err(failure) => json!({"id": request, "error": failure.to_json()}),
        };
        self.send(id, &packet);
    }

    fn publish(&mut self, event: &Value) {
        let ids = self.connections.iter().filter(|(_, connection)| connection.subscribed).map(|(id, _)| *id);
        for id in ids.collect::<Vec<_>>() {
            self.send(id, event);
        }
    }

    fn send(&mut self, id: u64, packet: &Value) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.queue.push_back(packet.to_string().into_bytes());
        if connection.queue.len() > MAX_QUEUED {
            return drop(self.connections.remove(&id));
        }
        self.flush(id);
    }

    fn flush(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        while let Some(packet) = connection.queue.front() {
            match socket::send(&connection.watch.fd, packet, &[]) {
                Ok(()) => drop(connection.queue.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return drop(self.connections.remove(&id)),
            }
        }
    }

    fn request(&mut self, pod: &mut Pod, id: u64, mut fields: Fields, fds: Vec<OwnedFd>) -> Outcome<Reply> {
        let fds = Fds::named(fields.take("fds")?.unwrap_or_default(), fds)?;
        let op: String = fields.need("op")?;
        match op.as_str() {
            "start" => return self.start(pod, fields, fds),
            "exec" => return self.exec(pod, fields, fds),
            "save" => return self.save(pod, id, fields, fds),
            "restore" => return self.restore(pod, fields, fds),
            "place" => return self.place(pod, fields, fds),
            _ => fds.finish()?,
        }
        match op.as_str() {
            "hello" => hello(fields),
            "subscribe" => self.subscribe(id, fields),
            "list" => self.list(pod, fields),
            "kill" => self.kill(pod, fields),
            "resize" => self.resize(fields),
            "end_input" => self.end_input(fields),
            "processes" => self.processes(pod, fields),
            "forget" => self.forget(fields),
            "delete" => self.delete(pod, fields),
            "rest" => self.rest(pod, fields),
            "go_on" => self.go_on(pod, fields),
            "sysctls" => sysctls(pod, fields),
            "limits" => self.limits(pod, fields),
            "hostname" => hostname(pod, fields),
            "shutdown" => self.shutdown(fields),
            _ => Err(Failure::new("ENOSYS", format!("unknown op {op:?}"))),
        }
    }

    fn subscribe(&mut self, id: u64, fields: Fields) -> Outcome<Reply> {
        fields.finish()?;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.subscribed = true;
        }
        reply(json!({}))
    }

    fn start(&mut self, pod: &mut Pod, mut fields: Fields, fds: Fds) -> Outcome<Reply> {
        let id: String = fields.need("container")?;
        let mut fds: Descriptors = fds.0.into_iter().collect();
        let mut config = take_config(fields, &mut fds)?;
        let tree = Tree::take(&mut config)?;
        let settings = Settings::take(&mut config)?;
        config.finish()?;
        let pid = self.containers.start(pod, &id, settings, tree, fds)?;
        reply(json!({"pid": seen(pid)}))
    }

    fn exec(&mut self, pod: &mut Pod, mut fields: Fields, fds: Fds) -> Outcome<Reply> {
        let key = (fields.need("container")?, fields.need("exec")?);
        let mut fds: Descriptors = fds.0.into_iter().collect();
        let mut config = take_config(fields, &mut fds)?;
        let settings = Settings::take(&mut config)?;
        config.finish()?;
        let pid = self.containers.exec(pod, key, settings, fds)?;
        reply(json!({"pid": seen(pid)}))
    }

    fn place(&self, pod: &mut Pod, mut fields: Fields, fds: Fds) -> Outcome<Reply> {
        let id: String = fields.need("container")?;
        fields.finish()?;
        self.containers.place(pod, &id, fds.0.into_iter().collect())?;
        reply(json!({}))
    }

    fn list(&self, pod: &Pod, mut fields: Fields) -> Outcome<Reply> {
        let after = (fields.take("container")?.unwrap_or_default(), fields.take("exec")?.unwrap_or_default());
        fields.finish()?;
        let (tasks, more) = self.containers.list(pod, &after, LIST_BYTES);
        reply(json!({"tasks": tasks, "more": more}))
    }

    fn kill(&mut self, pod: &mut Pod, mut fields: Fields) -> Outcome<Reply> {
        let key = take_key(&mut fields)?;
        let signal = fields.need("signal")?;
        let reach = match fields.take::<String>("reach")?.as_deref() {
            None | Some("one") => Reach::One,
            Some("family") => Reach::Family,
            Some("all") => Reach::All,
            Some(other) => return Err(Failure::invalid(format!("unknown reach {other:?}"))),
        };
        fields.finish()?;
        self.containers.kill(pod, &key, signal, reach)?;
        reply(json!({}))
    }

    fn resize(&self, mut fields: Fields) -> Outcome<Reply> {
        let key = take_key(&mut fields)?;
        let (rows, columns) = (fields.need("rows")?, fields.need("cols")?);
        fields.finish()?;
        self.containers.resize(&key, rows, columns)?;
        reply(json!({}))
    }

    fn end_input(&self, mut fields: Fields) -> Outcome<Reply> {
        let key = take_key(&mut fields)?;
        fields.finish()?;
        self.containers.end_input(&key)?;
        reply(json!({}))
    }

    fn processes(&self, pod: &Pod, mut fields: Fields) -> Outcome<Reply> {
        let id: String = fields.need("container")?;
        let after = fields.take("after")?.unwrap_or(0);
        fields.finish()?;
        let (processes, more) = self.containers.processes(pod, &id, after, LIST_BYTES)?;
        reply(json!({"processes": processes, "more": more}))
    }

    fn forget(&mut self, mut fields: Fields) -> Outcome<Reply> {
        let key = take_key(&mut fields)?;
        fields.finish()?;
        self.containers.forget(&key)?;
        reply(json!({}))
    }

    fn delete(&mut self, pod: &mut Pod, mut fields: Fields) -> Outcome<Reply> {
        let id: String = fields.need("container")?;
        fields.finish()?;
        self.containers.delete(pod, &id);
        reply(json!({}))
    }

    fn rest(&self, pod: &mut Pod, mut fields: Fields) -> Outcome<Reply> {
        let id: String = fields.need("container")?;
        fields.finish()?;
        self.containers.rest(pod, &id)?;
        reply(json!({}))
    }

    fn limits(&mut self, pod: &mut Pod, mut fields: Fields) -> Outcome<Reply> {
        let id: String = fields.take("container")?.unwrap_or_default();
        let tasks: Option<u64> = fields.take("tasks")?;
        let memory_bytes: Option<u64> = fields.take("memory_bytes")?;
        let time: Option<Vec<u64>> = fields.take("cpu_us")?;
        fields.finish()?;
        if let Some(tasks) = tasks {
            self.containers.bound_tasks(pod, &id, Some(tasks).filter(|tasks| *tasks > 0))?;
        }
        match time.as_deref() {
            None => {}
            Some([]) => self.containers.bound_time(pod, &id, None)?,
            Some([quota, period]) => self.containers.bound_time(pod, &id, Some((*quota, *period)))?,
            Some(_) => return Err(Failure::invalid("cpu_us: quota and period")),
        }
        match memory_bytes {
            Some(bytes) if !id.is_empty() => self.containers.bound_memory(pod, &id, bytes)?,
            Some(bytes) => pod.machine.limit_memory(bytes),
            None => {}
        }
        reply(json!({}))
    }

    fn shutdown(&mut self, fields: Fields) -> Outcome<Reply> {
        fields.finish()?;
        self.is_over = true;
        reply(json!({}))
    }
}

/// The fields of a packet, and the number of the request as far as it can be told.
fn parse(packet: &[u8], too_long: bool) -> (Outcome<Fields>, Value) {
    if too_long {
        return (Err(Failure::new("EMSGSIZE", format!("the packet is longer than {MAX_PACKET} bytes"))), Value::Null);
    }
    let mut fields = Fields::parse(packet);
    let request = fields.as_mut().ok().and_then(|fields| fields.0.remove("id"));
    (fields, request.unwrap_or(Value::Null))
}

fn take_key(fields: &mut Fields) -> Outcome<Key> {
    Ok((fields.need("container")?, fields.take("exec")?.unwrap_or_default()))
}

/// What the descriptor "config" holds; the request has no fields left.
fn take_config(fields: Fields, fds: &mut Descriptors) -> Outcome<Fields> {
    fields.finish()?;
    let file = fds.remove("config").ok_or_else(|| Failure::new("EBADF", "no descriptor \"config\" was sent"))?;
    let read = files::content(&file, MAX_CONFIG_BYTES);
    let text = read.map_err(|error| Failure::io("cannot read the config", &error))?;
    Fields::parse(&text)
}

fn hello(mut fields: Fields) -> Outcome<Reply> {
    let protocol: i64 = fields.need("protocol")?;
    fields.finish()?;
    if protocol != PROTOCOL {
        let text = format!("the client speaks protocol {protocol}, this kernel speaks {PROTOCOL}");
        return Err(Failure::new("EPROTONOSUPPORT", text));
    }
    reply(json!({"protocol": PROTOCOL, "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id()}))
}

fn sysctls(pod: &mut Pod, mut fields: Fields) -> Outcome<Reply> {
    let values: Pairs = fields.need("values")?;
    fields.finish()?;
    for (name, value) in values.0 {
        let set = pod.kernel.set_sysctl(&name, &value);
        set.map_err(|errno| Failure::new(&errno_name(errno.0), format!("sysctl {name}={value}")))?;
    }
    reply(json!({}))
}

fn hostname(pod: &mut Pod, mut fields: Fields) -> Outcome<Reply> {
    const LONGEST: usize = 64;
    let name: String = fields.need("name")?;
    fields.finish()?;
    if name.len() > LONGEST {
        return Err(Failure::invalid(format!("a host name has {LONGEST} bytes at most")));
    }
    pod.kernel.set_hostname(name.as_bytes());
    reply(json!({}))
}
