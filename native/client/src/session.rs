//! The time in which a fork of the warm process is our command.

use crate::request;
use drupe_sys::epoll::{Epoll, Events};
use drupe_sys::process::{self, Ended};
use drupe_sys::socket;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const PATIENCE_MS: i32 = 2000;
const RECORD: usize = 5; // a letter, a number (i32, little endian)
const STREAM: u64 = 0;
const SIGNALS: u64 = 1;

/// What the other side says.
enum News {
    /// `H`: it has accepted the connection, and reads the request.
    Greets,
    /// `R`: the command runs from now on; its pidfd came along.
    Runs(OwnedFd),
    /// `N`: it did nothing and will do nothing.
    Refused,
    /// `X`: its exit code; it has let go of all that it had.
    Exit(i32),
    /// `W`: the wait(2) status of one that ended without a word.
    Died(i32),
}

/// Has our command run by the warm process; returns its exit code, or ends as it did. An error: nothing was done.
pub fn run(blocked: u64) -> io::Result<u8> {
    // From here on signals wait for us to fetch them.
    let signals = process::signal_fd(&process::forwardable_signals())?;
    let stream = request::connect()?;
    // What is sent to one who never reads it stays open: our output's readers would wait for its end.
    let Some(News::Greets) = first_news(&stream)? else { return Err(io::ErrorKind::ConnectionRefused.into()) };
    request::send(&stream, blocked)?;
    match first_news(&stream)? {
        Some(News::Runs(pidfd)) => Session { stream, signals, pidfd, forwarded: Vec::new() }.run(),
        _ => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// The next record, for which nobody has to wait long. WouldBlock: it did not come.
fn first_news(stream: &UnixStream) -> io::Result<Option<News>> {
    let epoll = Epoll::new()?;
    epoll.add(stream, STREAM, libc::EPOLLIN as u32)?;
    epoll.wait(&mut Events::with_capacity(1), PATIENCE_MS)?;
    receive(stream)
}

/// The next record; None: the other side is gone.
fn receive(stream: &UnixStream) -> io::Result<Option<News>> {
    let mut record = [0; RECORD];
    let mut received = socket::receive(stream, &mut record)?;
    if received.length < RECORD {
        return Ok(None); // each is written as a whole, and fits any socket
    }
    let number = i32::from_le_bytes([record[1], record[2], record[3], record[4]]);
    Ok(match record[0] {
        b'H' => Some(News::Greets),
        b'R' => received.fds.pop().map(News::Runs),
        b'N' => Some(News::Refused),
        b'X' => Some(News::Exit(number)),
        b'W' => Some(News::Died(number)),
        _ => None,
    })
}

struct Session {
    stream: UnixStream,
    signals: OwnedFd,
    pidfd: OwnedFd,
    forwarded: Vec<i32>,
}

impl Session {
    /// An error means that the command was handed back: whoever gets one runs it again.
    fn run(mut self) -> io::Result<u8> {
        let Ok(epoll) = self.watch() else { return Ok(self.lost()) };
        let mut events = Events::with_capacity(2);
        loop {
            if epoll.wait(&mut events, -1).is_err() {
                return Ok(self.lost());
            }
            while let Some(signal) = process::next_signal(&self.signals) {
                self.forward(signal);
            }
            match receive(&self.stream) {
                Ok(Some(News::Exit(code))) => return Ok(code as u8),
                Ok(Some(News::Refused)) => return Err(self.hand_back()),
                Ok(Some(News::Died(status))) => return Ok(end_as(Ended::from_wait_status(status))),
                Ok(Some(News::Greets | News::Runs(_))) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(None) | Err(_) => return Ok(self.lost()),
            }
        }
    }

    fn watch(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        epoll.add(&self.stream, STREAM, libc::EPOLLIN as u32)?;
        epoll.add(&self.signals, SIGNALS, libc::EPOLLIN as u32)?;
        Ok(epoll)
    }

    fn forward(&mut self, signal: i32) {
        match signal {
            libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => self.stop(signal),
            _ => {
                self.forwarded.push(signal);
                self.send(signal);
            }
        }
    }

    /// Job control: the command stops and so do we, as the shell expects it; when we go on, so does the command.
    fn stop(&self, signal: i32) {
        self.send(libc::SIGSTOP);
        if let Ok(blocked) = process::blocked_signals() {
            let _ = process::kill(own_pid(), signal);
            // It acts while it is not blocked; this returns when we have been continued.
            let _ = process::set_blocked_signals(blocked & !(1 << (signal - 1)));
            let _ = process::set_blocked_signals(blocked);
        }
        self.send(libc::SIGCONT);
    }

    fn send(&self, signal: i32) {
        // It may have ended, which we are about to learn.
        let _ = process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// What was for the command is for the Python program that we become.
    fn hand_back(&self) -> io::Error {
        for signal in &self.forwarded {
            let _ = process::kill(own_pid(), *signal);
        }
        io::ErrorKind::Unsupported.into()
    }

    /// The command ended without a word, and the warm process, which would know how, is gone too.
    fn lost(&self) -> u8 {
        let signal = self.forwarded.last().copied().unwrap_or(libc::SIGKILL);
        end_as(Ended { code: 128 + signal, signal, core: false })
    }
}

fn own_pid() -> process::Pid {
    std::process::id() as process::Pid
}

/// Ends this process as the command ended: by the same signal, or with the code that is returned.
fn end_as(end: Ended) -> u8 {
    if end.signal != 0 {
        process::default_signal(end.signal);
        let _ = process::kill(own_pid(), end.signal);
        let _ = process::set_blocked_signals(0);
    }
    end.code as u8
}
