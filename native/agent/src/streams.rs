//! Standard streams of a process: output is pulled by the host, the kernel's pipe is the buffer, and what was given stays
//! until the host asks for what is after it.

use crate::fault::{fault, invalid, wrong_state, Code, During, Reply};
use crate::link::Link;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{shutdown, Shutdown};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

const DEFAULT_READ: usize = 64 << 10;
const MAX_READ: usize = 1 << 20;

#[derive(Default)]
pub struct Output {
    source: Option<OwnedFd>,
    kept: Vec<u8>,
    offset: u64, // of `kept` in the stream
    is_ended: bool,
}

#[derive(Default)]
pub struct Input {
    sink: Option<OwnedFd>,
    taken: u64,
}

/// The agent's ends.
#[derive(Default)]
pub struct Streams {
    input: Mutex<Input>,
    outputs: [Mutex<Output>; 2],
    terminal: OnceLock<OwnedFd>,
    given_up: AtomicBool,
}

/// A part of an output; end: the stream has no more than this.
pub struct Part {
    pub data: Vec<u8>,
    pub end: bool,
    pub offset: u64,
}

/// Who asks, and how long it waits.
pub struct Patience<'a> {
    pub link: &'a Link,
    pub deadline: Option<Instant>,
}

impl Patience<'_> {
    /// poll(2) until `fd` is ready for `what`.
    fn wait(&self, fd: BorrowedFd, what: PollFlags) -> Reply<()> {
        loop {
            let mut fds =
                [PollFd::from_borrowed_fd(fd, what), PollFd::from_borrowed_fd(self.link.gate(), PollFlags::IN)];
            let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let limit = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, limit.as_ref()) {
                Ok(0) => return Err(fault(Code::DeadlineExceeded, "the call's time is over")),
                Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
                Ok(_) => return Err(fault(Code::Cancelled, "the connection has ended")),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).during(|| "poll"),
            }
        }
    }
}

/// Whether something can be read within `limit`.
pub fn ready_within(fd: &OwnedFd, limit: Duration) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Timespec::try_from(limit).ok().as_ref()) != Ok(0)
}

fn pipe() -> Reply<(OwnedFd, OwnedFd)> {
    drupe_sys::fd::pipe().during(|| "cannot make a pipe")
}

fn null() -> Reply<OwnedFd> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).during(|| "cannot open /dev/null")
}

impl Streams {
    /// Pipes for what is wanted of input, output and error, /dev/null for the rest: the process's ends.
    pub fn connect(&self, wanted: [bool; 3]) -> Reply<[OwnedFd; 3]> {
        let input = if wanted[0] {
            let (theirs, ours) = pipe()?;
            drupe_sys::fd::set_nonblocking(&ours).during(|| "pipe")?;
            self.input.lock().unwrap().sink = Some(ours);
            theirs
        } else {
            null()?
        };
        Ok([input, self.output(0, wanted[1])?, self.output(1, wanted[2])?])
    }

    fn output(&self, which: usize, wanted: bool) -> Reply<OwnedFd> {
        if !wanted {
            self.outputs[which].lock().unwrap().is_ended = true;
            return null();
        }
        let (ours, theirs) = pipe()?;
        self.outputs[which].lock().unwrap().source = Some(ours);
        Ok(theirs)
    }

    /// A terminal's master is input and output at once; there is no error stream.
    pub fn attach(&self, master: OwnedFd) -> Reply<()> {
        self.join(master.as_fd())?;
        let _ = self.terminal.set(master);
        Ok(())
    }

    /// The same of any descriptor that is both.
    pub fn join(&self, both: BorrowedFd) -> Reply<()> {
        let copy = || both.try_clone_to_owned().during(|| "cannot duplicate a descriptor");
        drupe_sys::fd::set_nonblocking(&both).during(|| "streams")?;
        self.input.lock().unwrap().sink = Some(copy()?);
        *self.outputs[0].lock().unwrap() = Output { source: Some(copy()?), ..Output::default() };
        self.outputs[1].lock().unwrap().is_ended = true;
        Ok(())
    }

    pub fn resize(&self, columns: u32, rows: u32) -> Reply<()> {
        let size = |value: u32| u16::try_from(value).map_err(|_| invalid(format!("{value} is no size of a terminal")));
        let (rows, columns) = (size(rows)?, size(columns)?);
        let terminal = self.terminal.get().ok_or_else(|| wrong_state("the process has no terminal"))?;
        drupe_sys::fd::set_window_size(terminal, rows, columns).during(|| "cannot resize the terminal")
    }

    /// Up to `max` bytes (0: a fair number) of output (0) or error (1) from `offset` on; waits until there are some.
    pub fn read(&self, which: i32, offset: u64, max: u32, patience: &Patience) -> Reply<Part> {
        let output = self.outputs.get(which as usize).ok_or_else(|| invalid(format!("there is no stream {which}")))?;
        let max = if max == 0 { DEFAULT_READ } else { (max as usize).min(MAX_READ) };
        let part = output.lock().unwrap().read(offset, max, patience);
        match part {
            Err(_) if self.given_up.load(Ordering::Acquire) => Ok(Part { data: Vec::new(), end: true, offset }),
            part => part,
        }
    }

    /// What a read finds from now on instead of an error is the end: a socket that was shut down answers what still
    /// comes with a reset, and is told so itself (tcp(7); RFC 1122, 4.2.2.13).
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Writes `data`, which begins at `offset` of the stream (None: where it stands); what was taken before is skipped.
    pub fn write(&self, data: &[u8], offset: Option<u64>, patience: &Patience) -> Reply<()> {
        let mut input = self.input.lock().unwrap();
        let begin = offset.unwrap_or(input.taken);
        let known = input
            .taken
            .checked_sub(begin)
            .ok_or_else(|| invalid(format!("standard input stands at {}, not yet at {begin}", input.taken)))?;
        let mut left = data.get(usize::try_from(known).unwrap_or(usize::MAX)..).unwrap_or_default();
        while !left.is_empty() {
            let sink = input.sink.as_ref().ok_or_else(|| wrong_state("standard input is closed"))?;
            patience.wait(sink.as_fd(), PollFlags::OUT)?;
            match rustix::io::write(sink, left) {
                Ok(count) => {
                    left = &left[count..];
                    input.taken += count as u64;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::PIPE | Errno::IO) => return Err(wrong_state("the process has closed its standard input")),
                Err(error) => return Err(error).during(|| "cannot write to standard input"),
            }
        }
        Ok(())
    }

    /// A terminal has no end of input that could be closed; a connection has one that its output outlives.
    pub fn close_input(&self) {
        if self.terminal.get().is_none() {
            if let Some(sink) = self.input.lock().unwrap().sink.take() {
                let _ = shutdown(&sink, Shutdown::Write); // of a pipe: ENOTSOCK
            }
        }
    }
}

impl Output {
    fn read(&mut self, offset: u64, max: usize, patience: &Patience) -> Reply<Part> {
        let skip = offset.checked_sub(self.offset).and_then(|skip| usize::try_from(skip).ok());
        let Some(skip) = skip.filter(|skip| *skip <= self.kept.len()) else {
            let last = self.offset + self.kept.len() as u64;
            return Err(invalid(format!("offset {offset} is not in what is kept, {} to {last}", self.offset)));
        };
        self.kept.drain(..skip);
        self.offset = offset;
        if self.kept.is_empty() && !self.is_ended {
            self.fill(max, patience)?;
        }
        let data = self.kept[..self.kept.len().min(max)].to_vec();
        Ok(Part { end: self.is_ended && data.len() == self.kept.len(), data, offset })
    }

    fn fill(&mut self, max: usize, patience: &Patience) -> Reply<()> {
        let source = self.source.as_ref().ok_or_else(|| wrong_state("the process was not started"))?;
        let mut buffer = vec![0; max];
        loop {
            patience.wait(source.as_fd(), PollFlags::IN)?;
            match rustix::io::read(source, &mut buffer) {
                // EIO: a terminal that nobody has open any more.
                Ok(0) | Err(Errno::IO) => break,
                Ok(count) => {
                    buffer.truncate(count);
                    buffer.shrink_to_fit();
                    self.kept = buffer;
                    return Ok(());
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error).during(|| "cannot read the output"),
            }
        }
        (self.source, self.is_ended, self.kept) = (None, true, Vec::new());
        Ok(())
    }
}
