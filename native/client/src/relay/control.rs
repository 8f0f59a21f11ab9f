//! What the daemon and we say to each other: packets of text, a descriptor with some of ours.
//!
//! It says `hello 1`, `listen NAME` (it serves what connects at that socket of our directory), `end` (nobody will need us
//! any more). We answer `ok …` or `error …`, in order, and say `connection NAME` with one end of a pair of sockets.

use drupe_sys::socket;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

pub const PROTOCOL: u32 = 1;
const MAX_PACKET: usize = 512;

pub enum Order {
    Hello,
    Listen(String),
    End,
    Unknown(String),
}

impl Order {
    fn read(packet: &[u8]) -> Order {
        let text = String::from_utf8_lossy(packet);
        match text.split_once(' ').unwrap_or((&text, "")) {
            ("hello", version) if version == PROTOCOL.to_string() => Order::Hello,
            ("hello", version) => {
                Order::Unknown(format!("the daemon speaks protocol {version}, this relay speaks {PROTOCOL}"))
            }
            ("listen", name) if is_name(name) => Order::Listen(name.to_owned()),
            ("end", "") => Order::End,
            _ => Order::Unknown(format!("unknown order {text:?}")),
        }
    }
}

/// Of a file in our directory.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/') && name.len() < 100
}

/// A daemon's connection.
pub struct Control {
    pub fd: OwnedFd,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Control {
    pub fn new(fd: OwnedFd) -> Control {
        Control { fd, queue: VecDeque::new() }
    }

    /// Reads what is there; false: the daemon has gone.
    pub fn receive(&self, orders: &mut Vec<Order>) -> bool {
        let mut buffer = [0; MAX_PACKET];
        loop {
            match socket::receive(&self.fd, &mut buffer) {
                Ok(received) if received.length == 0 => return false,
                Ok(received) => orders.push(Order::read(&buffer[..received.length])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// In order, as the daemon takes it; its end is told by `receive`.
    pub fn send(&mut self, text: String, fd: Option<OwnedFd>) {
        self.queue.push_back((text.into_bytes(), fd.into_iter().collect()));
        self.flush();
    }

    /// False: the daemon has gone.
    pub fn flush(&mut self) -> bool {
        while let Some((text, fds)) = self.queue.front() {
            match socket::send(&self.fd, text, fds) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    pub fn waits(&self) -> bool {
        !self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read() {
        assert!(matches!(Order::read(b"hello 1"), Order::Hello));
        assert!(matches!(Order::read(b"listen 0a.sock"), Order::Listen(name) if name == "0a.sock"));
        assert!(matches!(Order::read(b"end"), Order::End));
        for wrong in ["hello 2", "listen ../x", "listen ", "listen .lock", "bye", "", "\u{fffd}"] {
            assert!(matches!(Order::read(wrong.as_bytes()), Order::Unknown(_)), "{wrong:?}");
        }
    }
}
