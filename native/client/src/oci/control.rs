//! One call on the daemon's control socket. Frames are a length (u32, big endian) and msgpack.

use drupe_sys::socket;
use serde_json::{json, Value};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const PROTOCOL: u32 = 1;
const MAX_FRAME: usize = 16 << 20;
const FDS_AT_ONCE: usize = 16;
/// A daemon that has just begun first looks after its pods.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
pub enum Trouble {
    /// Nobody was there, or it went away meanwhile: worth another try with a daemon that lives.
    Gone,
    Refused(String),
}

impl From<io::Error> for Trouble {
    fn from(_: io::Error) -> Self {
        Trouble::Gone
    }
}

/// A method of the control API with its parameters and descriptors. once: it changes something, and is not repeated once
/// a daemon may have heard it.
pub struct Question<'a> {
    pub method: &'a str,
    pub params: &'a Value,
    pub fds: Vec<(String, OwnedFd)>,
    pub once: bool,
}

/// Asks whoever listens at `path`.
pub fn ask(path: &str, question: &Question) -> Result<Value, Trouble> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Trouble::Refused(format!("may not use {path}: run as root")));
        }
        Err(_) => return Err(Trouble::Gone),
    };
    match talk(stream, question) {
        Err(Trouble::Gone) if question.once => Err(Trouble::Refused("the daemon went away in the middle of it".into())),
        outcome => outcome,
    }
}

fn talk(mut stream: UnixStream, question: &Question) -> Result<Value, Trouble> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let names: Vec<&str> = question.fds.iter().map(|(name, _)| name.as_str()).collect();
    let call = json!(["call", 1, question.method, question.params, names, null]);
    send(&mut stream, &[frame(&json!(["hello", PROTOCOL, []])), frame(&call)].concat(), &question.fds)?;
    loop {
        let mut said = receive(&mut stream)?;
        match said[0].as_str() {
            Some("hello") => {}
            Some("result") => return Ok(said[2].take()),
            Some("error") => return Err(Trouble::Refused(text(&said[2], "message").to_owned())),
            _ => return Err(Trouble::Refused("the daemon's answer is not understood".into())),
        }
    }
}

/// A text of an answer; "" when it has none of that name.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn frame(value: &Value) -> Vec<u8> {
    // JSON's types can all be encoded.
    let body = rmp_serde::to_vec(value).unwrap_or_default();
    [(body.len() as u32).to_be_bytes().as_slice(), &body].concat()
}

/// The descriptors travel with the first bytes, as many in a message as the daemon takes.
fn send(stream: &mut UnixStream, data: &[u8], fds: &[(String, OwnedFd)]) -> io::Result<()> {
    let mut sent = 0;
    for some in fds.chunks(FDS_AT_ONCE) {
        let some = some.iter().map(|(_, each)| each.try_clone()).collect::<io::Result<Vec<_>>>()?;
        socket::send(stream, &data[sent..=sent], &some)?;
        sent += 1;
    }
    stream.write_all(&data[sent..])
}

fn receive(stream: &mut UnixStream) -> io::Result<Value> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let size = u32::from_be_bytes(header) as usize;
    if size > MAX_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; size];
    stream.read_exact(&mut body)?;
    rmp_serde::from_slice(&body).map_err(|_| io::ErrorKind::InvalidData.into())
}
