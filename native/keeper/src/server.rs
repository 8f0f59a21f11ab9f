//! The event loop: connections, requests, signals, timers.

use crate::attach::Attachment;
use crate::helper::Helper;
use crate::namespaces::Job;
use crate::protocol::{reply, Failure, Fds, Fields, Outcome, Reply, MAX_PACKET};
use crate::recent::Recent;
use crate::task::Task;
use crate::timers::{Timer, Timers};
use crate::watch::{Source, Watch};
use drupe_sys::epoll::{self, Epoll, Events};
use drupe_sys::process::{self, Ended, Pid};
use drupe_sys::socket;
use serde_json::{json, Value};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Of docs/keeper.md.
pub const PROTOCOL: i64 = 1;
/// The most a pipe is read per turn, so that one noisy task cannot starve the rest.
pub const TURN: usize = 64 * 1024;
/// Packets that may wait for a slow client before its connection is closed.
const MAX_QUEUED: usize = 4096;

pub struct Connection {
    watch: Watch,
    subscribed: bool,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// Whose child a process is.
#[derive(Clone, Copy)]
pub enum Child {
    Helper(u64),
    Task(u64),
    Namespace(u64),
}

/// Who is to be answered.
#[derive(Clone)]
pub struct Asker {
    pub connection: u64,
    pub id: Value,
}

pub struct Keeper {
    pub run_dir: PathBuf,
    pub run_dir_handle: File,
    pub epoll: Rc<Epoll>,
    pub timers: Timers,
    pub tasks: HashMap<u64, Task>,
    pub names: HashMap<String, u64>,
    pub helpers: HashMap<u64, Helper>,
    pub jobs: HashMap<u64, Job>,
    pub attachments: HashMap<u64, Attachment>,
    pub children: HashMap<Pid, Child>,
    /// How children ended that nobody claimed yet, kept while a helper may be about to name one of them.
    pub unclaimed: HashMap<Pid, Ended>,
    /// The same for those that no helper of ours was about to name.
    pub recent: Recent,
    /// What `mount` and `namespaces` mounted, in order.
    pub mounted: Vec<PathBuf>,
    pub buffer: Vec<u8>,
    /// RLIMIT_NOFILE as it was at the start, for the programs started here: (soft, hard).
    pub nofile: (u64, u64),
    listener: Watch,
    signals: Watch,
    connections: HashMap<u64, Connection>,
    last_id: u64,
    trimming: bool,
    stopping: bool,
}

impl Keeper {
    pub fn new(run_dir: PathBuf, listener: OwnedFd, signals: OwnedFd, nofile: (u64, u64)) -> io::Result<Keeper> {
        let run_dir_handle = File::open(&run_dir)?;
        let epoll = Rc::new(Epoll::new()?);
        let mut listener = Watch::new(&epoll, listener, Source::Listener, 0);
        let mut signals = Watch::new(&epoll, signals, Source::Signals, 0);
        listener.set(Some(epoll::IN))?;
        signals.set(Some(epoll::IN))?;
        Ok(Keeper {
            run_dir,
            run_dir_handle,
            epoll,
            timers: Timers::default(),
            tasks: HashMap::new(),
            names: HashMap::new(),
            helpers: HashMap::new(),
            jobs: HashMap::new(),
            attachments: HashMap::new(),
            children: HashMap::new(),
            unclaimed: HashMap::new(),
            recent: Recent::default(),
            mounted: Vec::new(),
            buffer: vec![0; MAX_PACKET + 1],
            nofile,
            listener,
            signals,
            connections: HashMap::new(),
            last_id: 0,
            trimming: false,
            stopping: false,
        })
    }

    pub fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Serves until `shutdown`, or SIGTERM without live tasks.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(64);
        while !self.stopping {
            self.epoll.clone().wait(&mut events, self.timers.wait_ms())?;
            for (token, ready) in events.iter() {
                self.dispatch(token, ready);
            }
            while let Some(timer) = self.timers.due() {
                self.fire(timer);
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, token: u64, ready: u32) {
        let (source, id) = Source::of(token);
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.signalled(),
            Source::Connection => self.connection_ready(id, ready),
            Source::TaskStdout => self.output_ready(id, 0),
            Source::TaskStderr => self.output_ready(id, 1),
            Source::TaskStdin => self.stdin_ready(id),
            Source::TaskPidfd => self.adopted_ended(id),
            Source::AttachedStdin => self.attached_input(id),
            Source::AttachedStdout => self.attached_room(id, 0, ready),
            Source::AttachedStderr => self.attached_room(id, 1, ready),
            Source::HelperStdin => self.helper_input(id),
            Source::HelperStdout => self.helper_output(id, 0),
            Source::HelperStderr => self.helper_output(id, 1),
            Source::Namespace => self.job_ready(id),
        }
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::HelperDeadline(id) => self.helper_late(id),
            Timer::NamespaceDeadline(id) => self.job_late(id),
            Timer::Drain(id) => self.drain_timer(id),
            Timer::Revive(id) => self.revive(id),
            Timer::AdoptedExit(id) => self.adopted_ended(id),
            Timer::PumpStdin(id) => self.attached_input(id),
            Timer::Trim => self.trim(),
            Timer::Listen => {
                let _ = self.listener.set(Some(epoll::IN));
            }
        }
    }

    fn signalled(&mut self) {
        let mut terminate = false;
        while let Some(signal) = process::next_signal(&self.signals.file) {
            terminate |= signal == libc::SIGTERM;
        }
        self.reap();
        if terminate && self.live_tasks() == 0 {
            self.stop();
        }
    }

    fn reap(&mut self) {
        while let Some((pid, ended)) = process::reap() {
            match self.children.remove(&pid) {
                Some(Child::Helper(id)) => self.helper_ended(id, ended),
                Some(Child::Task(id)) => self.task_ended(id, ended, false),
                Some(Child::Namespace(id)) => self.job_ended(id),
                None if self.creating() => {
                    self.unclaimed.insert(pid, ended);
                }
                None => self.recent.push(pid, ended),
            }
        }
    }

    /// Gives memory back some time after tasks were forgotten.
    pub fn trim_later(&mut self) {
        if !std::mem::replace(&mut self.trimming, true) {
            self.timers.after(Duration::from_secs(1), Timer::Trim);
        }
    }

    fn trim(&mut self) {
        self.trimming = false;
        self.tasks.shrink_to_fit();
        self.names.shrink_to_fit();
        self.children.shrink_to_fit();
        process::trim_memory();
    }

    pub fn live_tasks(&self) -> usize {
        self.tasks.values().filter(|task| task.exit.is_none()).count() + self.helpers.len()
    }

    // ── connections ──

    fn accept(&mut self) {
        loop {
            match socket::accept(&self.listener.file) {
                Ok(fd) => self.connected(fd),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Err(_) => return self.rest_listener(),
            }
        }
    }

    /// Descriptors ran out: the connection stays in the backlog; look again soon instead of spinning.
    fn rest_listener(&mut self) {
        let _ = self.listener.set(None);
        self.timers.after(Duration::from_millis(100), Timer::Listen);
    }

    fn connected(&mut self, fd: OwnedFd) {
        let uid = socket::peer_uid(&fd).unwrap_or(u32::MAX);
        if uid != 0 && uid != process::effective_uid() {
            return;
        }
        let id = self.new_id();
        let mut watch = Watch::new(&self.epoll, fd, Source::Connection, id);
        if watch.set(Some(epoll::IN)).is_ok() {
            self.connections.insert(id, Connection { watch, subscribed: false, queue: VecDeque::new() });
        }
    }

    fn connection_ready(&mut self, id: u64, ready: u32) {
        if ready & epoll::OUT != 0 {
            self.flush(id);
        }
        if ready & (epoll::IN | epoll::HUP | epoll::ERR) == 0 {
            return;
        }
        // A few packets per turn: one busy client must not starve the rest.
        for _ in 0..16 {
            let Some(connection) = self.connections.get(&id) else { return };
            let received = match socket::receive(&connection.watch.file, &mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return self.disconnect(id),
                Ok(received) if received.length == 0 && received.fds.is_empty() => return self.disconnect(id),
                Ok(received) => received,
            };
            let (fields, request) = if received.truncated || received.length > MAX_PACKET {
                let text = format!("the packet is longer than {MAX_PACKET} bytes");
                (Err(Failure::new("EMSGSIZE", text)), Value::Null)
            } else {
                let mut fields = Fields::parse(&self.buffer[..received.length]);
                let request = fields.as_mut().ok().and_then(|fields| fields.0.remove("id"));
                (fields, request.unwrap_or(Value::Null))
            };
            let asker = Asker { connection: id, id: request };
            let result = fields.and_then(|fields| match received.fds_lost {
                true => Err(Failure::new("EMFILE", "the keeper has no free descriptors for those sent")),
                false => self.request(&asker, fields, received.fds),
            });
            match result {
                Ok(None) => {}
                Ok(Some((value, fds))) => self.answer(&asker, Ok((value, fds))),
                Err(failure) => self.answer(&asker, Err(failure)),
            }
        }
    }

    fn disconnect(&mut self, id: u64) {
        self.connections.remove(&id);
    }

    pub fn answer(&mut self, asker: &Asker, result: Outcome<(Value, Fds)>) {
        let (packet, fds) = match result {
            Ok((value, fds)) => {
                let (names, fds): (Vec<String>, Vec<OwnedFd>) = fds.0.into_iter().unzip();
                let mut packet = json!({"id": asker.id, "ok": value});
                if !names.is_empty() {
                    packet["fds"] = json!(names);
                }
                (packet, fds)
            }
            Err(failure) => (json!({"id": asker.id, "error": failure.to_json()}), Vec::new()),
        };
        self.send(asker.connection, &packet, fds);
    }

    /// Announces something to every subscriber.
    pub fn publish(&mut self, event: &Value) {
        let subscribed = self.connections.iter().filter(|(_, connection)| connection.subscribed);
        let ids: Vec<u64> = subscribed.map(|(id, _)| *id).collect();
        for id in ids {
            self.send(id, event, Vec::new());
        }
    }

    pub fn send(&mut self, id: u64, packet: &Value, fds: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut text = packet.to_string().into_bytes();
        if text.len() > MAX_PACKET {
            let failure = Failure::new("EMSGSIZE", "the answer does not fit into a packet");
            text = json!({"id": packet["id"], "error": failure.to_json()}).to_string().into_bytes();
        }
        connection.queue.push_back((text, fds));
        if connection.queue.len() > MAX_QUEUED {
            return self.disconnect(id);
        }
        self.flush(id);
    }

    fn flush(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        while let Some((text, fds)) = connection.queue.front() {
            match socket::send(&connection.watch.file, text, fds) {
                Ok(()) => drop(connection.queue.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.disconnect(id),
            }
        }
        let waits = if connection.queue.is_empty() { 0 } else { epoll::OUT };
        if connection.watch.set(Some(epoll::IN | waits)).is_err() {
            self.disconnect(id);
        }
    }

    // ── requests ──

    fn request(&mut self, asker: &Asker, mut fields: Fields, fds: Vec<OwnedFd>) -> Outcome<Reply> {
        let names = fields.take("fds")?.unwrap_or_default();
        let mut fds = Fds::named(names, fds)?;
        let op: String = fields.need("op")?;
        match op.as_str() {
            "hello" => self.hello(&mut fields),
            "subscribe" => self.subscribe(asker, &mut fields),
            "namespaces" => self.namespaces(asker, &mut fields),
            "release" => self.release(&mut fields),
            "netns_socket" => self.netns_socket(&mut fields),
            "netns_open" => self.netns_open(&mut fields),
            "mount" => self.mount(&mut fields, &mut fds),
            "umount" => self.umount(&mut fields),
            "run" => self.run_helper(asker, &mut fields, &mut fds),
            "create" => self.create(asker, &mut fields, &mut fds),
            "exec" => self.exec(asker, &mut fields, &mut fds),
            "streams" => self.streams(asker, &mut fields, &mut fds),
            "take_streams" => self.take_streams(&mut fields),
            "ended" => self.ended(&mut fields),
            "attach" => self.attach(asker, &mut fields, &mut fds),
            "flow" => self.flow(&mut fields),
            "detach" => self.detach(&mut fields),
            "close_stdin" => self.close_stdin(&mut fields),
            "resize" => self.resize(&mut fields),
            "kill" => self.kill(&mut fields),
            "reopen_log" => self.reopen_log(&mut fields),
            "list" => self.list(&mut fields),
            "escrow" => self.escrow(&mut fields),
            "adopt" => self.adopt(asker, &mut fields, &mut fds),
            "forget" => self.forget(&mut fields),
            "shutdown" => self.shutdown(&mut fields),
            _ => Err(Failure::new("ENOSYS", format!("unknown op {op:?}"))),
        }
    }

    fn hello(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let protocol: i64 = fields.need("protocol")?;
        end(fields)?;
        if protocol != PROTOCOL {
            let text = format!("the client speaks protocol {protocol}, this keeper speaks {PROTOCOL}");
            return Err(Failure::new("EPROTONOSUPPORT", text));
        }
        let features = ["cri", "json-file", "rotation", "adopt", "pidfd", "streams"];
        reply(json!({
            "protocol": PROTOCOL, "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(), "features": features,
        }))
    }

    fn subscribe(&mut self, asker: &Asker, fields: &mut Fields) -> Outcome<Reply> {
        end(fields)?;
        if let Some(connection) = self.connections.get_mut(&asker.connection) {
            connection.subscribed = true;
        }
        reply(json!({}))
    }

    fn shutdown(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let force = fields.take("force")?.unwrap_or(false);
        end(fields)?;
        match self.live_tasks() {
            0 => {}
            _ if force => {}
            live => return Err(Failure::new("EBUSY", format!("{live} tasks are alive"))),
        }
        self.stop();
        reply(json!({}))
    }

    fn stop(&mut self) {
        self.unmount_everything();
        let _ = std::fs::remove_file(self.run_dir.join("keeper.sock"));
        let _ = std::fs::remove_file(self.run_dir.join("keeper.pid"));
        self.stopping = true;
    }
}

/// Refuses fields that no one asked for.
pub fn end(fields: &mut Fields) -> Outcome<()> {
    std::mem::replace(fields, Fields(serde_json::Map::new())).finish()
}
