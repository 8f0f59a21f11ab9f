//! Calls of one connection: read in order, run side by side, cancelled when it ends.

use crate::agent::Agent;
use crate::fault::{fault, invalid, Code, Fault, Reply};
use crate::link::Link;
use crate::proto::ttrpc::Request;
use crate::ttrpc::{read_frame, Frame, DATA, NO_DATA, REMOTE_CLOSED, REQUEST};
use crate::wire::Message;
use crate::{guest, task};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MAX_CALLS: usize = 256;
/// Messages of a stream that wait for their call; the connection waits when there are more.
const INBOX: usize = 8;

/// One call. inbox: messages that stream in, after the request; it ends when the caller has sent all, or is gone.
pub struct Call {
    pub agent: Arc<Agent>,
    pub link: Arc<Link>,
    pub stream: u32,
    pub deadline: Option<Instant>,
    #[allow(dead_code, reason = "of CopyIn, which is to come")]
    pub inbox: Mutex<Receiver<Vec<u8>>>,
}

/// What a call ends with: an answer, or the end of those that it has streamed.
pub enum Outcome {
    Answer(Vec<u8>),
    Streamed,
}

/// Decodes the request, encodes the answer.
pub fn unary<Q: Message + Default, A: Message>(payload: &[u8], work: impl FnOnce(Q) -> Reply<A>) -> Reply<Outcome> {
    Ok(Outcome::Answer(work(decode(payload)?)?.encode_to_vec()))
}

pub fn decode<M: Message + Default>(payload: &[u8]) -> Reply<M> {
    M::decode(payload).map_err(|error| invalid(format!("not the message of this method: {error}")))
}

struct Connection {
    agent: Arc<Agent>,
    link: Arc<Link>,
    last: u32,
    calls: Arc<AtomicUsize>,
    inboxes: HashMap<u32, SyncSender<Vec<u8>>>,
}

/// Serves one connection until it ends.
pub fn serve(agent: &Arc<Agent>, reader: &mut impl Read, writer: Box<dyn Write + Send>) -> std::io::Result<()> {
    let link = Arc::new(Link::new(writer)?);
    let calls = Arc::new(AtomicUsize::new(0));
    let inboxes = HashMap::new();
    let mut connection = Connection { agent: agent.clone(), link: link.clone(), last: 0, calls, inboxes };
    let result = loop {
        match read_frame(reader) {
            Ok(Some(frame)) => connection.take(frame),
            Ok(None) => break Ok(()),
            // In the middle of a frame: so ends the line of a host that was killed.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    link.close();
    agent.wake();
    link.finish();
    result
}

impl Connection {
    fn take(&mut self, frame: Frame) {
        let stream = frame.stream;
        let result = match frame.kind {
            REQUEST => self.begin(frame),
            DATA => self.data(frame),
            _ => Ok(()),
        };
        if let Err(fault) = result {
            self.link.refuse(stream, &fault);
        }
    }

    fn begin(&mut self, frame: Frame) -> Result<(), Fault> {
        if frame.stream % 2 == 0 || frame.stream <= self.last {
            return Err(invalid(format!("stream id {} is even, or not above {}", frame.stream, self.last)));
        }
        self.last = frame.stream;
        let data = frame.data.ok_or_else(too_big)?;
        let request: Request = decode(&data)?;
        if request.service == guest::NAME && request.method == "Ping" {
            self.link.answer(frame.stream, Vec::new()); // by this thread itself: nothing else can be late with it
            return Ok(());
        }
        if self.calls.load(Ordering::Relaxed) >= MAX_CALLS {
            return Err(fault(Code::ResourceExhausted, format!("{MAX_CALLS} calls are open on this connection")));
        }
        let (sender, inbox) = sync_channel(INBOX);
        if frame.flags & REMOTE_CLOSED == 0 && takes_stream(&request) {
            self.inboxes.insert(frame.stream, sender);
        }
        let limit = u64::try_from(request.timeout_nano).ok().filter(|limit| *limit > 0);
        let call = Call {
            agent: self.agent.clone(),
            link: self.link.clone(),
            stream: frame.stream,
            deadline: limit.and_then(|limit| Instant::now().checked_add(Duration::from_nanos(limit))),
            inbox: Mutex::new(inbox),
        };
        self.calls.fetch_add(1, Ordering::Relaxed);
        let calls = self.calls.clone();
        let started = self.agent.pool.run(move || {
            run(&call, &request);
            calls.fetch_sub(1, Ordering::Relaxed);
        });
        started.map_err(|error| {
            self.calls.fetch_sub(1, Ordering::Relaxed);
            fault(Code::ResourceExhausted, format!("no thread for the call: {error}"))
        })
    }

    fn data(&mut self, frame: Frame) -> Result<(), Fault> {
        let Some(inbox) = self.inboxes.get(&frame.stream) else { return Ok(()) };
        let gone = match frame.data {
            None => {
                self.inboxes.remove(&frame.stream);
                return Err(too_big());
            }
            Some(_) if frame.flags & NO_DATA != 0 => false,
            Some(data) => inbox.send(data).is_err(), // the call has ended: its answer said why
        };
        if gone || frame.flags & REMOTE_CLOSED != 0 {
            self.inboxes.remove(&frame.stream);
        }
        Ok(())
    }
}

fn too_big() -> Fault {
    fault(Code::ResourceExhausted, format!("a message is over the limit of {} bytes", crate::ttrpc::MAX_DATA))
}

fn takes_stream(request: &Request) -> bool {
    request.service == guest::NAME && request.method == "CopyIn"
}

fn run(call: &Call, request: &Request) {
    let result = match request.service.as_str() {
        guest::NAME => guest::call(call, &request.method, &request.payload),
        task::NAME => task::call(call, &request.method, &request.payload),
        other => Err(fault(Code::Unimplemented, format!("there is no service {other:?} here"))),
    };
    match result {
        Ok(Outcome::Answer(payload)) => call.link.answer(call.stream, payload),
        Ok(Outcome::Streamed) => call.link.end_stream(call.stream),
        Err(fault) => call.link.refuse(call.stream, &fault),
    }
}
