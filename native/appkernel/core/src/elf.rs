//! ELF files as execve(2) reads them (elf(5)): headers only, nothing of a file is believed without a check.

use drupe_appkernel_abi::{Errno, Result};

use crate::mm::{round_up, PAGE, PROT_EXEC, PROT_READ, PROT_WRITE};

pub const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// As Linux: the table of program headers is at most a page.
const MAX_PROGRAM_HEADERS: usize = PAGE as usize / PROGRAM_HEADER_BYTES;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
/// Guest addresses are below this on every platform.
const ADDRESS_LIMIT: u64 = 1 << 47;

/// A part of the file to be mapped; `file_size` bytes of it, the rest up to `memory_size` is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub address: u64,
    pub file_size: u64,
    pub memory_size: u64,
    pub protection: u32,
}

impl Segment {
    /// Page-aligned start, end of the pages from the file, end of all pages.
    pub fn pages(&self) -> (u64, u64, u64) {
        let up = |at| round_up(at).unwrap_or(ADDRESS_LIMIT);
        let start = self.address & !(PAGE - 1);
        (start, up(self.address + self.file_size), up(self.address + self.memory_size))
    }
}

/// What a program's headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    pub entry: u64,
    /// May be put anywhere (ET_DYN).
    pub relocatable: bool,
    pub segments: Vec<Segment>,
    /// Where the program headers lie in memory, before relocation; 0: in no segment.
    pub headers_address: u64,
    pub header_count: u64,
    /// Offset and length of the interpreter's path in the file.
    pub interpreter: Option<(u64, u64)>,
    pub executable_stack: bool,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(bytes, at))
}

/// Where the table of program headers lies in the file. ENOEXEC unless this is a program for this processor.
pub fn table(header: &[u8]) -> Result<(u64, usize)> {
    let kind = u16_at(header, 16);
    let right = header.len() >= HEADER_BYTES
        && header.starts_with(b"\x7fELF\x02\x01\x01")
        && [ET_EXEC, ET_DYN].contains(&kind)
        && u16_at(header, 18) == EM_X86_64
        && usize::from(u16_at(header, 54)) == PROGRAM_HEADER_BYTES;
    let count = usize::from(u16_at(header, 56));
    if !right || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(Errno::NOEXEC);
    }
    Ok((u64_at(header, 32), count * PROGRAM_HEADER_BYTES))
}

/// Read the headers: `table` are the bytes where `table()` said. ENOEXEC, EINVAL for what cannot be mapped.
pub fn parse(header: &[u8], table: &[u8]) -> Result<Elf> {
    let mut elf = Elf {
        entry: u64_at(header, 24),
        relocatable: u16_at(header, 16) == ET_DYN,
        segments: Vec::new(),
        headers_address: 0,
        header_count: (table.len() / PROGRAM_HEADER_BYTES) as u64,
        interpreter: None,
        executable_stack: false,
    };
    for entry in table.chunks_exact(PROGRAM_HEADER_BYTES) {
        elf.add(entry)?;
    }
    if elf.segments.is_empty() {
        return Err(Errno::NOEXEC);
    }
    elf.find_headers(u64_at(header, 32));
    Ok(elf)
}

impl Elf {
    fn add(&mut self, entry: &[u8]) -> Result<()> {
        match u32_at(entry, 0) {
            PT_LOAD => {
                let segment = segment(entry)?;
                let after = self.segments.last().is_none_or(|last| last.address <= segment.address);
                if !after {
                    return Err(Errno::NOEXEC);
                }
                if segment.memory_size > 0 {
                    self.segments.push(segment);
                }
            }
            PT_INTERP => {
                let size = u64_at(entry, 32);
                if !(2..=4096).contains(&size) {
                    return Err(Errno::NOEXEC);
                }
                self.interpreter.get_or_insert((u64_at(entry, 8), size));
            }
            PT_PHDR => self.headers_address = u64_at(entry, 16),
            PT_GNU_STACK => self.executable_stack = u32_at(entry, 4) & 1 != 0,
            _ => {}
        }
        Ok(())
    }

    fn find_headers(&mut self, offset: u64) {
        let holds = |s: &&Segment| s.offset <= offset && offset - s.offset < s.file_size;
        if let Some(segment) = self.segments.iter().find(holds) {
            self.headers_address = segment.address.wrapping_add(offset - segment.offset);
        }
    }

    /// Lowest and highest address, in whole pages.
    pub fn span(&self) -> (u64, u64) {
        let start = self.segments.first().map_or(0, |s| s.pages().0);
        let end = self.segments.iter().map(|s| s.pages().2).max().unwrap_or(0);
        (start, end)
    }
}

fn segment(entry: &[u8]) -> Result<Segment> {
    let flags = u32_at(entry, 4);
    let protection = [(4, PROT_READ), (2, PROT_WRITE), (1, PROT_EXEC)];
    let protection = protection.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, p)| p).sum();
    let segment = Segment {
        offset: u64_at(entry, 8),
        address: u64_at(entry, 16),
        file_size: u64_at(entry, 32),
        memory_size: u64_at(entry, 40),
        protection,
    };
    let end = segment.address.checked_add(segment.memory_size).ok_or(Errno::NOEXEC)?;
    let file_end = segment.offset.checked_add(segment.file_size).ok_or(Errno::NOEXEC)?;
    let sound = segment.file_size <= segment.memory_size
        && end < ADDRESS_LIMIT - PAGE
        && file_end < 1 << 62
        && segment.offset % PAGE == segment.address % PAGE;
    sound.then_some(segment).ok_or(Errno::NOEXEC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Vec<u8> {
        std::fs::read("/proc/self/exe").expect("this test is a program")
    }

    fn read(bytes: &[u8]) -> Result<Elf> {
        let (at, size) = table(bytes)?;
        let at = usize::try_from(at).map_err(|_| Errno::NOEXEC)?;
        let end = at.checked_add(size).ok_or(Errno::NOEXEC)?;
        parse(bytes, bytes.get(at..end).ok_or(Errno::NOEXEC)?)
    }

    #[test]
    fn a_real_program_has_code_and_data() {
        let elf = read(&program()).expect("it runs, so it parses");
        let (start, end) = elf.span();
        assert!(start < end && elf.segments.iter().any(|s| s.protection & PROT_EXEC != 0));
        assert!(elf.headers_address >= start && elf.entry > start && elf.entry < end);
    }

    #[test]
    fn damaged_headers_are_refused_or_sane() {
        let good = program()[..4096].to_vec();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..200_000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                bytes[(state >> 33) as usize % 1024] = (state >> 24) as u8;
            }
            let Ok(elf) = read(&bytes) else { continue };
            let (start, end) = elf.span();
            assert!(start <= end && end <= ADDRESS_LIMIT);
            assert!(elf.segments.iter().all(|s| s.file_size <= s.memory_size && s.pages().0 <= s.pages().1));
        }
    }

    #[test]
    fn what_is_no_program_is_not_run() {
        assert_eq!(read(b""), Err(Errno::NOEXEC));
        assert_eq!(read(b"#!/bin/sh\n"), Err(Errno::NOEXEC));
        let mut bytes = program();
        bytes[18] = 3; // i386
        assert_eq!(read(&bytes), Err(Errno::NOEXEC));
    }
}
