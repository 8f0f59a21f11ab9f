//! The instructions of the guest's kernel in a machine whose memory is a copy of a saved machine's: the saved ones, which
//! all such machines share. The copy is mapped by others, too (virtiofsd), and has nothing there; none of them ever reads
//! it, as it holds nobody's data.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use crate::maps::Maps;

/// What QEMU has as the machine's memory (`memfd_create`).
const MEMORY: &str = "/memfd:machine";

/// Bytes of the machine's memory, which is `memory` in the saved machine.
pub struct Saved {
    range: Range<usize>,
    memory: RawFd,
}

impl Saved {
    /// `code=BEGIN-END` and `memory=DESCRIPTOR`; with nothing between begin and end there is none.
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (mut range, mut memory) = (None, None);
        for word in words {
            match word.split_once('=')? {
                ("code", value) => {
                    let (begin, end) = value.split_once('-')?;
                    range = Some(begin.parse().ok()?..end.parse().ok()?);
                }
                ("memory", value) => memory = value.parse().ok(),
                _ => return None,
            }
        }
        Some(Self { range: range?, memory: memory? })
    }

    /// Map them where this process has the machine's memory.
    ///
    /// # Safety
    /// Nobody has read that memory yet, and the descriptor is nobody else's.
    pub unsafe fn map(self, maps: &Maps) -> io::Result<()> {
        if self.range.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let memory = unsafe { File::from_raw_fd(self.memory) };
        let text = maps.text();
        let place = text.lines().find_map(|line| place(line, &self.range));
        let place = place.ok_or_else(|| io::Error::other("the machine's memory is not mapped"))?;
        let (all, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE);
        let (length, offset) = (self.range.len(), self.range.start as libc::off_t);
        // SAFETY: whole pages of one mapping, with the same content as they shall have.
        let mapped = unsafe { libc::mmap(place as *mut _, length, all, flags, memory.as_raw_fd(), offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// The address of these bytes, if the line is of a mapping with all of them:
/// `7f73a9000000-7f73ae000000 rw-s 00000000 00:01 1047 /memfd:machine (deleted)`.
fn place(line: &str, range: &Range<usize>) -> Option<usize> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [addresses, "rw-s", offset, _, _, MEMORY, ..] = words[..] else { return None };
    let (begin, end) = addresses.split_once('-')?;
    let number = |word| usize::from_str_radix(word, 16).ok();
    let (begin, end, offset) = (number(begin)?, number(end)?, number(offset)?);
    let has_all = offset <= range.start && range.end - offset <= end - begin;
    has_all.then(|| begin + (range.start - offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::IntoRawFd;

    const PAGE: usize = 4096;

    #[test]
    fn only_the_whole_range_of_the_machines_memory_has_a_place() {
        let line = "10000-20000 rw-s 00002000 00:01 7 /memfd:machine (deleted)";
        assert_eq!(place(line, &(0x3000..0x4000)), Some(0x11000));
        assert_eq!(place(line, &(0x2000..0x12000)), Some(0x10000));
        for range in [0x1000..0x3000, 0x2000..0x13000, 0x12000..0x13000] {
            assert_eq!(place(line, &range), None);
        }
        assert_eq!(place("10000-20000 rw-s 00000000 00:01 7 /memfd:other (deleted)", &(0..PAGE)), None);
        assert_eq!(place("10000-20000 rw-p 00000000 00:01 7 /memfd:machine (deleted)", &(0..PAGE)), None);
    }

    #[test]
    fn words_that_are_not_understood_are_refused() {
        assert!(Saved::parse(["code=0-0", "memory=0"].into_iter()).is_some_and(|saved| saved.range.is_empty()));
        for words in
            [&["code=0-0"][..], &["code=5", "memory=0"], &["code=a-b", "memory=0"], &["code=0-1", "memory=0", "x=y"]]
        {
            assert!(Saved::parse(words.iter().copied()).is_none(), "{words:?}");
        }
    }

    #[test]
    fn a_copy_has_the_saved_bytes_there_and_its_own_elsewhere() {
        let mut saved = tempfile();
        saved.write_all(&[7u8; 4 * PAGE]).expect("there is room");
        // SAFETY: a new file, mapped where the host likes.
        let copy = unsafe {
            let fd = libc::memfd_create(c"machine".as_ptr(), 0);
            assert_eq!(libc::ftruncate(fd, 4 * PAGE as i64), 0);
            let at = libc::mmap(std::ptr::null_mut(), 4 * PAGE, 3, libc::MAP_SHARED, fd, 0);
            assert_ne!(at, libc::MAP_FAILED);
            std::slice::from_raw_parts_mut(at.cast::<u8>(), 4 * PAGE)
        };
        let words = [format!("code={}-{}", PAGE, 3 * PAGE), format!("memory={}", saved.into_raw_fd())];
        let parsed = Saved::parse(words.iter().map(String::as_str)).expect("it is well formed");
        // SAFETY: nobody knows that memory yet.
        unsafe { parsed.map(&Maps::open().expect("proc is there")) }.expect("it can be mapped");
        assert_eq!([copy[0], copy[PAGE], copy[3 * PAGE - 1], copy[3 * PAGE]], [0, 7, 7, 0]);
        copy[PAGE] = 9; // its own from now on
        assert_eq!((copy[PAGE], copy[PAGE + 1]), (9, 7));
    }

    fn tempfile() -> File {
        // SAFETY: a new descriptor, ours.
        unsafe { File::from_raw_fd(libc::memfd_create(c"saved".as_ptr(), 0)) }
    }
}
