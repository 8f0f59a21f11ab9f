//! Terminals: pairs of a master and a slave with a line discipline between them (pty(7), termios(3)), and the file system
//! that names the slaves.

mod devpts;
mod discipline;
mod output;
mod pty;
mod requests;
mod saved;
mod termios;

use drupe_appkernel_abi::Errno;

pub use devpts::Devpts;
pub use pty::{Master, Pty, Slave};
pub use saved::SavedTerminal;
pub use termios::Termios;

/// ERESTARTSYS: a signal was sent to the caller's group; the call is tried again after it, and EINTR if a handler runs
/// that does not want that.
pub const RESTART: Errno = Errno(512);

pub const SIGHUP: i32 = 1;
pub const SIGINT: i32 = 2;
pub const SIGQUIT: i32 = 3;
pub const SIGCONT: i32 = 18;
pub const SIGTSTP: i32 = 20;
pub const SIGTTIN: i32 = 21;
pub const SIGTTOU: i32 = 22;
pub const SIGWINCH: i32 = 28;

/// Process groups, as terminals must know them; the core implements it.
pub trait Jobs: Send + Sync {
    /// The caller's process group.
    fn own_group(&self) -> u32;

    /// The session that a group is in; None: there is no such group.
    fn session_of(&self, group: u32) -> Option<u32>;

    /// Send a signal to all processes of a group.
    fn signal(&self, group: u32, signal: i32);

    /// Whether the signal would stop the caller: neither blocked nor ignored by it, and its group not orphaned.
    fn would_stop(&self, signal: i32) -> bool;
}

#[cfg(test)]
mod tests;
