//! The first stack of a program: arguments, environment, auxiliary vector (getauxval(3)).

use crate::mm::PAGE;

pub const AT_PHDR: u64 = 3;
pub const AT_PHENT: u64 = 4;
pub const AT_PHNUM: u64 = 5;
pub const AT_PAGESZ: u64 = 6;
pub const AT_BASE: u64 = 7;
pub const AT_FLAGS: u64 = 8;
pub const AT_ENTRY: u64 = 9;
pub const AT_UID: u64 = 11;
pub const AT_EUID: u64 = 12;
pub const AT_GID: u64 = 13;
pub const AT_EGID: u64 = 14;
pub const AT_PLATFORM: u64 = 15;
pub const AT_HWCAP: u64 = 16;
pub const AT_CLKTCK: u64 = 17;
pub const AT_SECURE: u64 = 23;
pub const AT_RANDOM: u64 = 25;
pub const AT_HWCAP2: u64 = 26;
pub const AT_EXECFN: u64 = 31;
pub const AT_SYSINFO_EHDR: u64 = 33;
pub const AT_MINSIGSTKSZ: u64 = 51;

/// What lies on the stack, and where a program finds it.
pub struct Stack {
    /// Where `bytes` go; the stack pointer at the start.
    pub pointer: u64,
    pub bytes: Vec<u8>,
    /// The auxiliary vector alone, for /proc/PID/auxv.
    pub auxiliary: Vec<u8>,
    pub texts: Texts,
}

/// Where arguments and environment lie, as starts and ends: a program may write others there, or say that they are elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    pub arguments: (u64, u64),
    pub environment: (u64, u64),
}

struct Strings {
    base: u64,
    bytes: Vec<u8>,
}

impl Strings {
    fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    fn push(&mut self, text: &[u8]) -> u64 {
        let at = self.end();
        self.bytes.extend_from_slice(text);
        self.bytes.push(0);
        at
    }
}

/// Lay out the stack below `top`. `auxiliary`: what only the loader knows, without the strings' addresses.
pub fn build(
    top: u64,
    arguments: &[Vec<u8>],
    environment: &[Vec<u8>],
    auxiliary: &[(u64, u64)],
    random: [u8; 16],
    name: &[u8],
) -> Stack {
    let text: usize = arguments.iter().chain(environment).map(|s| s.len() + 1).sum();
    let base = (top - (text + name.len() + 64) as u64) & !15;
    let mut strings = Strings { base, bytes: Vec::new() };
    let random_at = base;
    strings.bytes.extend_from_slice(&random);
    let platform = strings.push(b"x86_64");
    let mut words = vec![arguments.len() as u64];
    let first = strings.end();
    words.extend(arguments.iter().map(|s| strings.push(s)));
    words.push(0);
    let between = strings.end();
    words.extend(environment.iter().map(|s| strings.push(s)));
    words.push(0);
    let texts = Texts { arguments: (first, between), environment: (between, strings.end()) };
    let name_at = strings.push(name);
    let known = [(AT_RANDOM, random_at), (AT_PLATFORM, platform), (AT_EXECFN, name_at), (AT_PAGESZ, PAGE), (0, 0)];
    let vector: Vec<u64> = auxiliary.iter().chain(&known).flat_map(|(key, value)| [*key, *value]).collect();
    words.extend(&vector);
    let pointer = (base - 8 * words.len() as u64) & !15;
    let mut bytes = to_bytes(&words);
    bytes.resize((base - pointer) as usize, 0);
    bytes.extend(strings.bytes);
    Stack { pointer, bytes, auxiliary: to_bytes(&vector), texts }
}

fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pointer_is_aligned_and_the_words_lead_to_the_strings() {
        for count in 0..5usize {
            let arguments = vec![b"a".to_vec(); count];
            let stack = build(0x7000_0000, &arguments, &[b"X=1".to_vec()], &[(AT_ENTRY, 5)], [7; 16], b"/bin/x");
            assert_eq!(stack.pointer % 16, 0);
            assert!(stack.pointer + stack.bytes.len() as u64 <= 0x7000_0000);
            let word = |i: usize| u64::from_le_bytes(stack.bytes[8 * i..8 * i + 8].try_into().unwrap());
            assert_eq!(word(0), count as u64);
            let at = (word(1 + count + 1) - stack.pointer) as usize; // the first variable
            assert_eq!(&stack.bytes[at..at + 4], b"X=1\0");
        }
    }
}
