//! Floating-point and vector registers: what the processor has of them, and their form in a signal frame.

use drupe_appkernel_hostsys::kvm_types::{CpuidEntry, XSAVE_BYTES};

pub const AREA: usize = XSAVE_BYTES;
/// x87, SSE, AVX, AVX-512. Tiles and keys are not offered: who has none saves none.
const OFFERED: u64 = 0xe7;
/// The software's bytes of the area (struct _fpx_sw_bytes), and its marks.
const AT_SOFTWARE: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
const AT_CONTROL: usize = 0;
const AT_STATUS: usize = 2;
const AT_MXCSR: usize = 24;
const AT_HEADER: usize = 512;
const HEADER_END: usize = 576;
const MXCSR_BITS: u32 = 0xffff;

/// What the processors of the machine have.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    pub xcr0: u64,
    /// Bytes of an area with all of these.
    pub size: usize,
    /// Programs may read and write segment bases themselves.
    pub bases: bool,
}

impl Features {
    pub fn of(cpuid: &[CpuidEntry]) -> Features {
        let leaf = |function, index| cpuid.iter().find(|entry| entry.function == function && entry.index == index);
        let xcr0 = leaf(0xd, 0).map_or(3, |entry| u64::from(entry.eax) & OFFERED);
        let end = |bit: u32| leaf(0xd, bit).map_or(0, |entry| (entry.ebx + entry.eax) as usize);
        let parts = (2..8).filter(|bit| xcr0 >> bit & 1 == 1).map(end);
        let size = parts.max().unwrap_or(0).clamp(HEADER_END, AREA);
        Features { xcr0, size, bases: leaf(7, 0).is_some_and(|entry| entry.ebx & 1 != 0) }
    }

    /// As it lies in a signal frame.
    pub fn frame_of_area(self, area: &[u8; AREA]) -> Vec<u8> {
        let mut frame = area[..self.size].to_vec();
        let size = (self.size + 4) as u32;
        frame[AT_SOFTWARE..HEADER_END - 64].fill(0);
        frame[AT_SOFTWARE..AT_SOFTWARE + 4].copy_from_slice(&MAGIC1.to_le_bytes());
        frame[AT_SOFTWARE + 4..AT_SOFTWARE + 8].copy_from_slice(&size.to_le_bytes());
        frame[AT_SOFTWARE + 8..AT_SOFTWARE + 16].copy_from_slice(&self.xcr0.to_le_bytes());
        frame[AT_SOFTWARE + 16..AT_SOFTWARE + 20].copy_from_slice(&(self.size as u32).to_le_bytes());
        frame.extend(MAGIC2.to_le_bytes());
        frame
    }

    /// What a frame says; None for what no processor could have. Without the marks it is x87 and SSE alone.
    pub fn area_of_frame(self, frame: &[u8]) -> Option<Box<[u8; AREA]>> {
        let word = |at: usize| frame.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        let mut area = Box::new([0; AREA]);
        let marked = word(AT_SOFTWARE)? == MAGIC1 && word(self.size) == Some(MAGIC2);
        let (size, mut present) = if marked { (self.size, 0) } else { (AT_HEADER, 3) };
        area[..size].copy_from_slice(frame.get(..size)?);
        area[AT_SOFTWARE..AT_HEADER].fill(0);
        if marked {
            present = u64::from_le_bytes(area[AT_HEADER..AT_HEADER + 8].try_into().ok()?) & self.xcr0;
        }
        area[AT_HEADER..HEADER_END].fill(0);
        area[AT_HEADER..AT_HEADER + 8].copy_from_slice(&present.to_le_bytes());
        let mxcsr = word(AT_MXCSR)? & MXCSR_BITS;
        area[AT_MXCSR..AT_MXCSR + 4].copy_from_slice(&mxcsr.to_le_bytes());
        Some(area)
    }
}

/// As execve(2) leaves it.
pub fn clean() -> Box<[u8; AREA]> {
    let mut area = Box::new([0; AREA]);
    area[AT_CONTROL..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    area[AT_MXCSR..AT_MXCSR + 4].copy_from_slice(&0x1f80_u32.to_le_bytes());
    area[AT_HEADER] = 3;
    area
}

/// si_code of a floating-point exception (fpu__exception_code of Linux).
pub fn float_code(vector: u16, area: &[u8; AREA]) -> i32 {
    let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    let raised = match vector {
        16 => word(AT_STATUS) & !word(AT_CONTROL),
        _ => word(AT_MXCSR) & !(word(AT_MXCSR) >> 7),
    };
    match raised {
        bits if bits & 0x01 != 0 => 7, // FPE_FLTINV
        bits if bits & 0x04 != 0 => 3, // FPE_FLTDIV
        bits if bits & 0x08 != 0 => 4, // FPE_FLTOVF
        bits if bits & 0x12 != 0 => 5, // FPE_FLTUND
        bits if bits & 0x20 != 0 => 6, // FPE_FLTRES
        _ => 0,
    }
}
