//! Frames of ttrpc: a header of ten bytes, big-endian (length of data u32, stream id u32, kind u8, flags u8), and data.

use crate::message;

pub const REQUEST: u8 = 1;
pub const RESPONSE: u8 = 2;
pub const REMOTE_CLOSED: u8 = 1;
/// Ours, towards the daemon alone: this request was sent before, to a daemon that did not answer it.
pub const AGAIN: u8 = 0x80;
pub const MAX_DATA: usize = 4 << 20;
const HEADER: usize = 10;
const FLAGS: usize = 9;

/// google.rpc.Code.
pub const RESOURCE_EXHAUSTED: u64 = 8;
pub const UNAVAILABLE: u64 = 14;

/// All of it, header included.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame(pub Vec<u8>);

impl Frame {
    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    pub fn stream(&self) -> u32 {
        self.number(4)
    }

    pub fn kind(&self) -> u8 {
        self.0[8]
    }

    pub fn flags(&self) -> u8 {
        self.0[FLAGS]
    }

    pub fn set_flags(&mut self, flags: u8) {
        self.0[FLAGS] = flags;
    }

    /// The method that a request names.
    pub fn method(&self) -> Option<&[u8]> {
        let texts = message::texts(&self.0[HEADER..])?;
        texts.into_iter().find(|(field, _)| *field == 2).map(|(_, text)| text)
    }

    /// A response that says why not.
    pub fn refusal(stream: u32, code: u64, text: &str) -> Frame {
        let (mut status, mut response) = (Vec::new(), Vec::new());
        message::put_number(&mut status, 1, code);
        message::put_bytes(&mut status, 2, text.as_bytes());
        message::put_bytes(&mut response, 1, &status);
        Frame::new(stream, RESPONSE, 0, &response)
    }

    pub fn new(stream: u32, kind: u8, flags: u8, data: &[u8]) -> Frame {
        let mut bytes = Vec::with_capacity(HEADER + data.len());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(data);
        Frame(bytes)
    }
}

/// What bytes turn out to be.
#[derive(Debug, PartialEq)]
pub enum Piece {
    Frame(Frame),
    /// A frame over the limit, told by its header; its data is dropped.
    TooBig {
        stream: u32,
        kind: u8,
    },
}

/// Bytes in, frames out, for any split of the stream.
#[derive(Default)]
pub struct Assembler {
    buffer: Vec<u8>,
    skip: usize,
}

impl Assembler {
    pub fn feed(&mut self, mut bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let wanted = match self.skip {
                0 => self.missing(),
                skip => skip,
            };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            bytes = later;
            if self.skip > 0 {
                self.skip -= now.len();
                continue;
            }
            self.buffer.extend_from_slice(now);
            pieces.extend(self.complete());
        }
        pieces
    }

    /// How much of a header, or of a frame whose header is there.
    fn missing(&self) -> usize {
        match self.buffer.get(..4) {
            Some(_) if self.buffer.len() >= HEADER => HEADER + self.length() - self.buffer.len(),
            _ => HEADER - self.buffer.len(),
        }
    }

    fn length(&self) -> usize {
        u32::from_be_bytes([self.buffer[0], self.buffer[1], self.buffer[2], self.buffer[3]]) as usize
    }

    fn complete(&mut self) -> Option<Piece> {
        if self.buffer.len() < HEADER {
            return None;
        }
        let length = self.length();
        if length > MAX_DATA {
            self.skip = length;
            let header = Frame(std::mem::take(&mut self.buffer));
            return Some(Piece::TooBig { stream: header.stream(), kind: header.kind() });
        }
        if self.buffer.len() < HEADER + length {
            return None;
        }
        Some(Piece::Frame(Frame(std::mem::take(&mut self.buffer))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_split_gives_the_same_frames() {
        let frames =
            [Frame::new(1, REQUEST, 0, b"abc"), Frame::new(3, REQUEST, 1, b""), Frame::new(5, 9, 2, &[7; 300])];
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.0.clone()).collect();
        for size in 1..bytes.len() {
            let mut assembler = Assembler::default();
            let pieces: Vec<Piece> = bytes.chunks(size).flat_map(|part| assembler.feed(part)).collect();
            assert_eq!(pieces, frames.clone().map(Piece::Frame));
        }
    }

    #[test]
    fn what_is_too_big_is_skipped() {
        let mut bytes = Frame::new(7, REQUEST, 0, b"").0;
        bytes[..4].copy_from_slice(&(MAX_DATA as u32 + 1).to_be_bytes());
        bytes.extend(vec![0; MAX_DATA + 1]);
        bytes.extend(Frame::new(9, REQUEST, 0, b"x").0);
        let mut assembler = Assembler::default();
        let pieces: Vec<Piece> = bytes.chunks(100_000).flat_map(|part| assembler.feed(part)).collect();
        assert_eq!(pieces, [Piece::TooBig { stream: 7, kind: REQUEST }, Piece::Frame(Frame::new(9, REQUEST, 0, b"x"))]);
    }

    #[test]
    fn the_method_is_read() {
        let mut request = Vec::new();
        message::put_bytes(&mut request, 1, b"containerd.task.v2.Task");
        message::put_bytes(&mut request, 2, b"Wait");
        assert_eq!(Frame::new(1, REQUEST, 0, &request).method(), Some(&b"Wait"[..]));
        assert_eq!(Frame::new(1, REQUEST, 0, b"\xff\xff").method(), None);
    }
}
