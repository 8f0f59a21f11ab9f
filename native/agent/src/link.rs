//! One connection: whole frames out, and a word to all who wait when it ends.

use crate::dial::Dialled;
use crate::fault::Fault;
use crate::proto::ttrpc::{Response, Status};
use crate::ttrpc::{frame, DATA, MAX_DATA, NO_DATA, REMOTE_CLOSED, RESPONSE};
use crate::wire::Message;
use rustix::event::{eventfd, EventfdFlags};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

pub struct Link {
    out: Mutex<Box<dyn Write + Send>>,
    closed: AtomicBool,
    gate: OwnedFd,
    pub dialled: Dialled,
}

impl Link {
    pub fn new(out: Box<dyn Write + Send>) -> io::Result<Self> {
        let gate = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Link { out: Mutex::new(out), closed: AtomicBool::new(false), gate, dialled: Dialled::default() })
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Readable once the connection has ended: for poll(2) beside what is waited for.
    pub fn gate(&self) -> BorrowedFd<'_> {
        self.gate.as_fd()
    }

    /// Closes it, and waits for the frame that is being sent.
    pub fn finish(&self) {
        self.close();
        drop(self.out.lock());
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.gate, &1u64.to_ne_bytes());
    }

    /// Waits while the host does not read. Nothing is sent any more once the connection has ended.
    fn send(&self, bytes: &[u8]) {
        let mut out = self.out.lock().unwrap();
        if !self.is_closed() && out.write_all(bytes).is_err() {
            self.close();
        }
    }

    /// The answer of a call.
    pub fn answer(&self, stream: u32, payload: Vec<u8>) {
        self.respond(stream, Response { status: None, payload });
    }

    pub fn refuse(&self, stream: u32, fault: &Fault) {
        let status = Status { code: fault.code as i32, message: fault.words.clone(), details: Vec::new() };
        self.respond(stream, Response { status: Some(status), payload: Vec::new() });
    }

    fn respond(&self, stream: u32, response: Response) {
        let data = response.encode_to_vec();
        debug_assert!(data.len() <= MAX_DATA);
        self.send(&frame(stream, RESPONSE, 0, &data));
    }

    /// One more message of an answer that streams; false: nobody takes it any more.
    pub fn stream(&self, stream: u32, message: &impl Message) -> bool {
        self.send(&frame(stream, DATA, 0, &message.encode_to_vec()));
        !self.is_closed()
    }

    /// The end of an answer that streams.
    pub fn end_stream(&self, stream: u32) {
        self.send(&frame(stream, DATA, REMOTE_CLOSED | NO_DATA, &[]));
    }
}
