//! Ways to the host. `drupe.channel=` on the kernel's command line, or `--channel`:
//!
//!     serial[:NAME]  a virtio serial port, drupe.agent by default
//!     vsock[:PORT]   listens there, 1024 by default
//!     tty:PATH       a serial line
//!     unix:PATH      listens there

use crate::agent::Agent;
use crate::fault::{invalid, During, Reply};
use crate::sync::{mark, Marked, TOKEN_BYTES};
use crate::{devices, server, threads};
use rustix::event::{epoll, poll, PollFd, PollFlags, Timespec};
use rustix::termios::{tcgetattr, tcsetattr, OptionalActions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub enum Channel {
    Serial(String),
    Vsock(u32),
    Tty(String),
    Unix(String),
}

impl Channel {
    pub fn parse(text: &str) -> Reply<Self> {
        let (kind, value) = text.split_once(':').unwrap_or((text, ""));
        let or = |default: &str| if value.is_empty() { default.to_string() } else { value.to_string() };
        match (kind, value) {
            ("serial", _) => Ok(Channel::Serial(or("drupe.agent"))),
            ("vsock", _) => or("1024").parse().map(Channel::Vsock).map_err(|_| invalid(format!("no port: {value:?}"))),
            ("tty" | "unix", "") => Err(invalid(format!("channel {kind} needs a path, as {kind}:/PATH"))),
            ("tty", _) => Ok(Channel::Tty(value.into())),
            ("unix", _) => Ok(Channel::Unix(value.into())),
            _ => Err(invalid(format!("no channel {text:?}: serial[:NAME], vsock[:PORT], tty:PATH or unix:PATH"))),
        }
    }

    /// Serves the host for ever.
    pub fn serve(&self, agent: &Arc<Agent>) -> Reply<()> {
        match self {
            Channel::Serial(name) => {
                let node = agent.await_some(None, None, |_| devices::find_port(name))?;
                let port = open(&node)?;
                serve_port(agent, &port).during(|| format!("serial port {name}"))
            }
            Channel::Tty(path) => {
                let line = open(Path::new(path))?;
                make_raw(&line).during(|| format!("cannot make {path} raw"))?;
                // Before that it was no line for bytes and echoed: who waits for this greeting has said nothing in vain.
                let greeting = [&mark()[..], &[0; TOKEN_BYTES]].concat();
                Writer(line.clone()).write_all(&greeting).during(|| format!("serial line {path}"))?;
                serve_line(agent, &line).during(|| format!("serial line {path}"))
            }
            Channel::Vsock(port) => {
                let listener = drupe_sys::socket::listen_vsock(*port).during(|| format!("vsock port {port}"))?;
                accept_all(agent, || drupe_sys::socket::accept_blocking(&listener)).during(|| "accept")
            }
            Channel::Unix(path) => {
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path).during(|| format!("cannot listen at {path}"))?;
                accept_all(agent, || Ok(listener.accept()?.0.into())).during(|| "accept")
            }
        }
    }
}

fn open(path: &Path) -> Reply<Arc<OwnedFd>> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path);
    Ok(Arc::new(OwnedFd::from(file.during(|| format!("cannot open {}", path.display()))?)))
}

fn make_raw(line: &OwnedFd) -> io::Result<()> {
    let mut settings = tcgetattr(line)?;
    settings.make_raw();
    Ok(tcsetattr(line, OptionalActions::Now, &settings)?)
}

struct Writer(Arc<OwnedFd>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&*self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connections that follow one another on a line, each begun by a mark, until the line hangs up.
fn serve_line(agent: &Arc<Agent>, line: &Arc<OwnedFd>) -> io::Result<()> {
    let mut reader = Marked::new(line.clone());
    loop {
        server::serve(agent, &mut reader, Box::new(Writer(line.clone())))?;
        let Some(token) = reader.take_token()? else { return Ok(()) };
        Writer(line.clone()).write_all(&[&mark()[..], &token].concat())?;
    }
}

/// A virtio serial port outlives its host: poll(2) says POLLHUP while there is none, and an edge when one comes.
fn serve_port(agent: &Arc<Agent>, port: &Arc<OwnedFd>) -> io::Result<()> {
    let edges = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(&edges, port, epoll::EventData::new_u64(0), flags)?;
    let mut events = Vec::with_capacity(1);
    loop {
        let mut state = [PollFd::new(port, PollFlags::OUT)];
        poll(&mut state, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        if !state[0].revents().contains(PollFlags::HUP) {
            serve_line(agent, port)?;
            continue;
        }
        events.clear();
        epoll::wait(&edges, rustix::buffer::spare_capacity(&mut events), None)?;
    }
}

fn accept_all(agent: &Arc<Agent>, accept: impl Fn() -> io::Result<OwnedFd>) -> io::Result<()> {
    loop {
        let socket = Arc::new(accept()?);
        let agent = agent.clone();
        let work = move || {
            let _ = serve_line(&agent, &socket); // its end, whatever the cause, is all there is to say
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        };
        threads::start("connection", 256 << 10, work)?;
    }
}
