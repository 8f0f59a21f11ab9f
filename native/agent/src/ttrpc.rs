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

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut bytes: &[u8]) -> io::Result<Vec<Frame>> {
        let mut found = Vec::new();
        while let Some(frame) = read_frame(&mut bytes)? {
            found.push(frame);
        }
        Ok(found)
    }

    #[test]
    fn frames_are_read_as_they_are_written() {
        let bytes = [frame(1, REQUEST, REMOTE_CLOSED, b"abc"), frame(u32::MAX, DATA, NO_DATA, b"")].concat();
        let found = all(&bytes).unwrap();
        assert_eq!((found[0].stream, found[0].kind, found[0].flags), (1, REQUEST, REMOTE_CLOSED));
        assert_eq!(found[0].data.as_deref(), Some(b"abc".as_slice()));
        assert_eq!((found[1].stream, found[1].kind, found[1].flags), (u32::MAX, DATA, NO_DATA));
        assert_eq!(&bytes[..4], &[0, 0, 0, 3], "lengths are big-endian");
    }

    #[test]
    fn what_follows_a_frame_over_the_limit_is_found() {
        let over = [&(MAX_DATA as u32 + 1).to_be_bytes()[..], &[0, 0, 0, 7, DATA, 0], &vec![0; MAX_DATA + 1]].concat();
        let found = all(&[over, frame(9, DATA, 0, b"next")].concat()).unwrap();
        assert_eq!((found[0].stream, found[0].data.is_none()), (7, true));
        assert_eq!((found[1].stream, found[1].data.as_deref()), (9, Some(b"next".as_slice())));
    }

    #[test]
    fn an_end_within_a_frame_is_an_error_wherever_it_is() {
        let bytes = frame(1, REQUEST, 0, b"abcdef");
        for end in 1..bytes.len() {
            assert_eq!(all(&bytes[..end]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
        assert!(all(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_header_alone_takes_no_memory() {
        struct Endless(usize);
        impl Read for Endless {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                assert!(into.len() <= 256 << 10, "asked for {} bytes at once", into.len());
                self.0 += 1;
                let header = [0, 0x3f, 0xff, 0xff, 0, 0, 0, 1, 1, 0];
                match self.0 {
                    1 => into[..1].copy_from_slice(&header[..1]),
                    2 => into[..9].copy_from_slice(&header[1..]),
                    _ => return Ok(0),
                }
                Ok(if self.0 == 1 { 1 } else { 9 })
            }
        }
        assert_eq!(read_frame(&mut Endless(0)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
