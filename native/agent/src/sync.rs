//! Where a connection begins, on a line that does not tell: a virtio serial port or a tty, whose other end may have been
//! taken over in the middle of a frame, in both directions.
//!
//! A host begins with MARK and 16 bytes of its own choice; the agent forgets all before them and answers with the same;
//! the host skips what comes before that. On sockets a host may do so too, but need not.

use crate::streams::ready_within;
use rustix::io::Errno;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

const LABEL: &[u8; 16] = b"drupe agent sync";
pub const MARK_BYTES: usize = 1 + LABEL.len();
pub const TOKEN_BYTES: usize = 16;

/// How long the first bytes of what may be a mark are held back from a frame that they would complete.
const HOLD: Duration = Duration::from_millis(20);

/// 0xff, which ends few messages, and the label with its high bits set. Never a constant in a file: a copy of that file
/// into a guest would be taken for a mark.
pub fn mark() -> [u8; MARK_BYTES] {
    let high = std::hint::black_box(0x80);
    std::array::from_fn(|at| if at == 0 { 0xff } else { LABEL[at - 1] ^ high })
}

/// Reads a line up to the next mark; there it has an end, until `take_token`.
pub struct Marked {
    line: Arc<OwnedFd>,
    mark: [u8; MARK_BYTES],
    buffer: Vec<u8>,
    begin: usize,   // of what was not given yet
    scanned: usize, // up to where no mark is complete
    matched: usize, // bytes of a mark that end at `scanned`
    at_mark: bool,
}

impl Marked {
    pub fn new(line: Arc<OwnedFd>) -> Self {
        let buffer = Vec::with_capacity(16 << 10);
        Marked { line, mark: mark(), buffer, begin: 0, scanned: 0, matched: 0, at_mark: false }
    }

    /// Whether the end was a mark; and if so, goes on behind it. The token that followed it.
    pub fn take_token(&mut self) -> io::Result<Option<[u8; TOKEN_BYTES]>> {
        if !self.at_mark {
            return Ok(None);
        }
        self.at_mark = false;
        self.matched = 0;
        self.begin = self.scanned;
        let mut token = [0; TOKEN_BYTES];
        // Bytes of a token are not looked at for marks.
        for byte in &mut token {
            if self.begin == self.buffer.len() && self.fill()? == 0 {
                return Ok(None);
            }
            *byte = self.buffer[self.begin];
            self.begin += 1;
            self.scanned = self.begin;
        }
        Ok(Some(token))
    }

    fn fill(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.begin);
        self.scanned -= self.begin;
        self.begin = 0;
        let old = self.buffer.len();
        self.buffer.resize(old + (16 << 10), 0);
        let result = loop {
            match rustix::io::read(&*self.line, &mut self.buffer[old..]) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        self.buffer.truncate(old + result.as_ref().copied().unwrap_or(0));
        Ok(result?)
    }

    fn scan(&mut self) {
        while self.scanned < self.buffer.len() && !self.at_mark {
            let byte = self.buffer[self.scanned];
            self.scanned += 1;
            // The first byte of the mark is not in it again.
            self.matched = if byte == self.mark[self.matched] { self.matched + 1 } else { usize::from(byte == 0xff) };
            self.at_mark = self.matched == MARK_BYTES;
        }
    }
}

impl Read for Marked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            self.scan();
            let free = self.scanned - self.matched - self.begin;
            if free > 0 {
                let count = free.min(into.len());
                into[..count].copy_from_slice(&self.buffer[self.begin..self.begin + count]);
                self.begin += count;
                return Ok(count);
            }
            if self.at_mark {
                return Ok(0);
            }
            if self.matched > 0 && !ready_within(&self.line, HOLD) {
                self.matched = 0; // it was none
            } else if self.fill()? == 0 {
                if self.matched == 0 {
                    return Ok(0);
                }
                self.matched = 0; // what was held back comes before the end
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line() -> (Marked, std::fs::File) {
        let (ours, theirs) = drupe_sys::fd::pipe().unwrap();
        (Marked::new(Arc::new(ours)), theirs.into())
    }

    #[test]
    fn a_mark_ends_what_was_before_it() {
        let (mut marked, mut host) = line();
        let token = [7; TOKEN_BYTES];
        host.write_all(&[b"half a fr\xff".as_slice(), &mark(), &token, b"new"].concat()).unwrap();
        let mut old = Vec::new();
        marked.read_to_end(&mut old).unwrap();
        assert_eq!(old, b"half a fr\xff");
        assert_eq!(marked.take_token().unwrap(), Some(token));
        drop(host);
        let mut new = Vec::new();
        marked.read_to_end(&mut new).unwrap();
        assert_eq!((new.as_slice(), marked.take_token().unwrap()), (b"new".as_slice(), None));
    }

    #[test]
    fn what_only_looks_like_one_is_data() {
        let (mut marked, mut host) = line();
        let data = [&mark()[..MARK_BYTES - 1], b"x", &mark()[..3]].concat();
        host.write_all(&data).unwrap();
        drop(host);
        let mut read = Vec::new();
        marked.read_to_end(&mut read).unwrap();
        assert_eq!(read, data);
    }

    #[test]
    fn a_mark_may_come_in_pieces() {
        let (mut marked, mut host) = line();
        let writer = std::thread::spawn(move || {
            for byte in mark().iter().chain(&[9; TOKEN_BYTES]) {
                host.write_all(&[*byte]).unwrap();
            }
        });
        assert_eq!(marked.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(marked.take_token().unwrap(), Some([9; TOKEN_BYTES]));
        writer.join().unwrap();
    }
}
