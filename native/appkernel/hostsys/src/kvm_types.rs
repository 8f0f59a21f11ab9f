//! Structures of the KVM API (arch/x86/include/uapi/asm/kvm.h).

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub kind: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
    pub padding: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Table {
    pub base: u64,
    pub limit: u16,
    pub padding: [u16; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: Table,
    pub idt: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    pub interrupt_bitmap: [u64; 4],
}

pub const XSAVE_BYTES: usize = 4096;

#[repr(C)]
pub(crate) struct Region {
    pub slot: u32,
    pub flags: u32,
    pub address: u64,
    pub size: u64,
    pub memory: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuidEntry {
    pub function: u32,
    pub index: u32,
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub padding: [u32; 3],
}

const CPUID_MAX: usize = 256;

#[repr(C)]
pub(crate) struct Cpuid {
    pub count: u32,
    pub padding: u32,
    pub entries: [CpuidEntry; CPUID_MAX],
}

impl Default for Cpuid {
    fn default() -> Cpuid {
        Cpuid { count: CPUID_MAX as u32, padding: 0, entries: [CpuidEntry::default(); CPUID_MAX] }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MsrEntry {
    index: u32,
    reserved: u32,
    value: u64,
}

#[repr(C)]
pub(crate) struct Msrs<const N: usize> {
    count: u32,
    padding: u32,
    entries: [MsrEntry; N],
}

impl<const N: usize> Msrs<N> {
    pub fn new(values: [(u32, u64); N]) -> Self {
        let entries = values.map(|(index, value)| MsrEntry { index, reserved: 0, value });
        Msrs { count: N as u32, padding: 0, entries }
    }

    pub fn values(&self) -> [u64; N] {
        self.entries.map(|entry| entry.value)
    }
}

#[repr(C)]
pub(crate) struct Xcrs {
    count: u32,
    flags: u32,
    entries: [(u32, u32, u64); 16],
    padding: [u64; 16],
}

impl Xcrs {
    pub fn new(xcr0: u64) -> Xcrs {
        let mut entries = [(0, 0, 0); 16];
        entries[0] = (0, 0, xcr0);
        Xcrs { count: 1, flags: 0, entries, padding: [0; 16] }
    }
}

const _: () = assert!(size_of::<Regs>() == 144 && size_of::<Sregs>() == 312 && size_of::<Region>() == 32);
