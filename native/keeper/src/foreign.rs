//! Descriptors that a client passed: a terminal, a pipe, a socket or a file that other processes share.
//! They must not be set to O_NONBLOCK, which belongs to all who share the open file description, and must not block us.

use drupe_sys::epoll::{self, Epoll, Events};
use drupe_sys::{fd, socket};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// MSG_DONTWAIT does it.
    Socket,
    /// read(2) and write(2) on a description that does not block, or on a regular file.
    File,
}

/// A descriptor for the same thing whose reads and writes do not wait. Pipes and terminals are opened anew through /proc,
/// which gives a description of our own.
pub fn own(fd: OwnedFd, writable: bool) -> io::Result<(OwnedFd, Kind)> {
    let file = File::from(fd);
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_socket() {
        return Ok((file.into(), Kind::Socket));
    }
    // /dev/ptmx opened anew would be another pty.
    let ptmx = kind.is_char_device() && metadata.rdev() == libc::makedev(5, 2);
    if kind.is_fifo() || (kind.is_char_device() && !ptmx) {
        let mut options = OpenOptions::new();
        options.read(!writable).write(writable).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        if let Ok(opened) = options.open(&path) {
            if !writable && kind.is_fifo() && has_hung_up(&file) {
                // A writer that comes and goes: now our description has the end, too.
                drop(OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path));
            }
            return Ok((opened.into(), Kind::File));
        }
    }
    if !kind.is_file() {
        fd::set_nonblocking(&file)?;
    }
    Ok((file.into(), Kind::File))
}

/// Whether all who wrote to a FIFO have gone. A description opened after that tells of no end before somebody else has come
/// (fifo(7); the kernel's pipe_poll compares who has been there since).
fn has_hung_up(file: &File) -> bool {
    let look = || {
        let epoll = Epoll::new()?;
        epoll.add(file, 0, 0)?;
        let mut events = Events::with_capacity(1);
        epoll.wait(&mut events, 0)?;
        let hung_up = events.iter().any(|(_, bits)| bits & epoll::HUP != 0);
        io::Result::Ok(hung_up)
    };
    look().unwrap_or(false)
}

pub fn read(mut file: &File, kind: Kind, buffer: &mut [u8]) -> io::Result<usize> {
    match kind {
        Kind::Socket => socket::receive_bytes(file, buffer),
        Kind::File => file.read(buffer),
    }
}

pub fn write(mut file: &File, kind: Kind, data: &[u8]) -> io::Result<usize> {
    match kind {
        Kind::Socket => socket::send_bytes(file, data),
        Kind::File => file.write(data),
    }
}

/// Bytes that wait for room at their destination; memory is held only while there are any.
#[derive(Default)]
pub struct Pending {
    bytes: Vec<u8>,
    start: usize,
}

impl Pending {
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes `data` after what waits already; keeps what finds no room. Errors: the destination is gone.
    pub fn push(&mut self, file: &File, kind: Kind, data: &[u8]) -> io::Result<()> {
        let done = if self.is_empty() { write_all(file, kind, data)? } else { 0 };
        self.bytes.extend_from_slice(&data[done..]);
        Ok(())
    }

    /// Writes what waits, as far as there is room.
    pub fn flush(&mut self, file: &File, kind: Kind) -> io::Result<()> {
        self.start += write_all(file, kind, &self.bytes[self.start..])?;
        if self.is_empty() {
            *self = Pending::default();
        }
        Ok(())
    }
}

/// Writes until there is no more room: the number of bytes that went.
fn write_all(file: &File, kind: Kind, data: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < data.len() {
        match write(file, kind, &data[done..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use drupe_sys::fd::pipe;

    #[test]
    fn a_full_pipe_keeps_the_rest_and_its_other_users_still_block() {
        let (reader, writer) = pipe().unwrap();
        let shared = writer.try_clone().unwrap();
        let (own, kind) = own(writer, true).unwrap();
        let file = File::from(own);
        let data: Vec<u8> = (0..200_000u32).map(|number| number as u8).collect();
        let mut pending = Pending::default();
        pending.push(&file, kind, &data).unwrap();
        assert_eq!(pending.len(), data.len() - 65_536);
        let mut reader = File::from(reader);
        let mut got = Vec::new();
        while got.len() < data.len() {
            let mut buffer = [0; 50_000];
            let count = reader.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            pending.flush(&file, kind).unwrap();
        }
        assert_eq!(got, data);
        assert_eq!(pending.bytes.capacity(), 0);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", shared.as_raw_fd())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        assert_eq!(i32::from_str_radix(flags, 8).unwrap() & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn a_writer_that_has_gone_before_is_an_end() {
        let name = std::env::temp_dir().join(format!("drupe-fifo-{}", std::process::id()));
        assert!(std::process::Command::new("mkfifo").arg(&name).status().unwrap().success());
        let nonblocking = |write: bool| {
            OpenOptions::new().read(!write).write(write).custom_flags(libc::O_NONBLOCK).open(&name).unwrap()
        };
        let waits = own(nonblocking(false).into(), false).unwrap().0;
        assert!(!has_hung_up(&waits.into()), "nobody has come yet");
        let reader = nonblocking(false);
        nonblocking(true).write_all(b"piped").unwrap();
        let mut file = File::from(own(reader.into(), false).unwrap().0);
        let mut got = [0; 10];
        assert_eq!(file.read(&mut got).unwrap(), 5);
        assert!(has_hung_up(&file));
        std::fs::remove_file(&name).unwrap();
    }

    #[test]
    fn a_closed_reader_is_an_error() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        assert!(Pending::default().push(&File::from(writer), Kind::File, b"x").is_err());
    }
}
