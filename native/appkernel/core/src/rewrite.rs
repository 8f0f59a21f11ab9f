//! Call sites rewritten: a system call instruction that a program uses often becomes a jump to a trampoline, from which the
//! platform takes the call without a trap.
//!
//! The jump takes five bytes, the instruction two: a whole instruction after it must be one that can be done anywhere else,
//! and moves to the trampoline. Whoever comes to the place between (a thread that was in the call, a handler's return, a
//! jump) finds there the second byte of the jump's distance, which is chosen so that it is no instruction: the fault is seen
//! here, and the thread goes on in the trampoline. So at any moment every address of the program means what it did.
//!
//! Only private pages of files are written to, whose copies are the process's own. Where other threads of the space run,
//! what they may be at is first made to fault by single bytes, a breakpoint and the byte of no instruction; the rest is
//! written when every processor has seen those.

use std::collections::HashMap;

use drupe_appkernel_abi::{Registers, Result};

use crate::kernel::Kernel;
use crate::mm::{Area, Mm, LOWEST, PAGE, PROT_EXEC, PROT_READ, PROT_WRITE};
use crate::platform::{MemoryOp, SpaceId, ThreadId};
use crate::task::Tid;

/// Traps at one place after which it is rewritten, or looked at again: each power of two from here on. Writing costs as
/// much as some dozens.
const OFTEN: u32 = 32;
/// Places that are counted; then counting begins anew.
const MAX_COUNTED: usize = 4096;
/// Trampolines of one neighbourhood, and how far a jump to them goes at most.
const REGION_BYTES: u64 = 64 << 10;
const REACH: u64 = 1 << 30;
const SLOT_BYTES: u64 = 32;
/// What is left of an instruction's place when it has become a jump.
const JUMP_BYTES: u64 = 5;
const CALL_BYTES: u64 = 2;
/// Where in a trampoline the system call instruction is, and where the moved instruction.
const CALL_AT: u64 = 13;
const MOVED_AT: u64 = 15;
/// The longest instruction that is moved.
const MOVED_MAX: usize = 6;
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const BREAKPOINT: u8 = 0xcc;
/// Commands of membarrier(2): have all threads of the space look anew at code, and have that done for this space.
const SYNC_CODE: u32 = 32;
const REGISTER_SYNC_CODE: u32 = 64;
const JUMP: u8 = 0xe9;
const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
/// First bytes that are no instruction in 64-bit mode.
const NOTHING: [u8; 16] =
    [0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x82, 0x9a, 0xce];
/// Calls that need all of the caller's state, or do not return.
const NEVER: [u64; 8] = [15, 56, 57, 58, 59, 60, 231, 435];

/// A place that was rewritten.
#[derive(Clone, Copy)]
struct Site {
    trampoline: u64,
    moved: u64,
}

/// As a snapshot has them: place, trampoline, bytes moved; where trampolines are, and which slots are taken.
pub(crate) type SavedSites = Vec<(u64, u64, u64)>;
pub(crate) type SavedRegions = Vec<(u64, Vec<bool>)>;

/// What is known of an address space's calls.
#[derive(Clone, Default)]
pub struct Sites {
    counts: HashMap<u64, u32>,
    /// By the address of the system call instruction.
    rewritten: HashMap<u64, Site>,
    /// Where trampolines are: the region, and which of its slots are taken.
    regions: Vec<(u64, Vec<bool>)>,
}

impl Sites {
    /// One more trap there. True: time to rewrite it.
    fn is_due(&mut self, site: u64) -> bool {
        if self.counts.len() >= MAX_COUNTED {
            self.counts.clear();
        }
        let count = self.counts.entry(site).or_default();
        *count = count.saturating_add(1);
        *count >= OFTEN && count.is_power_of_two()
    }

    /// Rewritten places (place, trampoline, bytes moved), and regions.
    pub(crate) fn save(&self) -> (SavedSites, SavedRegions) {
        let sites = self.rewritten.iter().map(|(place, site)| (*place, site.trampoline, site.moved));
        (sites.collect(), self.regions.clone())
    }

    /// None: regions of another size.
    pub(crate) fn restore(&mut self, sites: &SavedSites, regions: &SavedRegions) -> Option<()> {
        let whole = regions.iter().all(|(_, slots)| slots.len() as u64 == REGION_BYTES / SLOT_BYTES);
        self.rewritten = sites.iter().map(|&(place, trampoline, moved)| (place, Site { trampoline, moved })).collect();
        self.regions.clone_from(regions);
        whole.then_some(())
    }

    /// The range holds something else from now on.
    pub fn forget(&mut self, start: u64, end: u64) {
        if !self.rewritten.is_empty() {
            self.rewritten.retain(|site, _| !(start..end).contains(site));
        }
        if !self.counts.is_empty() {
            self.counts.retain(|site, _| !(start..end).contains(site));
        }
        self.regions.retain(|(region, _)| !(start < region + REGION_BYTES && *region < end));
    }

    /// Where a thread that is here really has to go on.
    fn actual(&self, address: u64) -> u64 {
        let site = self.rewritten.get(&address.wrapping_sub(CALL_BYTES));
        site.map_or(address, |site| site.trampoline + MOVED_AT)
    }

    /// The place in the program of an address in a trampoline.
    fn original(&self, address: u64) -> u64 {
        let start = address & !(SLOT_BYTES - 1);
        let Some((place, site)) = self.rewritten.iter().find(|(_, site)| site.trampoline == start) else {
            return address;
        };
        match address - start {
            0..=CALL_AT => *place,
            at if at < MOVED_AT + site.moved => place + CALL_BYTES,
            _ => place + CALL_BYTES + site.moved,
        }
    }

    /// A free slot from which the distance of the jump has no instruction as its second byte; of pages in use first.
    fn slot(&self, site: u64) -> Option<(usize, usize)> {
        let free = |(region, slots): (usize, &(u64, Vec<bool>))| {
            let (address, taken) = (slots.0, &slots.1);
            if address.abs_diff(site) > REACH {
                return None;
            }
            let per_page = (PAGE / SLOT_BYTES) as usize;
            let fits = |at: &usize| {
                let second = distance(site, address + *at as u64 * SLOT_BYTES) >> 8;
                at % per_page != 0 && !taken[*at] && NOTHING.contains(&(second as u8))
            };
            let in_use = |at: &usize| taken[at / per_page * per_page];
            let all = || 0..taken.len();
            all().filter(in_use).find(fits).or_else(|| all().find(fits)).map(|at| (region, at))
        };
        self.regions.iter().enumerate().find_map(free)
    }
}

/// What a jump from the site to the trampoline holds.
fn distance(site: u64, trampoline: u64) -> u32 {
    trampoline.wrapping_sub(site + JUMP_BYTES) as u32
}

/// The length of an instruction that may be moved: compares and tests of the result, and moves of it.
fn movable(code: &[u8]) -> Option<usize> {
    match code {
        [0x48, 0x3d, ..] => Some(6),                            // cmp rax, imm32
        [0x3d, ..] => Some(5),                                  // cmp eax, imm32
        [0x48, 0x83, 0xf8, ..] => Some(4),                      // cmp rax, imm8
        [0x83, 0xf8, ..] => Some(3),                            // cmp eax, imm8
        [0x48, 0x85, 0xc0, ..] => Some(3),                      // test rax, rax
        [0x41 | 0x48 | 0x49, 0x89, 0xc0..=0xc7, ..] => Some(3), // mov another, rax
        _ => None,
    }
}

/// The trampoline of a site, which lies at `at` in a page that starts with the address of the platform's entry.
fn trampoline(site: u64, at: u64, moved: &[u8]) -> Vec<u8> {
    let mut code = vec![0x4c, 0x8d, 0x1d, 6, 0, 0, 0, 0xff, 0x25]; // lea r11, [rip + 6]; jmp [the page's start]
    let entry = (at & !(PAGE - 1)).wrapping_sub(at + CALL_AT) as u32;
    code.extend(entry.to_le_bytes());
    code.extend(SYSCALL);
    code.extend(moved);
    let after = at + code.len() as u64 + JUMP_BYTES;
    let back = site + CALL_BYTES + moved.len() as u64;
    code.push(0xe9);
    code.extend((back.wrapping_sub(after) as u32).to_le_bytes());
    code
}

impl Kernel {
    /// A thread has trapped for a call: rewrite the place if that happens often there.
    pub(crate) fn count_site(&mut self, tid: Tid, number: u64) {
        if !self.rewrites || self.platform.call_entry() == 0 || NEVER.contains(&number) {
            return;
        }
        let Some(after) = self.thread(tid).ok().and_then(|thread| self.platform.call_site(thread)) else { return };
        let site = after.wrapping_sub(CALL_BYTES);
        let due = self.mm_mut(tid).is_ok_and(|mm| mm.sites.is_due(site));
        if due {
            let _not_this_one = self.rewrite(tid, site);
        }
    }

    /// No other thread of the space runs.
    fn stands_alone(&self, tid: Tid) -> bool {
        let Ok(space) = self.space(tid) else { return false };
        self.tasks.tasks.values().all(|task| task.space != space || task.trapped)
    }

    /// None: it is no place that can be rewritten.
    fn rewrite(&mut self, tid: Tid, site: u64) -> Option<()> {
        let mut code = [0; CALL_BYTES as usize + MOVED_MAX];
        let space = self.space(tid).ok()?;
        let got = self.platform.read(space, site, &mut code).ok()?;
        let (call, rest) = code[..got].split_at_checked(CALL_BYTES as usize)?;
        let moved = rest.get(..movable(rest)?)?;
        let end = site + CALL_BYTES + moved.len() as u64;
        let protection = self.mm(tid).ok()?.text(site, end)?;
        if call != SYSCALL {
            return None;
        }
        let (region, slot) = match self.mm(tid).ok()?.sites.slot(site) {
            Some(found) => found,
            None => {
                self.new_region(tid, site)?;
                self.mm(tid).ok()?.sites.slot(site)?
            }
        };
        let at = self.mm(tid).ok()?.sites.regions[region].0 + slot as u64 * SLOT_BYTES;
        self.write_site(tid, site, at, moved, protection).ok()?;
        let sites = &mut self.mm_mut(tid).ok()?.sites;
        let taken = &mut sites.regions[region].1;
        taken[slot] = true;
        taken[slot - slot % (PAGE / SLOT_BYTES) as usize] = true;
        sites.rewritten.insert(site, Site { trampoline: at, moved: moved.len() as u64 });
        Some(())
    }

    fn write_site(&mut self, tid: Tid, site: u64, at: u64, moved: &[u8], protection: u32) -> Result<()> {
        let (thread, space) = (self.thread(tid)?, self.space(tid)?);
        let (page, text, alone) = (at & !(PAGE - 1), site & !(PAGE - 1), self.stands_alone(tid));
        let text_size = (site + JUMP_BYTES - text).next_multiple_of(PAGE);
        let protect = |text: (u64, u64, u32), page: (u64, u32)| {
            let text = MemoryOp::Protect { address: text.0, size: text.1, protection: text.2 };
            [text, MemoryOp::Protect { address: page.0, size: PAGE, protection: page.1 }]
        };
        if !alone {
            self.platform.change(thread, &[MemoryOp::Barrier(REGISTER_SYNC_CODE)])?;
        }
        let open = PROT_READ | PROT_WRITE | PROT_EXEC; // others may be in the same pages
        self.platform.change(thread, &protect((text, text_size, protection | open), (page, open)))?;
        let entry = self.platform.call_entry().to_le_bytes();
        let written = [(page, entry.to_vec()), (at, trampoline(site, at, moved))];
        let written = written.iter().try_for_each(|(at, bytes)| self.platform.write(space, *at, bytes).map(drop));
        let written = written.and_then(|()| self.write_jump(thread, space, (site, at), alone));
        self.platform.change(thread, &protect((text, text_size, protection), (page, PROT_READ | PROT_EXEC)))?;
        written
    }

    fn write_jump(&mut self, thread: ThreadId, space: SpaceId, (site, at): (u64, u64), alone: bool) -> Result<()> {
        let [a, b, c, d] = distance(site, at).to_le_bytes();
        if alone {
            return self.platform.write(space, site, &[JUMP, a, b, c, d]).map(drop);
        }
        let steps: [&[(u64, u8)]; 3] = [&[(0, BREAKPOINT), (2, b)], &[(1, a), (3, c), (4, d)], &[(0, JUMP)]];
        for step in steps {
            for (offset, byte) in step {
                self.platform.write(space, site + offset, &[*byte])?;
            }
            self.platform.change(thread, &[MemoryOp::Barrier(SYNC_CODE)])?;
        }
        Ok(())
    }

    fn new_region(&mut self, tid: Tid, site: u64) -> Option<()> {
        let address = self.mm(tid).ok()?.place_near(site, REGION_BYTES)?;
        let thread = self.thread(tid).ok()?;
        let protection = PROT_READ | PROT_EXEC;
        let op = MemoryOp::MapAnonymous { address, size: REGION_BYTES, protection, shared: false };
        self.platform.change(thread, &[op]).ok()?;
        let mm = self.mm_mut(tid).ok()?;
        let area = Area { end: address + REGION_BYTES, protection, shared: false, file: None, name: "[calls]" };
        mm.insert(address, area);
        mm.sites.regions.push((address, vec![false; (REGION_BYTES / SLOT_BYTES) as usize]));
        Some(())
    }

    /// A fault at a place that was rewritten: the thread goes on in the trampoline. False: it was another.
    pub(crate) fn redirect(&mut self, tid: Tid, signal: i32) -> bool {
        let Ok(thread) = self.thread(tid) else { return false };
        let Ok(registers) = self.platform.registers(thread) else { return false };
        let there = match signal {
            SIGILL => self.going_on(tid, &registers),
            SIGTRAP => self.at_jump(tid, &registers),
            _ => return false,
        };
        there.rip != registers.rip && self.platform.set_registers(thread, &there).is_ok()
    }

    /// A breakpoint was met while the place was written.
    fn at_jump(&self, tid: Tid, registers: &Registers) -> Registers {
        let site = registers.rip.wrapping_sub(1);
        let known = self.mm(tid).is_ok_and(|mm| mm.sites.rewritten.contains_key(&site));
        Registers { rip: if known { site } else { registers.rip }, ..*registers }
    }

    /// Registers as the program knows them, and back.
    pub(crate) fn as_written(&self, tid: Tid, registers: &Registers) -> Registers {
        let rip = self.mm(tid).map_or(registers.rip, |mm| mm.sites.original(registers.rip));
        Registers { rip, ..*registers }
    }

    pub(crate) fn going_on(&self, tid: Tid, registers: &Registers) -> Registers {
        let rip = self.mm(tid).map_or(registers.rip, |mm| mm.sites.actual(registers.rip));
        Registers { rip, ..*registers }
    }
}

impl Mm {
    /// The protection of a private, executable range of a file that is not written to.
    fn text(&self, start: u64, end: u64) -> Option<u32> {
        let (from, area) = self.overlapping(start, end).next()?;
        let whole = from <= start && area.end >= end && area.file.is_some() && !area.shared;
        let executes = area.protection & (PROT_EXEC | PROT_WRITE) == PROT_EXEC;
        (whole && executes).then_some(area.protection)
    }

    /// A free place below an address, within a jump's reach.
    fn place_near(&self, address: u64, size: u64) -> Option<u64> {
        let mut ceiling = address;
        for (start, area) in self.areas.range(..address).rev() {
            if area.end <= ceiling && ceiling - area.end >= size {
                break;
            }
            ceiling = *start;
        }
        let at = (ceiling & !(REGION_BYTES - 1)).checked_sub(size)?;
        (at >= LOWEST && address - at <= REACH && self.is_free(at, at + size)).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::SpaceId;

    const SITE: u64 = 0x40_1234;

    #[test]
    fn what_comes_after_the_instruction_is_moved_if_it_can_be() {
        assert_eq!(movable(&[0x48, 0x3d, 0, 0xf0, 0xff, 0xff]), Some(6));
        assert_eq!(movable(&[0x48, 0x89, 0xc7, 0xe8]), Some(3));
        assert_eq!(movable(&[0x48, 0x89, 0x07]), None); // to memory
        assert_eq!(movable(&[0xc3, 0x66, 0x90]), None);
        assert_eq!(movable(&[0x85, 0xc0, 0x78]), None); // two bytes
    }

    #[test]
    fn a_slot_makes_the_place_between_no_instruction() {
        let mut sites = Sites::default();
        sites.regions.push((0x3f_0000, vec![false; (REGION_BYTES / SLOT_BYTES) as usize]));
        for site in (SITE..SITE + 0x1000).step_by(7) {
            let (region, slot) = sites.slot(site).expect("there is one for every place");
            let second = distance(site, sites.regions[region].0 + slot as u64 * SLOT_BYTES).to_le_bytes()[1];
            assert!(NOTHING.contains(&second));
            assert_ne!(slot as u64 % (PAGE / SLOT_BYTES), 0);
        }
        assert_eq!(sites.slot(SITE + (4 << 30)), None);
    }

    #[test]
    fn addresses_of_trampolines_are_those_of_the_program() {
        let mut sites = Sites::default();
        let at = 0x3f_0020;
        sites.rewritten.insert(SITE, Site { trampoline: at, moved: 6 });
        let code = trampoline(SITE, at, &[0x48, 0x3d, 0, 0xf0, 0xff, 0xff]);
        assert!(code.len() as u64 <= SLOT_BYTES);
        assert_eq!(code[CALL_AT as usize..MOVED_AT as usize], SYSCALL);
        assert_eq!(sites.actual(SITE + 2), at + MOVED_AT);
        assert_eq!(sites.actual(SITE), SITE);
        assert_eq!(sites.original(at + MOVED_AT), SITE + 2);
        assert_eq!(sites.original(at + CALL_AT), SITE);
        assert_eq!(sites.original(at + MOVED_AT + 6), SITE + 8);
        assert_eq!(sites.original(SITE + 8), SITE + 8);
        sites.forget(SITE & !0xfff, SITE + 0x1000);
        assert_eq!(sites.actual(SITE + 2), SITE + 2);
    }

    #[test]
    fn regions_lie_below_the_text() {
        let mut mm = Mm::new(SpaceId(1), 1 << 46);
        let area = |end| Area { end, protection: 5, shared: false, file: None, name: "" };
        mm.insert(0x5555_0000_0000, area(0x5555_0010_0000));
        assert_eq!(mm.place_near(0x5555_0000_1000, REGION_BYTES), Some(0x5554_ffff_0000));
        mm.insert(0x5554_ffff_0000 - 0x1000, area(0x5555_0000_0000));
        assert_eq!(mm.place_near(0x5555_0000_1000, REGION_BYTES), Some(0x5554_fffd_0000));
    }
}
