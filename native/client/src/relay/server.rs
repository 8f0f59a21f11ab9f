//! The event loop: containerd's connections on one side, the daemon of the moment on the other.

use crate::control::{Control, Order};
use crate::talk::Talk;
use crate::wake::Wake;
use drupe_sys::epoll::{self, Epoll, Events};
use drupe_sys::{process, socket};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// So long is the daemon waited for, before requests are refused. It starts in a second, and takes over many pods in a
/// few.
const PATIENCE: Duration = Duration::from_secs(60);
const TURN: usize = 64 * 1024;
/// With descriptors run out, those who connect wait in the backlog.
const REST_MS: i32 = 100;

/// What a descriptor is to us; with the id of its owner it makes the token that epoll reports.
#[derive(Clone, Copy, PartialEq)]
enum Source {
    Signals,
    Reception,
    Control,
    Door,
    Client,
    Daemon,
}

const SOURCES: [Source; 6] =
    [Source::Signals, Source::Reception, Source::Control, Source::Door, Source::Client, Source::Daemon];

/// Where one of containerd's namespaces connects.
struct Door {
    name: String,
    listener: UnixListener,
    /// The daemon of the moment has said that it serves it.
    served: bool,
}

/// A descriptor that epoll watches until it is closed; no other process has it.
struct Port {
    stream: UnixStream,
    token: u64,
    events: u32,
}

struct Connection {
    door: u64,
    client: Port,
    daemon: Option<Port>,
    talk: Talk,
}

pub struct Relay {
    dir: PathBuf,
    epoll: Epoll,
    signals: OwnedFd,
    reception: OwnedFd,
    control: Option<(u64, Control)>,
    doors: HashMap<u64, Door>,
    connections: HashMap<u64, Connection>,
    last_id: u64,
    /// Since when there is no daemon; None: there is one, or it has been given up.
    left_at: Option<Instant>,
    wake: Wake,
    missed: bool,
    resting: bool,
    ended: bool,
}

impl Relay {
    /// reception: where daemons connect.
    pub fn new(dir: PathBuf, reception: OwnedFd, signals: OwnedFd) -> io::Result<Relay> {
        let epoll = Epoll::new()?;
        epoll.add(&reception, token(Source::Reception, 0), epoll::IN)?;
        epoll.add(&signals, token(Source::Signals, 0), epoll::IN)?;
        Ok(Relay {
            wake: Wake::new(&dir),
            dir,
            epoll,
            signals,
            reception,
            control: None,
            doors: HashMap::new(),
            connections: HashMap::new(),
            last_id: 0,
            left_at: Some(Instant::now()),
            missed: false,
            resting: false,
            ended: false,
        })
    }

    /// Serves until a daemon says that it is over, or SIGTERM comes when nobody is connected.
    pub fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(64);
        while !self.ended {
            self.epoll.wait(&mut events, self.wait_ms())?;
            for (token, ready) in events.iter() {
                self.dispatch(token, ready);
            }
            self.look_at_the_clock();
        }
        for door in self.doors.values() {
            let _ = fs::remove_file(self.dir.join(&door.name));
        }
        let _ = fs::remove_file(self.dir.join(crate::SOCKET));
        Ok(())
    }

    fn dispatch(&mut self, token: u64, ready: u32) {
        let id = token >> 8;
        match SOURCES[(token & 0xff) as usize % SOURCES.len()] {
            Source::Signals => self.signalled(),
            Source::Reception => self.daemon_connected(),
            Source::Control => self.control_ready(id, ready),
            Source::Door => self.accept(id),
            Source::Client | Source::Daemon => self.connection_ready(id, token, ready),
        }
    }

    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn signalled(&mut self) {
        while process::next_signal(&self.signals).is_some() {
            self.ended |= self.connections.is_empty();
        }
    }

    fn wait_ms(&self) -> i32 {
        let next = self.left_at.map(|at| at + PATIENCE).into_iter().chain(self.wake.next()).min();
        let left = next.map(|at| at.saturating_duration_since(Instant::now()));
        match self.resting {
            true => REST_MS,
            false => left.map_or(-1, |left| left.as_millis().min(i32::MAX as u128 - 1) as i32 + 1),
        }
    }

    fn look_at_the_clock(&mut self) {
        if std::mem::take(&mut self.resting) {
            for (id, door) in &self.doors {
                let _ = self.epoll.modify(&door.listener, token(Source::Door, *id), epoll::IN);
            }
        }
        self.wake.look(!self.connections.is_empty());
        if self.left_at.is_some_and(|at| at.elapsed() >= PATIENCE) {
            self.left_at = None;
            self.missed = true;
            self.each(|talk| talk.daemon_is_missed());
        }
    }

    fn each(&mut self, tell: impl Fn(&mut Talk)) {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            if let Some(connection) = self.connections.get_mut(&id) {
                tell(&mut connection.talk);
            }
            self.flush(id);
        }
    }

    // ── the daemon ──

    fn daemon_connected(&mut self) {
        let Ok(fd) = socket::accept(&self.reception) else { return };
        if !is_trusted(&fd) {
            return;
        }
        let id = self.new_id();
        if self.epoll.add(&fd, token(Source::Control, id), epoll::IN).is_ok() {
            self.daemon_left(); // there is one at a time: the one before is dying
            self.control = Some((id, Control::new(fd)));
        }
    }

    fn control_ready(&mut self, id: u64, ready: u32) {
        let Some((_, control)) = self.control.as_mut().filter(|(known, _)| *known == id) else { return };
        let mut orders = Vec::new();
        let mut lives = control.flush();
        if ready & !epoll::OUT != 0 {
            lives &= control.receive(&mut orders);
        }
        for order in orders {
            self.obey(order);
        }
        match lives {
            true => self.watch_control(),
            false => self.daemon_left(),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Hello => self.answer(&format!("ok drupe-relay {}", env!("CARGO_PKG_VERSION"))),
            Order::Listen(name) => match self.open_door(&name) {
                Ok(id) => {
                    self.answer("ok");
                    self.serve_door(id);
                }
                Err(error) => self.answer(&format!("error cannot listen at {name}: {error}")),
            },
            Order::End => self.ended = true,
            Order::Unknown(why) => self.answer(&format!("error {why}")),
        }
    }

    fn answer(&mut self, text: &str) {
        if let Some((_, control)) = &mut self.control {
            control.send(text.into(), None);
        }
        self.watch_control();
    }

    fn watch_control(&mut self) {
        if let Some((id, control)) = &self.control {
            let events = epoll::IN | if control.waits() { epoll::OUT } else { 0 };
            let _ = self.epoll.modify(&control.fd, token(Source::Control, *id), events);
        }
    }

    fn daemon_left(&mut self) {
        if self.control.take().is_some() {
            self.left_at = Some(Instant::now());
            self.wake.daemon_left();
        }
        for door in self.doors.values_mut() {
            door.served = false;
        }
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        ids.into_iter().for_each(|id| self.daemon_end_closed(id));
    }

    /// The last that it said may still be on the way; it counts.
    fn daemon_end_closed(&mut self, id: u64) {
        while self.read_daemon(id).is_some_and(|count| count > 0) {}
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.daemon.take().is_some() {
            connection.talk.daemon_left();
        }
        self.flush(id);
    }

    // ── doors ──

    fn open_door(&mut self, name: &str) -> io::Result<u64> {
        if let Some(id) = self.doors.iter().find(|(_, door)| door.name == name).map(|(id, _)| *id) {
            return Ok(id);
        }
        let listener = crate::listen(&self.dir, name, |path| UnixListener::bind(path))?;
        listener.set_nonblocking(true)?;
        let id = self.new_id();
        self.epoll.add(&listener, token(Source::Door, id), epoll::IN)?;
        self.doors.insert(id, Door { name: name.into(), listener, served: false });
        Ok(id)
    }

    fn serve_door(&mut self, id: u64) {
        (self.left_at, self.missed) = (None, false);
        self.wake.daemon_came();
        let Some(door) = self.doors.get_mut(&id) else { return };
        door.served = true;
        let mut waiting: Vec<u64> =
            self.connections.iter().filter(|(_, one)| one.door == id).map(|(id, _)| *id).collect();
        waiting.sort_unstable();
        waiting.into_iter().for_each(|id| self.hand_over(id));
    }

    fn accept(&mut self, door: u64) {
        loop {
            let Some(known) = self.doors.get(&door) else { return };
            match known.listener.accept() {
                Ok((stream, _)) => self.client_connected(door, stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => {
                    // Descriptors ran out: look again soon instead of spinning.
                    let _ = self.epoll.modify(&known.listener, token(Source::Door, door), 0);
                    self.resting = true;
                    return;
                }
            }
        }
    }

    fn client_connected(&mut self, door: u64, stream: UnixStream) {
        let id = self.new_id();
        let token = token(Source::Client, id);
        if !is_trusted(&stream) || stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.epoll.add(&stream, token, epoll::IN).is_err() {
            return;
        }
        let client = Port { stream, token, events: epoll::IN };
        self.connections.insert(id, Connection { door, client, daemon: None, talk: Talk::new(self.missed) });
        if self.doors.get(&door).is_some_and(|door| door.served) {
            self.hand_over(id);
        }
    }

    /// Gives the daemon one end of a pair: what the client says comes to it there.
    fn hand_over(&mut self, id: u64) {
        let token = token(Source::Daemon, id);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let (Some((_, control)), Some(door)) = (&mut self.control, self.doors.get(&connection.door)) else { return };
        let Ok((ours, theirs)) = UnixStream::pair() else { return self.disconnect(id) };
        let ready = ours.set_nonblocking(true).and_then(|()| self.epoll.add(&ours, token, epoll::IN));
        if ready.is_err() {
            return self.disconnect(id);
        }
        control.send(format!("connection {}", door.name), Some(theirs.into()));
        connection.daemon = Some(Port { stream: ours, token, events: epoll::IN });
        connection.talk.daemon_came();
        self.watch_control();
        self.flush(id);
    }

    // ── connections ──

    fn connection_ready(&mut self, id: u64, token: u64, ready: u32) {
        let readable = ready & (epoll::IN | epoll::HUP | epoll::ERR) != 0;
        match SOURCES[(token & 0xff) as usize % SOURCES.len()] {
            Source::Client if readable => self.read_client(id),
            Source::Daemon if readable && self.read_daemon(id) == Some(0) => return self.daemon_end_closed(id),
            _ => {}
        }
        self.flush(id);
    }

    fn read_client(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut buffer = [0; TURN];
        match socket::receive_bytes(&connection.client.stream, &mut buffer) {
            Ok(0) => self.disconnect(id),
            Ok(count) => {
                connection.talk.client_said(&buffer[..count]);
                if connection.daemon.is_none() {
                    self.wake.called();
                }
            }
            Err(error) if is_passing(&error) => {}
            Err(_) => self.disconnect(id),
        }
    }

    /// How much was read; 0: there will be no more. None: nothing for now.
    fn read_daemon(&mut self, id: u64) -> Option<usize> {
        let connection = self.connections.get_mut(&id)?;
        let mut buffer = [0; TURN];
        match socket::receive_bytes(&connection.daemon.as_ref()?.stream, &mut buffer) {
            Ok(count) => {
                connection.talk.daemon_said(&buffer[..count]);
                Some(count)
            }
            Err(error) if is_passing(&error) => None,
            Err(_) => Some(0),
        }
    }

    /// Sends what can be sent, and watches for what can be done next.
    fn flush(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Connection { client, daemon, talk, .. } = connection;
        let mut alive = true;
        while alive && !talk.to_client.waiting().is_empty() {
            match socket::send_bytes(&client.stream, talk.to_client.waiting()) {
                Ok(count) => talk.to_client.took(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => alive = error.kind() == io::ErrorKind::Interrupted,
            }
        }
        if let Some(daemon) = daemon {
            while !talk.to_daemon.waiting().is_empty() {
                match socket::send_bytes(&daemon.stream, talk.to_daemon.waiting()) {
                    Ok(count) => talk.to_daemon.took(count),
                    Err(_) => break, // its end is told by a read
                }
            }
            let events = wanted(talk.takes_answers(), !talk.to_daemon.waiting().is_empty());
            daemon.watch(&self.epoll, events);
        }
        client.watch(&self.epoll, wanted(talk.takes_requests(), !talk.to_client.waiting().is_empty()));
        if !alive {
            self.disconnect(id);
        }
    }

    /// The daemon sees the end of its pair, and gives up what was being waited for.
    fn disconnect(&mut self, id: u64) {
        self.connections.remove(&id);
    }
}

impl Port {
    fn watch(&mut self, epoll: &Epoll, events: u32) {
        if events != self.events && epoll.modify(&self.stream, self.token, events).is_ok() {
            self.events = events;
        }
    }
}

fn wanted(reads: bool, writes: bool) -> u32 {
    (if reads { epoll::IN } else { 0 }) | (if writes { epoll::OUT } else { 0 })
}

fn token(source: Source, id: u64) -> u64 {
    (id << 8) | source as u64
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Root's, or our own user's.
fn is_trusted(fd: &impl AsFd) -> bool {
    socket::peer_uid(fd).is_ok_and(|uid| uid == 0 || uid == process::effective_uid())
}
