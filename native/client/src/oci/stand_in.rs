//! A stand-in: the process that whoever called us waits for, in the place of a workload that is inside of a sandbox.
//!
//! It passes on what it is sent, and ends as the workload ended. Both go over a socket of which it holds both ends: the
//! daemon takes the other one from it, again after each of its restarts, and finds the standard streams in the same way.

use drupe_sys::epoll::{Epoll, Events};
use drupe_sys::{fd, process, socket, terminal};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The word by which our own program becomes one.
pub const WORD: &str = "stand-in";
/// Says that its standard input is to be its controlling terminal.
const TERMINAL: &str = "--terminal";
/// Says that whoever makes it is to be watched until the daemon keeps it.
const WITH_MAKER: &str = "--with-maker";
/// Its own end of the socket, and the daemon's. Number 5 is its program, where it is not found by a path.
const OWN_END: i32 = 3;
const OTHER_END: i32 = 4;
const PROGRAM: i32 = 5;
/// Hangs up when whoever made a stand-in for a further process is gone.
const MAKER: i32 = 6;
const NAME: &str = "drupe-stand-in";
const CHANNEL: u64 = 0;
const SIGNALS: u64 = 1;
const MADE: u64 = 2;
/// The daemon's word for the workload's end; the exit code follows.
const ENDED: u8 = b'X';
/// The daemon's: it knows of us, and sees to our end.
const KEPT: u8 = b'K';
/// Ours: from now on no signal is lost.
const READY: u8 = b'R';
/// Ours for a signal; its number follows.
const SIGNAL: u8 = b'S';

/// Stands for a workload until its end; returns its exit code.
pub fn stand(words: &[String]) -> io::Result<u8> {
    process::set_name(NAME);
    let signals = process::signal_fd(&process::forwardable_signals())?;
    if words.iter().any(|word| word == TERMINAL) {
        process::setsid()?;
        terminal::control(&io::stdin(), process::effective_uid())?;
    }
    let channel = fd::duplicate_number(OWN_END)?;
    socket::send(&channel, &[READY, 0], &[])?;
    let epoll = Epoll::new()?;
    epoll.add(&channel, CHANNEL, libc::EPOLLIN as u32)?;
    epoll.add(&signals, SIGNALS, libc::EPOLLIN as u32)?;
    let mut maker = words.iter().any(|word| word == WITH_MAKER).then(|| fd::duplicate_number(MAKER)).transpose()?;
    if let Some(maker) = &maker {
        epoll.add(maker, MADE, 0)?; // EPOLLHUP is always told of
    }
    let mut events = Events::with_capacity(3);
    loop {
        epoll.wait(&mut events, -1)?;
        while let Some(signal) = process::next_signal(&signals) {
            // Full: nobody has listened for long, and the first ones say enough.
            let _ = socket::send(&channel, &[SIGNAL, signal as u8], &[]);
        }
        let mut said = [0; 2];
        match socket::receive(&channel, &mut said) {
            Ok(received) if received.length == 2 && said[0] == ENDED => return Ok(said[1]),
            Ok(received) if received.length == 2 && said[0] == KEPT => {
                maker.take().map_or(Ok(()), |maker| epoll.delete(&maker))?;
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            // Nobody knows of us, and nobody will: the daemon would have said so before its answer to whoever made us.
            Err(_) if maker.is_some() && events.iter().any(|(token, _)| token == MADE) => return Ok(1),
            _ => {}
        }
    }
}

/// Gives whatever we start the numbers that a stand-in needs, which must be free.
pub fn lay_out() -> io::Result<()> {
    let (own, other) = socket::pair()?;
    let program = File::open("/proc/self/exe")?;
    // Above the numbers first: one of them may be in the place of another.
    let high: Vec<OwnedFd> = [own.as_fd(), other.as_fd(), program.as_fd()]
        .iter()
        .map(|each| fd::duplicate_above(each, PROGRAM + 1))
        .collect::<io::Result<_>>()?;
    drop((own, other, program));
    [OWN_END, OTHER_END, PROGRAM].iter().zip(&high).try_for_each(|(number, each)| fd::give_number(each, *number))
}

/// After `lay_out`: begins one that stands for a further process, on our streams or on a new terminal whose other side goes to `console`.
pub fn begin(console: &str) -> io::Result<Child> {
    let (hangs_up, ours) = fd::pipe()?;
    fd::give_number(&hangs_up, MAKER)?;
    std::mem::forget(ours); // until our own end
    let mut command = Command::new("/proc/self/exe");
    command.args([WORD, WITH_MAKER]);
    if !console.is_empty() {
        let (master, own) = terminal::open_pair()?;
        give_away(Path::new(console), master)?;
        command.arg(TERMINAL).stdin(own.try_clone()?).stdout(own.try_clone()?).stderr(Stdio::from(own));
    }
    command.spawn()
}

/// Sends a terminal's master to whoever listens there, with a name as runc does.
fn give_away(console: &Path, master: OwnedFd) -> io::Result<()> {
    let stream = UnixStream::connect(console)?;
    socket::send(&stream, b"/dev/ptmx", &[master])
}

/// Waits for the end of a stand-in, which need not be our own child but must come to be: returns its exit code.
pub fn wait(pid: process::Pid, pidfd: &OwnedFd, signals: &OwnedFd) -> io::Result<u8> {
    let epoll = Epoll::new()?;
    epoll.add(pidfd, CHANNEL, libc::EPOLLIN as u32)?;
    epoll.add(signals, SIGNALS, libc::EPOLLIN as u32)?;
    let mut events = Events::with_capacity(2);
    while !events.iter().any(|(token, _)| token == CHANNEL) {
        epoll.wait(&mut events, -1)?;
        while let Some(signal) = process::next_signal(signals) {
            // It may have just ended.
            let _ = process::pidfd_send_signal(pidfd, signal);
        }
    }
    Ok(process::wait_for(pid)?.code as u8)
}
