//! ioctl(2) of terminals (ioctl_tty(2)).

use drupe_appkernel_abi::{Errno, Result};

use super::pty::Pty;
use super::{SIGCONT, SIGHUP, SIGWINCH};
use crate::cred::CAP_SYS_ADMIN;
use crate::file::Context;
use crate::ioctl::{self, get_i32, put_i32, FIONREAD};
use crate::wait;

const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCSETSW: u32 = 0x5403;
const TCSETSF: u32 = 0x5404;
const TCSBRK: u32 = 0x5409;
const TCXONC: u32 = 0x540A;
const TCFLSH: u32 = 0x540B;
const TIOCEXCL: u32 = 0x540C;
const TIOCNXCL: u32 = 0x540D;
const TIOCSCTTY: u32 = 0x540E;
const TIOCGPGRP: u32 = 0x540F;
const TIOCSPGRP: u32 = 0x5410;
const TIOCOUTQ: u32 = 0x5411;
const TIOCGWINSZ: u32 = 0x5413;
const TIOCSWINSZ: u32 = 0x5414;
const TIOCNOTTY: u32 = 0x5422;
const TCSBRKP: u32 = 0x5425;
const TIOCGSID: u32 = 0x5429;
const TCGETS2: u32 = 0x802C_542A;
const TCSETS2: u32 = 0x402C_542B;
const TCSETSW2: u32 = 0x402C_542C;
const TCSETSF2: u32 = 0x402C_542D;
const TIOCGPTN: u32 = 0x8004_5430;
const TIOCSPTLCK: u32 = 0x4004_5431;
const TIOCGPTLCK: u32 = 0x8004_5439;

const TCIFLUSH: u64 = 0;
const TCOFLUSH: u64 = 1;
const TCIOFLUSH: u64 = 2;
const TCOOFF: u64 = 0;
const TCOON: u64 = 1;

impl Pty {
    pub(super) fn master_request(
        &self,
        context: &Context,
        request: u32,
        argument: u64,
        data: &mut Vec<u8>,
    ) -> Result<i64> {
        match request {
            TIOCGPTN => put_i32(data, i32::try_from(self.index).unwrap_or(i32::MAX)),
            TIOCSPTLCK => self.state.lock().locked = get_i32(data)? != 0,
            TIOCGPTLCK => put_i32(data, i32::from(self.state.lock().locked)),
            FIONREAD => put_i32(data, self.output_bytes()),
            TIOCGPGRP => put_i32(data, self.state.lock().foreground as i32),
            TIOCOUTQ => put_i32(data, 0),
            TIOCSCTTY | TIOCNOTTY => return Err(Errno::NOTTY),
            _ => return self.request(context, request, argument, data),
        }
        Ok(0)
    }

    pub(super) fn slave_request(
        &self,
        context: &Context,
        request: u32,
        argument: u64,
        data: &mut Vec<u8>,
    ) -> Result<i64> {
        match request {
            FIONREAD => {
                let unread = self.state.lock().discipline.unread();
                return ioctl::answer_readable(request, unread, data);
            }
            TIOCOUTQ => put_i32(data, self.output_bytes()),
            TIOCGPGRP => {
                self.check_own(context)?;
                put_i32(data, self.state.lock().foreground as i32);
            }
            TIOCSPGRP => self.set_foreground(context, get_i32(data)?)?,
            TIOCSCTTY => self.take_session(context, argument)?,
            TIOCNOTTY => {
                self.check_own(context)?;
                if context.pid == context.session {
                    self.release_session(context.session);
                }
            }
            _ => return self.request(context, request, argument, data),
        }
        Ok(0)
    }

    /// What both ends answer.
    fn request(&self, context: &Context, request: u32, argument: u64, data: &mut Vec<u8>) -> Result<i64> {
        match request {
            TCGETS | TCGETS2 => {
                let size = if request == TCGETS { super::termios::SIZE_BYTES } else { super::termios::SIZE2_BYTES };
                *data = self.state.lock().discipline.termios.encode();
                data.truncate(size);
            }
            TCSETS | TCSETSW | TCSETS2 | TCSETSW2 => self.set_termios(context, data, false)?,
            TCSETSF | TCSETSF2 => self.set_termios(context, data, true)?,
            TIOCGWINSZ => *data = self.state.lock().window.iter().flat_map(|side| side.to_ne_bytes()).collect(),
            TIOCSWINSZ => self.set_window(data)?,
            TCFLSH => self.flush(argument)?,
            TCXONC => self.hold(argument)?,
            TIOCGSID => {
                self.check_own(context)?;
                put_i32(data, self.session() as i32);
            }
            TCSBRK | TCSBRKP | TIOCEXCL | TIOCNXCL => {}
            _ => return Err(Errno::NOTTY),
        }
        Ok(0)
    }

    fn output_bytes(&self) -> i32 {
        i32::try_from(self.state.lock().discipline.output.bytes.len()).unwrap_or(i32::MAX)
    }

    /// ENOTTY unless it is the caller's controlling terminal.
    fn check_own(&self, context: &Context) -> Result<()> {
        let session = self.session();
        (session != 0 && session == context.session).then_some(()).ok_or(Errno::NOTTY)
    }

    fn set_termios(&self, context: &Context, data: &[u8], flush: bool) -> Result<()> {
        self.check_foreground(context, false)?;
        let mut state = self.state.lock();
        let termios = state.discipline.termios.decode(data)?;
        if flush {
            state.discipline.flush_input();
        }
        state.discipline.set_termios(termios);
        drop(state);
        self.slave_queue.wake(wait::READABLE | wait::WRITABLE);
        self.master_queue.wake(wait::READABLE | wait::WRITABLE);
        Ok(())
    }

    fn set_window(&self, data: &[u8]) -> Result<()> {
        let data = data.first_chunk::<8>().ok_or(Errno::FAULT)?;
        let mut sides = data.chunks_exact(2).map(|side| u16::from_ne_bytes([side[0], side[1]]));
        let window = [(); 4].map(|()| sides.next().unwrap_or(0));
        self.resize(window);
        Ok(())
    }

    pub(super) fn resize(&self, window: [u16; 4]) {
        let changed = std::mem::replace(&mut self.state.lock().window, window) != window;
        if changed {
            self.signal_foreground(&[SIGWINCH]);
        }
    }

    fn flush(&self, what: u64) -> Result<()> {
        let mut state = self.state.lock();
        match what {
            TCIFLUSH => state.discipline.flush_input(),
            TCOFLUSH => state.discipline.output.bytes.clear(),
            TCIOFLUSH => {
                state.discipline.flush_input();
                state.discipline.output.bytes.clear();
            }
            _ => return Err(Errno::INVAL),
        }
        drop(state);
        self.slave_queue.wake(wait::WRITABLE);
        self.master_queue.wake(wait::WRITABLE);
        Ok(())
    }

    fn hold(&self, what: u64) -> Result<()> {
        match what {
            TCOOFF | TCOON => self.state.lock().discipline.stopped = what == TCOOFF,
            2 | 3 => {} // TCIOFF, TCION: nobody holds input here
            _ => return Err(Errno::INVAL),
        }
        self.slave_queue.wake(wait::WRITABLE);
        self.master_queue.wake(wait::READABLE);
        Ok(())
    }

    fn set_foreground(&self, context: &Context, group: i32) -> Result<()> {
        self.check_own(context)?;
        let group = u32::try_from(group).map_err(|_| Errno::INVAL)?;
        self.check_foreground(context, false)?;
        match self.jobs.session_of(group) {
            None => Err(Errno::SRCH),
            Some(session) if session != context.session => Err(Errno::PERM),
            Some(_) => {
                self.state.lock().foreground = group;
                Ok(())
            }
        }
    }

    /// TIOCSCTTY: by a session's leader; `steal` 1 and CAP_SYS_ADMIN take it from another session.
    fn take_session(&self, context: &Context, steal: u64) -> Result<()> {
        let held = self.session();
        if held == context.session && held != 0 {
            return Ok(());
        }
        let may_steal = steal == 1 && context.credentials.capable(CAP_SYS_ADMIN);
        if context.pid != context.session || (held != 0 && !may_steal) {
            return Err(Errno::PERM);
        }
        if held != 0 {
            self.signal_foreground(&[SIGHUP, SIGCONT]);
        }
        let mut state = self.state.lock();
        (state.session, state.foreground) = (context.session, context.session);
        Ok(())
    }
}
