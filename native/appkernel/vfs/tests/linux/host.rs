//! The host's side.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{epoll, eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::net::{self, AddressFamily, Shutdown, SocketFlags, SocketType};
use rustix::pipe::{pipe_with, PipeFlags};

use crate::world::{Answer, World};

const SOCKET_FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

#[derive(Default)]
pub struct Host {
    files: Vec<Option<OwnedFd>>,
}

fn plain<T>(result: rustix::io::Result<T>) -> Answer<T> {
    result.map_err(rustix::io::Errno::raw_os_error)
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

impl Host {
    pub fn add(&mut self, file: OwnedFd) -> usize {
        let at = self.files.iter().position(Option::is_none).unwrap_or(self.files.len());
        if at == self.files.len() {
            self.files.push(None);
        }
        self.files[at] = Some(file);
        at
    }

    pub fn fd(&self, fd: usize) -> BorrowedFd<'_> {
        self.files[fd].as_ref().unwrap().as_fd()
    }
}

impl World for Host {
    fn pipe(&mut self) -> (usize, usize) {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        (self.add(read), self.add(write))
    }

    fn eventfd(&mut self, initial: u32, semaphore: bool) -> usize {
        let kind = if semaphore { EventfdFlags::SEMAPHORE } else { EventfdFlags::empty() };
        self.add(eventfd(initial, kind | EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap())
    }

    fn epoll(&mut self) -> usize {
        self.add(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap())
    }

    fn epoll_ctl(&mut self, epoll: usize, control: u32, fd: usize, events: u32, data: u64) -> Answer<()> {
        let (data, events) = (epoll::EventData::new_u64(data), epoll::EventFlags::from_bits_retain(events));
        plain(match control {
            1 => epoll::add(self.fd(epoll), self.fd(fd), data, events),
            2 => epoll::delete(self.fd(epoll), self.fd(fd)),
            _ => epoll::modify(self.fd(epoll), self.fd(fd), data, events),
        })
    }

    fn epoll_wait(&mut self, epoll: usize, count: usize) -> Vec<(u32, u64)> {
        let mut events = Vec::with_capacity(count);
        epoll::wait(self.fd(epoll), rustix::buffer::spare_capacity(&mut events), Some(&NOW)).unwrap();
        events.into_iter().map(|event| ({ event.flags }.bits(), { event.data }.u64())).collect()
    }

    fn socketpair(&mut self, kind: u32) -> (usize, usize) {
        let kind = SocketType::from_raw(kind);
        let (one, two) = net::socketpair(AddressFamily::UNIX, kind, SOCKET_FLAGS, None).unwrap();
        (self.add(one), self.add(two))
    }

    fn bound(&mut self, kind: u32) -> (usize, u16) {
        let socket = net::socket_with(AddressFamily::INET, SocketType::from_raw(kind), SOCKET_FLAGS, None).unwrap();
        net::bind(&socket, &local(0)).unwrap();
        let port = SocketAddr::try_from(net::getsockname(&socket).unwrap()).unwrap().port();
        (self.add(socket), port)
    }

    fn connect(&mut self, kind: u32, port: u16) -> Answer<usize> {
        // blocking: on the loopback device it is over when the call returns
        let kind = SocketType::from_raw(kind);
        let socket = net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None).unwrap();
        plain(net::connect(&socket, &local(port)))?;
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        Ok(self.add(socket))
    }

    fn listen(&mut self, fd: usize) -> Answer<()> {
        plain(net::listen(self.fd(fd), 5))
    }

    fn accept(&mut self, fd: usize) -> Answer<usize> {
        let accepted = plain(net::accept_with(self.fd(fd), SOCKET_FLAGS))?;
        Ok(self.add(accepted))
    }

    fn shutdown(&mut self, fd: usize, how: u32) -> Answer<()> {
        plain(net::shutdown(self.fd(fd), [Shutdown::Read, Shutdown::Write, Shutdown::Both][how as usize]))
    }

    fn send_to(&mut self, fd: usize, port: u16, data: &[u8]) -> Answer<usize> {
        plain(net::sendto(self.fd(fd), data, net::SendFlags::NOSIGNAL, &local(port)))
    }

    fn receive_from(&mut self, fd: usize, count: usize, port: u16) -> Answer<(Vec<u8>, bool)> {
        let mut bytes = vec![0; count];
        let (count, _, from) = plain(net::recvfrom(self.fd(fd), bytes.as_mut_slice(), net::RecvFlags::empty()))?;
        bytes.truncate(count);
        Ok((bytes, SocketAddr::try_from(from.unwrap()).unwrap().port() == port))
    }

    fn read(&mut self, fd: usize, count: usize) -> Answer<Vec<u8>> {
        let mut bytes = vec![MaybeUninit::uninit(); count];
        let (filled, _) = plain(rustix::io::read(self.fd(fd), bytes.as_mut_slice()))?;
        Ok(filled.to_vec())
    }

    fn write(&mut self, fd: usize, data: &[u8]) -> Answer<usize> {
        plain(rustix::io::write(self.fd(fd), data))
    }

    fn poll(&mut self, fd: usize, events: u16) -> u16 {
        let file = self.files[fd].as_ref().unwrap();
        let mut fds = [PollFd::new(file, PollFlags::from_bits_retain(events))];
        poll(&mut fds, Some(&NOW)).unwrap();
        fds[0].revents().bits()
    }

    fn readable_bytes(&mut self, fd: usize) -> Answer<u64> {
        plain(rustix::io::ioctl_fionread(self.fd(fd)))
    }

    fn close(&mut self, fd: usize) {
        self.files[fd] = None;
    }

    fn dup(&mut self, fd: usize) -> usize {
        let copy = rustix::io::fcntl_dupfd_cloexec(self.fd(fd), 0).unwrap();
        self.add(copy)
    }
}
