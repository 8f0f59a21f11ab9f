//! One connection of containerd's, without I/O: what was asked on it and is not answered yet, across daemons.

use crate::frames::{
    Assembler, Frame, Piece, AGAIN, REMOTE_CLOSED, REQUEST, RESOURCE_EXHAUSTED, RESPONSE, UNAVAILABLE,
};
use std::collections::BTreeMap;

/// Calls that one connection may have open, and the most that their requests may hold.
const MAX_CALLS: usize = 1024;
const MAX_HELD: usize = 16 << 20;
/// More than this is not read from one side while the other does not take it.
const MAX_WAITING: usize = 1 << 20;
/// Methods that are answered at the end of a task or a sandbox: containerd takes their failure for that end.
const WAITS: [&[u8]; 2] = [b"Wait", b"WaitSandbox"];
const GONE: &str = "drupe's daemon is not there";

/// Bytes on their way to a side that takes them when it likes.
#[derive(Default)]
pub struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    fn put(&mut self, frame: &Frame) {
        self.bytes.extend_from_slice(&frame.0);
    }

    pub fn waiting(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    pub fn took(&mut self, count: usize) {
        self.sent += count;
        if self.sent == self.bytes.len() {
            *self = Outgoing::default();
        } else if self.sent > MAX_WAITING {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    fn is_full(&self) -> bool {
        self.waiting().len() > MAX_WAITING
    }
}

/// A call without an answer.
struct Call {
    /// None: it streams, and cannot be asked a second time.
    request: Option<Frame>,
    sent: bool,
    /// It ends with its task and no sooner: its caller can wait for the next daemon, however long that takes.
    waits: bool,
}

impl Call {
    fn new(request: &Frame) -> Call {
        let streams = request.flags() != 0;
        Call {
            request: (!streams).then(|| request.clone()),
            sent: false,
            waits: !streams && request.method().is_some_and(|method| WAITS.contains(&method)),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Daemon {
    Serves,
    /// For a moment: requests wait for it.
    Away,
    /// For long: requests are refused.
    Missed,
}

pub struct Talk {
    pub to_client: Outgoing,
    pub to_daemon: Outgoing,
    from_client: Assembler,
    from_daemon: Assembler,
    calls: BTreeMap<u32, Call>,
    held: usize,
    daemon: Daemon,
}

impl Talk {
    pub fn new(missed: bool) -> Talk {
        Talk {
            to_client: Outgoing::default(),
            to_daemon: Outgoing::default(),
            from_client: Assembler::default(),
            from_daemon: Assembler::default(),
            calls: BTreeMap::new(),
            held: 0,
            daemon: if missed { Daemon::Missed } else { Daemon::Away },
        }
    }

    /// Whether more may be read from the client.
    pub fn takes_requests(&self) -> bool {
        !self.to_daemon.is_full() && !self.to_client.is_full()
    }

    /// Whether more may be read from the daemon.
    pub fn takes_answers(&self) -> bool {
        !self.to_client.is_full()
    }

    pub fn client_said(&mut self, bytes: &[u8]) {
        for piece in self.from_client.feed(bytes) {
            match piece {
                Piece::TooBig { stream, kind: REQUEST } => {
                    self.refuse(stream, RESOURCE_EXHAUSTED, "the request is over the limit of 4 MiB");
                }
                Piece::TooBig { .. } => {}
                Piece::Frame(frame) if frame.kind() == REQUEST => self.request(frame),
                Piece::Frame(frame) if self.calls.contains_key(&frame.stream()) => self.pass_on(&frame),
                Piece::Frame(_) => {}
            }
        }
    }

    fn request(&mut self, mut frame: Frame) {
        frame.set_flags(frame.flags() & !AGAIN);
        let stream = frame.stream();
        let mut call = Call::new(&frame);
        if self.calls.len() >= MAX_CALLS || self.held + frame.0.len() > MAX_HELD {
            return self.refuse(stream, RESOURCE_EXHAUSTED, "too many calls are open on this connection");
        }
        if self.daemon != Daemon::Serves && (call.request.is_none() || (self.daemon == Daemon::Missed && !call.waits)) {
            return self.refuse(stream, UNAVAILABLE, GONE);
        }
        call.sent = self.daemon == Daemon::Serves;
        self.pass_on(&frame);
        self.held += call.request.as_ref().map_or(0, |request| request.0.len());
        if let Some(before) = self.calls.insert(stream, call) {
            self.let_go(&before); // the client has used a number twice, and will be told
        }
    }

    fn pass_on(&mut self, frame: &Frame) {
        if self.daemon == Daemon::Serves {
            self.to_daemon.put(frame);
        }
    }

    pub fn daemon_said(&mut self, bytes: &[u8]) {
        for piece in self.from_daemon.feed(bytes) {
            match piece {
                Piece::TooBig { stream, .. } => {
                    self.refuse(stream, RESOURCE_EXHAUSTED, "the answer is over the limit of 4 MiB");
                }
                Piece::Frame(frame) => {
                    if frame.kind() == RESPONSE || frame.flags() & REMOTE_CLOSED != 0 {
                        self.answered(frame.stream());
                    }
                    self.to_client.put(&frame);
                }
            }
        }
    }

    fn answered(&mut self, stream: u32) {
        if let Some(call) = self.calls.remove(&stream) {
            self.let_go(&call);
        }
    }

    fn let_go(&mut self, call: &Call) {
        self.held -= call.request.as_ref().map_or(0, |request| request.0.len());
    }

    fn refuse(&mut self, stream: u32, code: u64, text: &str) {
        self.answered(stream);
        self.to_client.put(&Frame::refusal(stream, code, text));
    }

    // ── daemons come and go ──

    /// What a daemon had begun to say is worth nothing; what it was asked is asked of the next.
    pub fn daemon_left(&mut self) {
        self.daemon = Daemon::Away;
        self.from_daemon = Assembler::default();
        self.to_daemon = Outgoing::default();
        self.refuse_all(|call| call.request.is_none());
    }

    /// It has been away for long.
    pub fn daemon_is_missed(&mut self) {
        self.daemon = Daemon::Missed;
        self.refuse_all(|call| !call.waits);
    }

    fn refuse_all(&mut self, which: impl Fn(&Call) -> bool) {
        let streams: Vec<u32> = self.calls.iter().filter(|(_, call)| which(call)).map(|(stream, _)| *stream).collect();
        for stream in streams {
            self.refuse(stream, UNAVAILABLE, GONE);
        }
    }

    /// In the order of their numbers, which must grow on its connection, too.
    pub fn daemon_came(&mut self) {
        self.daemon = Daemon::Serves;
        for call in self.calls.values_mut() {
            let Some(request) = &call.request else { continue };
            let mut frame = request.clone();
            frame.set_flags(if call.sent { AGAIN } else { 0 });
            call.sent = true;
            self.to_daemon.put(&frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::put_bytes;

    fn request(stream: u32, method: &str) -> Frame {
        let mut data = Vec::new();
        put_bytes(&mut data, 2, method.as_bytes());
        Frame::new(stream, REQUEST, 0, &data)
    }

    fn again(mut frame: Frame) -> Vec<u8> {
        frame.set_flags(AGAIN);
        frame.0
    }

    fn drained(side: &mut Outgoing) -> Vec<u8> {
        let bytes = side.waiting().to_vec();
        side.took(bytes.len());
        bytes
    }

    #[test]
    fn what_was_not_answered_is_asked_again() {
        let mut talk = Talk::new(false);
        talk.daemon_came();
        talk.client_said(&[request(1, "Wait").0, request(3, "State").0].concat());
        assert_eq!(drained(&mut talk.to_daemon), [request(1, "Wait").0, request(3, "State").0].concat());
        let answer = Frame::new(3, RESPONSE, 0, b"yes");
        talk.daemon_said(&answer.0);
        assert_eq!(drained(&mut talk.to_client), answer.0);
        talk.daemon_left();
        talk.client_said(&request(5, "Kill").0);
        talk.daemon_came();
        assert_eq!(drained(&mut talk.to_daemon), [again(request(1, "Wait")), request(5, "Kill").0].concat());
        assert_eq!(drained(&mut talk.to_client), b"");
    }

    #[test]
    fn half_an_answer_never_arrives() {
        let mut talk = Talk::new(false);
        talk.daemon_came();
        talk.client_said(&request(1, "Start").0);
        let answer = Frame::new(1, RESPONSE, 0, b"answer");
        talk.daemon_said(&answer.0[..12]);
        talk.daemon_left();
        talk.daemon_came();
        talk.daemon_said(&answer.0);
        assert_eq!(drained(&mut talk.to_client), answer.0);
    }

    #[test]
    fn a_daemon_that_stays_away_is_answered_for_but_ends_are_waited_for() {
        let mut talk = Talk::new(false);
        talk.client_said(&[request(1, "Wait").0, request(3, "Kill").0, request(7, "WaitSandbox").0].concat());
        assert_eq!(talk.to_client.waiting(), b"");
        talk.daemon_is_missed();
        talk.client_said(&request(9, "State").0);
        let refused = [3, 9].map(|stream| Frame::refusal(stream, UNAVAILABLE, GONE).0);
        assert_eq!(drained(&mut talk.to_client), refused.concat());
        talk.daemon_came();
        assert_eq!(drained(&mut talk.to_daemon), [request(1, "Wait").0, request(7, "WaitSandbox").0].concat());
    }

    #[test]
    fn streams_end_with_their_daemon() {
        let mut talk = Talk::new(false);
        talk.daemon_came();
        let opened = Frame::new(1, REQUEST, 2, b"");
        talk.client_said(&opened.0);
        talk.client_said(&Frame::new(1, 3, 0, b"data").0);
        drained(&mut talk.to_daemon);
        talk.daemon_left();
        assert_eq!(drained(&mut talk.to_client), Frame::refusal(1, UNAVAILABLE, GONE).0);
        talk.daemon_came();
        talk.client_said(&Frame::new(1, 3, 0, b"more").0);
        assert_eq!(drained(&mut talk.to_daemon), b"");
    }

    #[test]
    fn a_client_cannot_fill_the_memory() {
        let mut talk = Talk::new(false);
        for number in 0..2000u32 {
            talk.client_said(&request(2 * number + 1, "State").0);
        }
        assert_eq!(talk.calls.len(), MAX_CALLS);
        let mut talk = Talk::new(false);
        talk.daemon_came();
        for number in 0..30u32 {
            talk.client_said(&Frame::new(5001 + 2 * number, REQUEST, 0, &vec![0; 1 << 20]).0);
        }
        assert!(!talk.takes_requests());
        assert!(talk.held > MAX_HELD - (2 << 20) && talk.held <= MAX_HELD);
    }
}
