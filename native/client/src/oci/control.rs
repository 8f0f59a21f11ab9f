//! One call on the daemon's control socket. Frames are a length (u32, big endian) and msgpack.

use drupe_sys::socket;
use serde_json::{json, Value};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

const PROTOCOL: u32 = 1;
const MAX_FRAME: usize = 16 << 20;
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

/// A method of the control API with its parameters. root: it takes our "/" along.
pub struct Question<'a> {
    pub method: &'a str,
    pub params: &'a Value,
    pub root: bool,
}

/// Asks whoever listens at `path`. What is asked here may be repeated.
pub fn ask(path: &str, question: &Question) -> Result<Value, Trouble> {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Trouble::Refused(format!("may not use {path}: run as root")));
        }
        Err(_) => return Err(Trouble::Gone),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let names: &[&str] = if question.root { &["root"] } else { &[] };
    let call = json!(["call", 1, question.method, question.params, names, null]);
    send(&mut stream, &[frame(&json!(["hello", PROTOCOL, []])), frame(&call)].concat(), question.root)?;
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

/// The descriptor travels with the first bytes.
fn send(stream: &mut UnixStream, data: &[u8], root: bool) -> io::Result<()> {
    if !root {
        return stream.write_all(data);
    }
    let root = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open("/")?;
    let first = data.len().min(4096);
    socket::send(stream, &data[..first], &[OwnedFd::from(root)])?;
    stream.write_all(&data[first..])
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
