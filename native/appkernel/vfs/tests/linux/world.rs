//! The calls that both sides answer, and the random numbers that choose among them.

/// Answers as system calls give them: a value or an errno.
pub type Answer<T> = Result<T, i32>;

/// One side. Descriptors are numbers from zero on, the lowest free one first, on both alike.
pub trait World {
    fn pipe(&mut self) -> (usize, usize);
    fn eventfd(&mut self, initial: u32, semaphore: bool) -> usize;
    fn epoll(&mut self) -> usize;
    /// `control`: 1 add, 2 delete, 3 modify.
    fn epoll_ctl(&mut self, epoll: usize, control: u32, fd: usize, events: u32, data: u64) -> Answer<()>;
    fn epoll_wait(&mut self, epoll: usize, count: usize) -> Vec<(u32, u64)>;
    /// Of unix sockets; 1 stream, 2 datagram, 5 seqpacket.
    fn socketpair(&mut self, kind: u32) -> (usize, usize);
    /// An internet socket, bound to a free port of 127.0.0.1: descriptor and port.
    fn bound(&mut self, kind: u32) -> (usize, u16);
    /// Without waiting; a connection in progress is finished.
    fn connect(&mut self, kind: u32, port: u16) -> Answer<usize>;
    fn listen(&mut self, fd: usize) -> Answer<()>;
    fn accept(&mut self, fd: usize) -> Answer<usize>;
    fn shutdown(&mut self, fd: usize, how: u32) -> Answer<()>;
    fn send_to(&mut self, fd: usize, port: u16, data: &[u8]) -> Answer<usize>;
    /// The bytes, and whether the sender's port is `port`.
    fn receive_from(&mut self, fd: usize, count: usize, port: u16) -> Answer<(Vec<u8>, bool)>;
    fn read(&mut self, fd: usize, count: usize) -> Answer<Vec<u8>>;
    fn write(&mut self, fd: usize, data: &[u8]) -> Answer<usize>;
    /// Of poll(2) with a timeout of zero.
    fn poll(&mut self, fd: usize, events: u16) -> u16;
    fn readable_bytes(&mut self, fd: usize) -> Answer<u64>;
    fn close(&mut self, fd: usize);
    fn dup(&mut self, fd: usize) -> usize;
}

/// xorshift64: the same numbers on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
