//! The line discipline: from what is typed to what is read, with editing, echo and signals (termios(3); the kernel's n_tty).

use std::collections::VecDeque;

use drupe_appkernel_abi::coded;

use super::output::{is_continuation, Output, MOST_BYTES as MOST_SHOWN_BYTES};
use super::termios::{self as bits, Termios};
use super::{SIGINT, SIGQUIT, SIGTSTP};

/// What may lie unread; of a line the last place is for its end.
pub(super) const CAPACITY_BYTES: usize = 4096;

/// A byte that was typed.
#[derive(Clone, Copy)]
struct Typed {
    byte: u8,
    /// A line ends after it; `eof`: and it is the end's own character, which is not read.
    ends: bool,
    eof: bool,
}

#[derive(Default)]
pub(super) struct Discipline {
    pub termios: Termios,
    pub output: Output,
    input: VecDeque<Typed>,
    /// How many of `input` end a line.
    lines: usize,
    /// Typed since the last line's end.
    edited: usize,
    literal: bool,
    /// Output is held (VSTOP).
    pub stopped: bool,
}

coded! {
    /// settings: struct termios2. typed: byte, whether a line ends after it, whether it is the end's own character.
    pub struct SavedDiscipline {
        settings: Vec<u8>,
        typed: Vec<(u8, bool, bool)>,
        edited: u64,
        is_literal: bool,
        is_stopped: bool,
        shown: Vec<u8>,
        columns: (u32, u32),
    }
}

impl Discipline {
    pub fn save(&self) -> SavedDiscipline {
        SavedDiscipline {
            settings: self.termios.encode(),
            typed: self.input.iter().map(|typed| (typed.byte, typed.ends, typed.eof)).collect(),
            edited: self.edited as u64,
            is_literal: self.literal,
            is_stopped: self.stopped,
            shown: self.output.bytes.iter().copied().collect(),
            columns: (self.output.column, self.output.line_column),
        }
    }

    /// None: no terminal is like that.
    pub fn restored(saved: &SavedDiscipline) -> Option<Discipline> {
        let fits = saved.typed.len() <= CAPACITY_BYTES && saved.shown.len() <= MOST_SHOWN_BYTES;
        let since_line = saved.typed.iter().rev().take_while(|(_, ends, _)| !ends).count();
        let edited = usize::try_from(saved.edited).ok().filter(|edited| fits && *edited <= since_line)?;
        let input = saved.typed.iter().map(|&(byte, ends, eof)| Typed { byte, ends, eof });
        let (column, line_column) = saved.columns;
        Some(Discipline {
            termios: Termios::default().decode(&saved.settings).ok()?,
            output: Output { bytes: saved.shown.iter().copied().collect(), column, line_column },
            input: input.collect(),
            lines: saved.typed.iter().filter(|(_, ends, _)| *ends).count(),
            edited,
            literal: saved.is_literal,
            stopped: saved.is_stopped,
        })
    }

    fn canonical(&self) -> bool {
        self.termios.does(bits::ICANON)
    }

    /// How many typed bytes are taken now; a line that is too long is taken and lost.
    pub fn room(&self) -> usize {
        match self.canonical() && self.lines == 0 {
            true => CAPACITY_BYTES,
            false => CAPACITY_BYTES.saturating_sub(self.input.len() + 1),
        }
    }

    /// New settings. When lines begin or cease to count, all that was typed is one piece.
    pub fn set_termios(&mut self, termios: Termios) {
        let was = self.canonical();
        self.termios = termios;
        if was != self.canonical() {
            self.input.iter_mut().for_each(|typed| (typed.ends, typed.eof) = (false, false));
            (self.lines, self.edited, self.literal) = (0, 0, false);
            if let Some(last) = self.input.back_mut().filter(|_| !was) {
                last.ends = true;
                self.lines = 1;
            }
        }
        if !self.termios.takes(bits::IXON) {
            self.stopped = false;
        }
    }

    /// One typed byte; the signal that it asks for.
    pub fn receive(&mut self, byte: u8) -> Option<i32> {
        let termios = self.termios;
        let byte = if termios.takes(bits::ISTRIP) { byte & 0x7f } else { byte };
        if std::mem::take(&mut self.literal) {
            self.type_in(byte, false);
            return None;
        }
        if termios.takes(bits::IXON) {
            match byte {
                _ if termios.is(byte, bits::VSTART) => {
                    self.stopped = false;
                    return None;
                }
                _ if termios.is(byte, bits::VSTOP) => {
                    self.stopped = true;
                    return None;
                }
                _ if termios.takes(bits::IXANY) => self.stopped = false,
                _ => {}
            }
        }
        if termios.does(bits::ISIG) {
            let signals = [(bits::VINTR, SIGINT), (bits::VQUIT, SIGQUIT), (bits::VSUSP, SIGTSTP)];
            if let Some((_, signal)) = signals.into_iter().find(|(character, _)| termios.is(byte, *character)) {
                self.interrupt(byte);
                return Some(signal);
            }
        }
        let typed = byte;
        let byte = match byte {
            b'\r' if termios.takes(bits::IGNCR) => return None,
            b'\r' if termios.takes(bits::ICRNL) => b'\n',
            b'\n' if termios.takes(bits::INLCR) => b'\r',
            other => other,
        };
        if self.canonical() && self.edit(byte) {
            return None;
        }
        self.type_in(byte, typed == b'\r' && byte == b'\n');
        None
    }

    fn interrupt(&mut self, byte: u8) {
        if !self.termios.does(bits::NOFLSH) {
            self.flush_input();
            self.output.bytes.clear();
        }
        self.stopped = false;
        self.echo(byte);
    }

    /// Characters that edit a line or end it; false: an ordinary one.
    fn edit(&mut self, byte: u8) -> bool {
        let termios = self.termios;
        let extended = termios.does(bits::IEXTEN);
        match byte {
            _ if termios.is(byte, bits::VERASE) => self.erase(Erase::Character),
            _ if termios.is(byte, bits::VWERASE) && extended => self.erase(Erase::Word),
            _ if termios.is(byte, bits::VKILL) => self.erase(Erase::Line),
            _ if termios.is(byte, bits::VLNEXT) && extended => {
                self.literal = true;
                if termios.does(bits::ECHO) && termios.does(bits::ECHOCTL) {
                    self.output.echo(&termios, b"^\x08");
                }
            }
            _ if termios.is(byte, bits::VREPRINT) && extended && termios.does(bits::ECHO) => self.reprint(byte),
            b'\n' => {
                if termios.does(bits::ECHO) || termios.does(bits::ECHONL) {
                    self.output.echo(&termios, b"\n");
                }
                self.end_line(byte, false);
            }
            _ if termios.is(byte, bits::VEOF) => self.end_line(0, true),
            _ if termios.is(byte, bits::VEOL) || (termios.is(byte, bits::VEOL2) && extended) => {
                self.note_column();
                self.echo(byte);
                self.end_line(byte, false);
            }
            _ => return false,
        }
        true
    }

    fn note_column(&mut self) {
        if self.edited == 0 && self.termios.does(bits::ECHO) {
            self.output.line_column = self.output.column;
        }
    }

    fn end_line(&mut self, byte: u8, eof: bool) {
        self.input.push_back(Typed { byte, ends: true, eof });
        self.lines += 1;
        self.edited = 0;
    }

    /// `new_line`: it is echoed as the end of a line, not as ^J.
    fn type_in(&mut self, byte: u8, new_line: bool) {
        if self.input.len() >= CAPACITY_BYTES - 1 {
            return;
        }
        match new_line && self.termios.does(bits::ECHO) {
            true => self.output.echo(&self.termios, b"\n"),
            false => {
                self.note_column();
                self.echo(byte);
            }
        }
        self.input.push_back(Typed { byte, ends: false, eof: false });
        self.edited += usize::from(self.canonical());
    }

    fn echo(&mut self, byte: u8) {
        if self.termios.does(bits::ECHO) {
            self.echo_always(byte);
        }
    }

    fn echo_always(&mut self, byte: u8) {
        let termios = self.termios;
        let caret = termios.does(bits::ECHOCTL) && byte.is_ascii_control() && byte != b'\t';
        match caret {
            true => {
                self.output.echo_raw(&[b'^', byte ^ 0x40]);
                self.output.column += 2;
            }
            false => self.output.echo(&termios, &[byte]),
        }
    }

    fn reprint(&mut self, byte: u8) {
        self.echo_always(byte);
        let termios = self.termios;
        self.output.echo(&termios, b"\n");
        let line: Vec<u8> = self.input.iter().skip(self.input.len() - self.edited).map(|typed| typed.byte).collect();
        line.into_iter().for_each(|byte| self.echo_always(byte));
    }

    fn erase(&mut self, what: Erase) {
        let echoes = self.termios.does(bits::ECHO);
        let shows = self.termios.does(bits::ECHOE);
        let whole_line_shows = shows && self.termios.does(bits::ECHOK) && self.termios.does(bits::ECHOKE);
        if self.edited == 0 {
            return;
        }
        if what == Erase::Line && echoes && !whole_line_shows {
            self.drop_edited();
            self.echo_always(self.termios.characters[bits::VKILL]);
            if self.termios.does(bits::ECHOK) {
                let termios = self.termios;
                self.output.echo(&termios, b"\n");
            }
            return;
        }
        let mut seen_word = false;
        while self.edited > 0 {
            let in_word = is_word(self.last_character());
            if what == Erase::Word && seen_word && !in_word {
                break;
            }
            seen_word |= in_word;
            self.erase_last(echoes, shows || what != Erase::Character);
            if what == Erase::Character {
                break;
            }
        }
    }

    /// The first byte of the last character that was typed.
    fn last_character(&self) -> u8 {
        let mut back = self.input.iter().rev().take(self.edited).map(|typed| typed.byte);
        back.find(|byte| !is_continuation(&self.termios, *byte)).unwrap_or(0)
    }

    fn drop_edited(&mut self) {
        self.input.truncate(self.input.len() - self.edited);
        self.edited = 0;
    }

    /// Take the last character, of several bytes if it is UTF-8.
    fn erase_last(&mut self, echoes: bool, shows: bool) {
        let mut last = 0;
        while self.edited > 0 {
            last = self.input.pop_back().map_or(0, |typed| typed.byte);
            self.edited -= 1;
            if !is_continuation(&self.termios, last) {
                break;
            }
        }
        match (echoes, shows) {
            (false, _) => {}
            (true, false) => self.echo_always(self.termios.characters[bits::VERASE]),
            (true, true) => self.show_erased(last),
        }
    }

    fn show_erased(&mut self, byte: u8) {
        let termios = self.termios;
        let width = match byte {
            b'\t' => {
                let steps = self.tab_width();
                self.output.echo_raw(&vec![8; steps as usize]);
                self.output.column = self.output.column.saturating_sub(steps);
                return;
            }
            byte if byte.is_ascii_control() => {
                if termios.does(bits::ECHOCTL) {
                    2
                } else {
                    0
                }
            }
            _ => 1,
        };
        self.output.echo(&termios, &b"\x08 \x08".repeat(width));
    }

    /// Columns of a tab that was just taken from the end of the line.
    fn tab_width(&self) -> u32 {
        let (mut columns, mut after_tab) = (0, false);
        for typed in self.input.iter().rev().take(self.edited) {
            match typed.byte {
                b'\t' => {
                    after_tab = true;
                    break;
                }
                byte if byte.is_ascii_control() => columns += if self.termios.does(bits::ECHOCTL) { 2 } else { 0 },
                byte if is_continuation(&self.termios, byte) => {}
                _ => columns += 1,
            }
        }
        let start = if after_tab { 0 } else { self.output.line_column };
        8 - (start + columns) % 8
    }

    pub fn flush_input(&mut self) {
        (self.lines, self.edited) = (0, 0);
        self.input.clear();
    }

    /// How many bytes a read gives now; None: it must wait.
    pub fn readable(&self, wanted: usize) -> Option<usize> {
        if self.canonical() {
            return (self.lines > 0).then_some(self.line_bytes());
        }
        let minimum = usize::from(self.termios.characters[bits::VMIN]);
        let at_once = minimum == 0 && self.termios.characters[bits::VTIME] == 0;
        (at_once || self.input.len() >= minimum.clamp(1, wanted.max(1))).then_some(self.input.len())
    }

    /// Whether a read would end a line, be it an empty one.
    pub fn has_line(&self) -> bool {
        self.lines > 0
    }

    fn line_bytes(&self) -> usize {
        let end = self.input.iter().position(|typed| typed.ends).map_or(self.input.len(), |end| end + 1);
        self.input.iter().take(end).filter(|typed| !typed.eof).count()
    }

    /// All that could be read (FIONREAD).
    pub fn unread(&self) -> usize {
        let count = if self.canonical() { self.input.len() - self.edited } else { self.input.len() };
        self.input.iter().take(count).filter(|typed| !typed.eof).count()
    }

    /// Take bytes, at most one line of a canonical terminal. None: wait.
    pub fn read(&mut self, out: &mut [u8]) -> Option<usize> {
        self.readable(out.len())?;
        let (canonical, mut count) = (self.canonical(), 0);
        while let Some(typed) = self.input.front().copied() {
            if count == out.len() && !(canonical && typed.eof && count > 0) {
                break;
            }
            self.input.pop_front();
            self.lines -= usize::from(typed.ends && canonical);
            if !typed.eof {
                out[count] = typed.byte;
                count += 1;
            }
            if typed.ends && canonical {
                break;
            }
        }
        Some(count)
    }
}

/// isalnum() of the kernel, which takes bytes as Latin-1, and '_'.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || (byte >= 0xc0 && ![0xd7, 0xf7].contains(&byte))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Erase {
    Character,
    Word,
    Line,
}
