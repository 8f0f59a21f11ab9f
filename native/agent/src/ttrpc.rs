//! ttrpc's frames: a header of ten bytes (length u32, stream u32, kind u8, flags u8; big-endian) and that much data.
//! https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md

use std::io::{self, Read};

pub const MAX_DATA: usize = 4 << 20;
pub const REQUEST: u8 = 1;
pub const RESPONSE: u8 = 2;
pub const DATA: u8 = 3;
pub const REMOTE_CLOSED: u8 = 1;
pub const NO_DATA: u8 = 4;

/// data: None for a frame over the limit, whose bytes were skipped.
#[derive(Debug)]
pub struct Frame {
    pub stream: u32,
    pub kind: u8,
    pub flags: u8,
    pub data: Option<Vec<u8>>,
}

/// The next frame; None when the stream has ended between two.
pub fn read_frame(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; 10];
    if from.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..])?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (size, stream, kind, flags) = (word(0) as usize, word(4), header[8], header[9]);
    let mut part = from.take(size as u64);
    if size > MAX_DATA {
        io::copy(&mut part, &mut io::sink())?;
        return Ok(Some(Frame { stream, kind, flags, data: None }));
    }
    // Grows with what arrives: a header alone must not take memory.
    let mut data = Vec::with_capacity(size.min(64 << 10));
    part.read_to_end(&mut data)?;
    if data.len() < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame { stream, kind, flags, data: Some(data) }))
}

/// The bytes of a frame.
pub fn frame(stream: u32, kind: u8, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10 + data.len());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(data);
    bytes
}
