//! What runs in the guest's ring 0: two ways into guest code and a way out for each trap. It is text and tables, which never
//! change; all of it, and the pages that each processor has, lie where guest code sees nothing.

/// Where it lies in every space: an entry of the first level of page tables to itself, above `GUEST_END`.
pub const KERNEL: u64 = 0x7f80_0000_0000;
pub const TEXT: u64 = KERNEL;
pub const IDT: u64 = KERNEL + 0x1000;
/// Two pages for each processor: one that is not there, below its page, so that a stack that overflows is noticed.
const CPUS: u64 = KERNEL + 0x1_0000;
/// Processors, at most.
pub const CPU_MAX: u64 = 64;

/// Into guest code: the frame of an interrupt lies on the stack.
pub const ENTER: u64 = TEXT;
/// The same, in another space first: rax is its root, and the guest's rax lies on the stack.
pub const ENTER_SPACE: u64 = TEXT + 0x10;
/// From here on is the way out.
pub const LEAVE: u64 = TEXT + 0x20;
pub const CALL: u64 = TEXT + 0x20;
/// System calls of 32-bit code, which there is none of.
pub const OLD_CALL: u64 = TEXT + 0x28;
const TRAPS: u64 = 0x100;
const PAGE_FAULT: u64 = 0x400;
const GDT_AT: u64 = 0xf00;
pub const GDT: u64 = TEXT + GDT_AT;
pub const GDT_BYTES: u16 = 64;
pub const TSS_BYTES: u32 = 104;

/// Ports that say what it was: an exception's number, or these.
pub const PORT_CALL: u16 = 0xf0;
pub const PORT_OLD_CALL: u16 = 0xf1;
/// int 0x80
pub const VECTOR_OLD_CALL: u16 = 0x80;
pub const VECTOR_PAGE_FAULT: u16 = 14;

/// Selectors as Linux has them.
pub const KERNEL_CODE: u16 = 0x10;
pub const KERNEL_DATA: u16 = 0x18;
pub const USER_CODE: u16 = 0x33;
pub const USER_DATA: u16 = 0x2b;

/// The page of a processor.
pub fn cpu_page(index: u64) -> u64 {
    CPUS + index * 0x2000 + 0x1000
}

fn place(page: &mut [u8], at: u64, bytes: &[u8]) {
    page[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

fn trap(vector: u64) -> u64 {
    match vector {
        14 => PAGE_FAULT,
        _ => TRAPS + 4 * vector,
    }
}

/// The page of text, with the descriptors of segments.
pub fn text() -> Vec<u8> {
    let mut page = vec![0xf4; 0x1000]; // hlt
    place(&mut page, ENTER - TEXT, &[0x48, 0xcf]); // iretq
    place(&mut page, ENTER_SPACE - TEXT, &[0x0f, 0x22, 0xd8, 0x58, 0x48, 0xcf]); // mov cr3, rax; pop rax; iretq
    place(&mut page, CALL - TEXT, &[0xe6, PORT_CALL as u8]); // out PORT, al
    place(&mut page, OLD_CALL - TEXT, &[0xe6, PORT_OLD_CALL as u8]);
    for vector in (0..32).chain([u64::from(VECTOR_OLD_CALL)]) {
        place(&mut page, trap(vector), &[0xe6, vector as u8]);
    }
    // push rax; mov rax, cr2; out 14, al
    place(&mut page, PAGE_FAULT, &[0x50, 0x0f, 0x20, 0xd0, 0xe6, VECTOR_PAGE_FAULT as u8]);
    // Null, null, code and data of ring 0, null, data and code of ring 3, null; all marked as used.
    let descriptors: [u64; 8] =
        [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff, 0];
    let bytes: Vec<u8> = descriptors.iter().flat_map(|word| word.to_le_bytes()).collect();
    place(&mut page, GDT_AT, &bytes);
    page
}

/// The table of traps; guest code may make int3, into and int 0x80 itself.
pub fn idt() -> Vec<u8> {
    let mut page = vec![0; 0x1000];
    for vector in (0..32).chain([u64::from(VECTOR_OLD_CALL)]) {
        let target = TEXT + trap(vector);
        let kind: u64 = if [3, 4, u64::from(VECTOR_OLD_CALL)].contains(&vector) { 0xee } else { 0x8e };
        let low = target & 0xffff | u64::from(KERNEL_CODE) << 16 | kind << 40 | (target >> 16 & 0xffff) << 48;
        place(&mut page, 16 * vector, &low.to_le_bytes());
        place(&mut page, 16 * vector + 8, &(target >> 32).to_le_bytes());
    }
    page
}

/// A processor's page: where the stack of ring 0 ends (the page's end), and no right to any port.
pub fn task_state(index: u64) -> Vec<u8> {
    let mut page = vec![0; 0x1000];
    place(&mut page, 4, &(cpu_page(index) + 0x1000).to_le_bytes());
    place(&mut page, 102, &(TSS_BYTES as u16).to_le_bytes());
    page
}

/// Whether the processor pushes a code with the exception.
pub fn has_code(vector: u16) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}
