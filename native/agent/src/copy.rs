//! Files of a container in and out, as tar streams.

use crate::fault::{fault, invalid, plain, Code, During, Reply};
use crate::proto::guest::{CopyChunk, CopyOutRequest};
use crate::proto::wellknown::Empty;
use crate::server::{decode, unary, Call, Outcome};
use crate::{inside, lifecycle};
use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc::Receiver;
use std::sync::Mutex;

const CHUNK: usize = 256 << 10;

/// The first message of the stream says where to: a directory that is there.
pub fn copy_in(call: &Call) -> Reply<Outcome> {
    let first = call.inbox.lock().unwrap().recv();
    let first: CopyChunk = decode(&first.map_err(|_| invalid("nothing was sent"))?)?;
    let pid = lifecycle::living(&call.agent, &first.id)?;
    let path = first.path.clone();
    let mut source = Incoming { inbox: &call.inbox, part: first.data, at: 0 };
    inside::run(pid, || unpack(&mut source, &path))?;
    unary(&[], |_: Empty| Ok(Empty {}))
}

fn unpack(source: &mut Incoming, path: &str) -> Reply<()> {
    if !Path::new(path).is_dir() {
        return Err(fault(Code::NotFound, format!("there is no directory {path:?} in the container")));
    }
    let mut archive = tar::Archive::new(&mut *source);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.unpack(path).map_err(|error| broken(&error, path))?;
    // What pads the end: the sender must get rid of it.
    io::copy(source, &mut io::sink()).map(drop).during(|| "cannot read the rest")
}

fn broken(error: &io::Error, path: &str) -> crate::fault::Fault {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    invalid(format!("cannot unpack into {path}: {}{cause}", plain(error)))
}

/// A file or tree, under its own name.
pub fn copy_out(call: &Call, request: &CopyOutRequest) -> Reply<Outcome> {
    let pid = lifecycle::living(&call.agent, &request.id)?;
    let mut sink = Outgoing { call, part: Vec::with_capacity(CHUNK) };
    inside::run(pid, || pack(&mut sink, Path::new(&request.path), request.follow_symlink))?;
    Ok(Outcome::Streamed)
}

fn pack(sink: &mut Outgoing, path: &Path, follow: bool) -> Reply<()> {
    let words = || format!("cannot read {}", path.display());
    let source = if follow { fs::canonicalize(path).during(words)? } else { path.to_path_buf() };
    let name = path.file_name().map_or(Path::new("."), Path::new);
    let metadata = fs::symlink_metadata(&source).during(words)?;
    let mut builder = tar::Builder::new(&mut *sink);
    builder.follow_symlinks(false);
    builder.mode(tar::HeaderMode::Complete);
    let added = if metadata.is_dir() {
        builder.append_dir_all(name, &source)
    } else {
        builder.append_path_with_name(&source, name)
    };
    added.and_then(|()| builder.finish()).during(words)?;
    drop(builder);
    sink.flush().during(|| "the connection has ended")
}

/// The data of messages, one after the other.
struct Incoming<'a> {
    inbox: &'a Mutex<Receiver<Vec<u8>>>,
    part: Vec<u8>,
    at: usize,
}

impl Read for Incoming<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() {
            let Ok(message) = self.inbox.lock().unwrap().recv() else { return Ok(0) };
            let chunk: CopyChunk = decode(&message).map_err(|fault| io::Error::other(fault.words))?;
            (self.part, self.at) = (chunk.data, 0);
        }
        let count = into.len().min(self.part.len() - self.at);
        into[..count].copy_from_slice(&self.part[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Bytes as messages of a fair size.
struct Outgoing<'a> {
    call: &'a Call,
    part: Vec<u8>,
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK - self.part.len());
        self.part.extend_from_slice(&bytes[..count]);
        if self.part.len() == CHUNK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        let chunk = CopyChunk { data: std::mem::take(&mut self.part), ..CopyChunk::default() };
        match self.call.link.stream(self.call.stream, &chunk) {
            true => Ok(()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}
