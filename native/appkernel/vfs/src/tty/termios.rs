//! struct termios, and what its bits mean (termios(3)).

use drupe_appkernel_abi::{Errno, Result};

pub const ISTRIP: u32 = 0o40;
pub const INLCR: u32 = 0o100;
pub const IGNCR: u32 = 0o200;
pub const ICRNL: u32 = 0o400;
pub const IXON: u32 = 0o2000;
pub const IXANY: u32 = 0o4000;
pub const IUTF8: u32 = 0o40_000;

pub const OPOST: u32 = 0o1;
pub const ONLCR: u32 = 0o4;
pub const OCRNL: u32 = 0o10;
pub const ONOCR: u32 = 0o20;
pub const ONLRET: u32 = 0o40;
pub const XTABS: u32 = 0o14_000;

pub const ISIG: u32 = 0o1;
pub const ICANON: u32 = 0o2;
pub const ECHO: u32 = 0o10;
pub const ECHOE: u32 = 0o20;
pub const ECHOK: u32 = 0o40;
pub const ECHONL: u32 = 0o100;
pub const NOFLSH: u32 = 0o200;
pub const TOSTOP: u32 = 0o400;
pub const ECHOCTL: u32 = 0o1000;
pub const ECHOKE: u32 = 0o4000;
pub const IEXTEN: u32 = 0o100_000;

pub const VINTR: usize = 0;
pub const VQUIT: usize = 1;
pub const VERASE: usize = 2;
pub const VKILL: usize = 3;
pub const VEOF: usize = 4;
pub const VTIME: usize = 5;
pub const VMIN: usize = 6;
pub const VSTART: usize = 8;
pub const VSTOP: usize = 9;
pub const VSUSP: usize = 10;
pub const VEOL: usize = 11;
pub const VREPRINT: usize = 12;
pub const VWERASE: usize = 14;
pub const VLNEXT: usize = 15;
pub const VEOL2: usize = 16;

const CONTROL_COUNT: usize = 19;
/// Four words, the discipline's number, the control characters.
pub const SIZE_BYTES: usize = 36;
/// With two speeds (struct termios2).
pub const SIZE2_BYTES: usize = 44;

/// How a terminal works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termios {
    pub input: u32,
    pub output: u32,
    pub control: u32,
    pub local: u32,
    pub line: u8,
    pub characters: [u8; CONTROL_COUNT],
    pub speeds: [u32; 2],
}

impl Default for Termios {
    /// Of a new terminal (include/linux/tty.h, INIT_C_CC).
    fn default() -> Self {
        Self {
            input: ICRNL | IXON,
            output: OPOST | ONLCR,
            control: 0o277, // 38400 baud, 8 bits, receiver on
            local: ISIG | ICANON | ECHO | ECHOE | ECHOK | ECHOCTL | ECHOKE | IEXTEN,
            line: 0,
            characters: [3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0],
            speeds: [38_400; 2],
        }
    }
}

impl Termios {
    /// From struct termios, or struct termios2. EFAULT.
    pub fn decode(&self, bytes: &[u8]) -> Result<Self> {
        let bytes = bytes.get(..SIZE_BYTES.max(bytes.len().min(SIZE2_BYTES))).ok_or(Errno::FAULT)?;
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut characters = [0; CONTROL_COUNT];
        characters.copy_from_slice(&bytes[17..SIZE_BYTES]);
        let speeds = if bytes.len() == SIZE2_BYTES { [word(36), word(40)] } else { self.speeds };
        let (input, output, control, local) = (word(0), word(4), word(8), word(12));
        Ok(Self { input, output, control, local, line: bytes[16], characters, speeds })
    }

    /// As struct termios2, which starts with struct termios.
    pub fn encode(&self) -> Vec<u8> {
        let words = [self.input, self.output, self.control, self.local];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.push(self.line);
        bytes.extend_from_slice(&self.characters);
        bytes.extend(self.speeds.iter().flat_map(|speed| speed.to_ne_bytes()));
        bytes
    }

    pub fn takes(&self, flag: u32) -> bool {
        self.input & flag != 0
    }

    pub fn does(&self, flag: u32) -> bool {
        self.local & flag != 0
    }

    /// Whether `byte` is this control character; 0 switches one off.
    pub fn is(&self, byte: u8, character: usize) -> bool {
        byte != 0 && self.characters[character] == byte
    }
}
