//! Arguments and environment of programs, as their memory has them: a program may write others over them (setproctitle(3)),
//! or say that they are elsewhere (prctl(2), PR_SET_MM).

use crate::kernel::Kernel;
use crate::mm::{Mm, PAGE};
use crate::task::Process;

/// What one file of procfs gives at most.
const TEXT_MAX: u64 = 2 << 20;

impl Kernel {
    /// What can be read there.
    fn read_text(&self, mm: &Mm, start: u64, end: u64) -> Vec<u8> {
        let mut text = vec![0; end.saturating_sub(start).min(TEXT_MAX) as usize];
        let got = if text.is_empty() { 0 } else { self.platform.read(mm.space, start, &mut text).unwrap_or(0) };
        text.truncate(got);
        text
    }

    /// /proc/PID/cmdline; nothing of what has ended.
    pub(crate) fn command_line_of(&self, process: &Process) -> Vec<u8> {
        let Some(mm) = self.mms.get(&process.mm) else { return Vec::new() };
        let (start, end) = mm.texts.arguments;
        let text = self.read_text(mm, start, end);
        // As on Linux: where no zero is at the end, the title that was written goes on, into the environment at most.
        match text.last() {
            Some(0) | None => text,
            Some(_) => {
                let (next, last) = mm.texts.environment;
                let limit = if next == end { last.max(end) } else { end };
                titled(self.read_text(mm, start, limit.min(start.saturating_add(PAGE))))
            }
        }
    }

    /// /proc/PID/environ.
    pub(crate) fn environment_of(&self, process: &Process) -> Vec<u8> {
        let mm = self.mms.get(&process.mm);
        mm.map(|mm| self.read_text(mm, mm.texts.environment.0, mm.texts.environment.1)).unwrap_or_default()
    }
}

/// A title up to its zero.
fn titled(mut text: Vec<u8>) -> Vec<u8> {
    let end = text.iter().position(|&byte| byte == 0);
    text.truncate(end.map_or(text.len(), |end| end + 1));
    text
}

#[cfg(test)]
mod tests {
    use super::titled;

    #[test]
    fn a_title_ends_with_its_zero() {
        assert_eq!(titled(b"worker\0PATH=/\0".to_vec()), b"worker\0");
        assert_eq!(titled(b"endless".to_vec()), b"endless");
    }
}
