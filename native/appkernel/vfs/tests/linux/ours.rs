//! Our side.

use std::net::Ipv4Addr;
use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::event::{Control, Epoll, EpollEvent, EventFd};
use drupe_appkernel_vfs::socket::{Address, Caller, Family, LocalSocket, Network, Outgoing, SocketKind};
use drupe_appkernel_vfs::{anonymous, ioctl, pipe, Context, Credentials, FdTable, OpenFile, OpenFlags, Timestamp};

use crate::tree::{tmpfs, OurTree};
use crate::world::{Answer, World};

const NONBLOCK: OpenFlags = OpenFlags(OpenFlags::NONBLOCK);
const RDWR: OpenFlags = OpenFlags(OpenFlags::RDWR);

pub struct Ours {
    pub table: FdTable,
    credentials: Credentials,
    network: Arc<Network>,
    tree: OurTree,
}

fn kind_of(kind: u32) -> SocketKind {
    match kind {
        1 => SocketKind::Stream,
        2 => SocketKind::Datagram,
        _ => SocketKind::SeqPacket,
    }
}

fn local(port: u16) -> Address {
    Address::Inet((Ipv4Addr::LOCALHOST, port).into())
}

fn plain<T>(result: Result<T>) -> Answer<T> {
    result.map_err(|error| error.0)
}

impl Ours {
    pub fn new() -> Self {
        let (credentials, tree) = (Credentials::root(), OurTree::new(tmpfs()));
        Self { table: FdTable::new(), credentials, network: Network::new(), tree }
    }

    pub fn context(&self) -> Context<'_> {
        Context { credentials: &self.credentials, now: Timestamp::ZERO, pid: 7, session: 7 }
    }

    pub fn add(&mut self, file: Arc<OpenFile>) -> usize {
        self.table.insert(file, false, 0, 1024).unwrap() as usize
    }

    pub fn file(&self, fd: usize) -> &Arc<OpenFile> {
        self.table.get(fd as i32).unwrap()
    }

    fn socket(&self, fd: usize) -> &LocalSocket {
        self.file(fd).downcast().unwrap()
    }

    fn inet(&mut self, kind: u32) -> usize {
        let socket = LocalSocket::new(&self.network, Family::V4, kind_of(kind)).unwrap();
        let file = socket.open(&self.context(), NONBLOCK);
        self.add(file)
    }

    fn with_caller<T>(&self, run: impl FnOnce(&Caller<'_>) -> Result<T>) -> Answer<T> {
        self.tree.with(|view, working| run(&Caller { view, working }))
    }

    fn epoll_of(&self, fd: usize) -> Answer<&Epoll> {
        self.file(fd).downcast().ok_or(Errno::INVAL.0)
    }
}

impl World for Ours {
    fn pipe(&mut self) -> (usize, usize) {
        let (read, write) = pipe::pipe(&self.context(), OpenFlags(OpenFlags::NONBLOCK)).unwrap();
        (self.add(read), self.add(write))
    }

    fn eventfd(&mut self, initial: u32, semaphore: bool) -> usize {
        let file = anonymous::open(&self.context(), EventFd::new(initial, semaphore), "eventfd", RDWR);
        self.add(file)
    }

    fn epoll(&mut self) -> usize {
        let file = anonymous::open(&self.context(), Epoll::new(), "eventpoll", RDWR);
        self.add(file)
    }

    fn epoll_ctl(&mut self, epoll: usize, control: u32, fd: usize, events: u32, data: u64) -> Answer<()> {
        let control = [Control::Add, Control::Delete, Control::Modify][control as usize - 1];
        let event = EpollEvent { events, data };
        plain(self.epoll_of(epoll)?.control(control, fd as i32, self.file(fd), event))
    }

    fn epoll_wait(&mut self, epoll: usize, count: usize) -> Vec<(u32, u64)> {
        let events = self.epoll_of(epoll).unwrap().wait(count);
        events.into_iter().map(|event| (event.events, event.data)).collect()
    }

    fn socketpair(&mut self, kind: u32) -> (usize, usize) {
        let (one, two) = LocalSocket::pair(&self.context(), &self.network, kind_of(kind)).unwrap();
        let (one, two) = (one.open(&self.context(), NONBLOCK), two.open(&self.context(), NONBLOCK));
        (self.add(one), self.add(two))
    }

    fn bound(&mut self, kind: u32) -> (usize, u16) {
        let fd = self.inet(kind);
        self.with_caller(|caller| self.socket(fd).bind(caller, &local(0))).unwrap();
        let Address::Inet(name) = self.socket(fd).name() else { panic!("no port") };
        (fd, name.port())
    }

    fn connect(&mut self, kind: u32, port: u16) -> Answer<usize> {
        let fd = self.inet(kind);
        let answer = self.with_caller(|caller| self.socket(fd).connect(caller, &local(port)));
        if answer.is_err() {
            self.close(fd);
        }
        answer.map(|()| fd)
    }

    fn listen(&mut self, fd: usize) -> Answer<()> {
        plain(self.socket(fd).listen(&self.context(), 5))
    }

    fn accept(&mut self, fd: usize) -> Answer<usize> {
        let (accepted, _) = plain(self.socket(fd).accept(&self.context(), NONBLOCK))?;
        Ok(self.add(accepted))
    }

    fn shutdown(&mut self, fd: usize, how: u32) -> Answer<()> {
        plain(self.socket(fd).shutdown(how))
    }

    fn send_to(&mut self, fd: usize, port: u16, data: &[u8]) -> Answer<usize> {
        self.with_caller(|caller| {
            let to = Some((caller, &local(port)));
            self.socket(fd).send(&self.context(), data, Outgoing { to, ..Outgoing::default() })
        })
    }

    fn receive_from(&mut self, fd: usize, count: usize, port: u16) -> Answer<(Vec<u8>, bool)> {
        let mut out = vec![0; count];
        let received = plain(self.socket(fd).receive(&self.context(), &mut out, 0))?;
        out.truncate(received.count);
        Ok((out, received.from == Some(local(port))))
    }

    fn read(&mut self, fd: usize, count: usize) -> Answer<Vec<u8>> {
        let mut out = vec![0; count];
        let count = plain(self.file(fd).read(&self.context(), &mut out))?;
        out.truncate(count);
        Ok(out)
    }

    fn write(&mut self, fd: usize, data: &[u8]) -> Answer<usize> {
        plain(self.file(fd).write(&self.context(), data))
    }

    fn poll(&mut self, fd: usize, events: u16) -> u16 {
        self.file(fd).poll(u32::from(events)) as u16
    }

    fn readable_bytes(&mut self, fd: usize) -> Answer<u64> {
        let mut data = vec![0; 4];
        plain(self.file(fd).file().ioctl(&self.context(), ioctl::FIONREAD, 0, &mut data))?;
        Ok(plain(ioctl::get_i32(&data))? as u64)
    }

    fn close(&mut self, fd: usize) {
        self.table.remove(fd as i32).unwrap();
    }

    fn dup(&mut self, fd: usize) -> usize {
        let file = Arc::clone(self.file(fd));
        self.add(file)
    }
}
