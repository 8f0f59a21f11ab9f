//! Our side.

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::event::{Control, Epoll, EpollEvent, EventFd};
use drupe_appkernel_vfs::{anonymous, ioctl, pipe, Context, Credentials, FdTable, OpenFile, OpenFlags, Timestamp};

use crate::world::{Answer, World};

const RDWR: OpenFlags = OpenFlags(OpenFlags::RDWR);

pub struct Ours {
    pub table: FdTable,
    credentials: Credentials,
}

fn plain<T>(result: Result<T>) -> Answer<T> {
    result.map_err(|error| error.0)
}

impl Ours {
    pub fn new() -> Self {
        Self { table: FdTable::new(), credentials: Credentials::root() }
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
