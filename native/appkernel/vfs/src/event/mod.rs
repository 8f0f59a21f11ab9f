//! Files that stand for events: eventfd(2), timerfd_create(2), signalfd(2), epoll(7).

mod epoll;
mod eventfd;
mod signalfd;
mod timerfd;

pub(crate) use epoll::Item;
pub use epoll::{Control, Epoll, EpollEvent, EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, EPOLLWAKEUP};
pub use eventfd::EventFd;
pub use signalfd::{SignalFd, Signals, SIGINFO_BYTES};
pub use timerfd::{TimerFd, TimerSetting};

#[cfg(test)]
mod tests;
