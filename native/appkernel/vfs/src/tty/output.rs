//! What a terminal writes: bytes after output processing, with the column that the cursor is in.

use std::collections::VecDeque;

use super::termios::{Termios, OCRNL, ONLCR, ONLRET, ONOCR, OPOST, XTABS};

/// Bytes on their way to the master.
pub(super) const CAPACITY_BYTES: usize = 65_536;
/// What echo may add beyond that, so that a writer who never reads does not fill the memory.
const ECHO_BYTES: usize = 4096;
/// A line's end is two bytes, and a tab up to eight.
pub(super) const MOST_BYTES: usize = CAPACITY_BYTES + ECHO_BYTES + TAB_COLUMNS as usize;
const TAB_COLUMNS: u32 = 8;

#[derive(Default)]
pub(super) struct Output {
    pub bytes: VecDeque<u8>,
    pub column: u32,
    /// The column that the line which is being typed starts in.
    pub line_column: u32,
}

impl Output {
    pub fn room(&self) -> usize {
        CAPACITY_BYTES.saturating_sub(self.bytes.len())
    }

    /// Write as a program does: how many bytes fitted.
    pub fn write(&mut self, termios: &Termios, data: &[u8]) -> usize {
        for (count, byte) in data.iter().enumerate() {
            if self.room() < TAB_COLUMNS as usize {
                return count;
            }
            self.put(termios, *byte);
        }
        data.len()
    }

    /// As `write`, for echo, which is lost when there is no room at all.
    pub fn echo(&mut self, termios: &Termios, data: &[u8]) {
        for byte in data {
            if self.bytes.len() < CAPACITY_BYTES + ECHO_BYTES {
                self.put(termios, *byte);
            }
        }
    }

    /// Echo of a control character as ^X, or of an erased tab, past output processing.
    pub fn echo_raw(&mut self, data: &[u8]) {
        if self.bytes.len() + data.len() < CAPACITY_BYTES + ECHO_BYTES {
            self.bytes.extend(data);
        }
    }

    fn put(&mut self, termios: &Termios, byte: u8) {
        let does = |flag| termios.output & flag != 0;
        if !does(OPOST) {
            self.bytes.push_back(byte);
            return;
        }
        match byte {
            b'\n' if does(ONLCR) => {
                self.bytes.extend(b"\r\n");
                (self.column, self.line_column) = (0, 0);
            }
            b'\n' => {
                self.column = if does(ONLRET) { 0 } else { self.column };
                self.line_column = self.column;
                self.bytes.push_back(byte);
            }
            b'\r' if does(ONOCR) && self.column == 0 => {}
            b'\r' if does(OCRNL) => {
                if does(ONLRET) {
                    (self.column, self.line_column) = (0, 0);
                }
                self.bytes.push_back(b'\n');
            }
            b'\t' => self.tab(termios.output & XTABS == XTABS),
            _ => self.plain(termios, byte),
        }
    }

    fn tab(&mut self, expands: bool) {
        let width = TAB_COLUMNS - self.column % TAB_COLUMNS;
        self.column += width;
        match expands {
            true => self.bytes.extend(std::iter::repeat_n(b' ', width as usize)),
            false => self.bytes.push_back(b'\t'),
        }
    }

    fn plain(&mut self, termios: &Termios, byte: u8) {
        match byte {
            b'\r' => (self.column, self.line_column) = (0, 0),
            8 => self.column = self.column.saturating_sub(1),
            byte if byte.is_ascii_control() || is_continuation(termios, byte) => {}
            _ => self.column += 1,
        }
        self.bytes.push_back(byte);
    }
}

/// Whether it is within a character of UTF-8.
pub(super) fn is_continuation(termios: &Termios, byte: u8) -> bool {
    termios.takes(super::termios::IUTF8) && byte & 0xc0 == 0x80
}
