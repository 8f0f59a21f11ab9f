//! What a snapshot asks of stubs, and what one that is restored asks.

use std::os::fd::AsFd;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_core::platform::{MemoryOp, Platform, SpaceId, ThreadId};
use drupe_appkernel_hostsys::layout::{CODE, GUEST_END, OUT_DATA, SLOTS, SLOTS_SIZE};
use drupe_appkernel_hostsys::slot::Op;
use drupe_appkernel_hostsys::{files, memory};

use super::{done, errno, Stubs, ZYGOTE};

const PAGE: u64 = 4096;
/// Words of /proc/PID/pagemap: present, swapped out, of a file (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
const STEP: usize = 64 << 10;
/// Where the stack of the host's own processes ends.
const END: u64 = 0x7fff_ffff_f000;

impl Stubs {
    pub(super) fn pages_of(&self, space: SpaceId, start: u64, end: u64) -> Result<Vec<(u64, u64)>> {
        let process = self.spaces.get(&space).ok_or(Errno::SRCH)?.in_proc;
        let map = files::open(self.proc.as_fd(), format!("{process}/pagemap").as_bytes(), libc::O_RDONLY);
        let map = map.map_err(errno)?;
        let mut own: Vec<(u64, u64)> = Vec::new();
        let mut at = start;
        while at < end {
            let mut words = vec![0; STEP.min(((end - at) / PAGE) as usize * 8)];
            let got = files::read_at(map.as_fd(), at / PAGE * 8, &mut words).map_err(errno)?;
            if got < 8 {
                return Err(Errno::IO);
            }
            for word in words[..got].chunks_exact(8) {
                let word = u64::from_le_bytes(word.try_into().unwrap_or([0; 8]));
                if word & (PRESENT | SWAPPED) != 0 && word & OF_FILE == 0 {
                    note(&mut own, at);
                }
                at += PAGE;
            }
        }
        Ok(own)
    }

    /// By the host's list of its mappings (proc_pid_maps(5)): device and inode, offset.
    pub(super) fn object_of(&self, space: SpaceId, address: u64) -> Result<((u64, u64), u64)> {
        let process = self.spaces.get(&space).ok_or(Errno::SRCH)?.in_proc;
        let list = files::open(self.proc.as_fd(), format!("{process}/maps").as_bytes(), libc::O_RDONLY);
        let list = list.map_err(errno)?;
        let (mut text, mut chunk) = (Vec::new(), vec![0; STEP]);
        loop {
            match files::read(list.as_fd(), &mut chunk).map_err(errno)? {
                0 => break,
                count => text.extend(&chunk[..count]),
            }
        }
        let text = String::from_utf8_lossy(&text);
        text.lines().find_map(|line| object_in(line, address)).ok_or(Errno::FAULT)
    }

    /// The stub stores both in its slot.
    pub(super) fn bases_of(&mut self, thread: ThreadId) -> Result<(u64, Option<u64>)> {
        let address = self.thread(thread)?.slot.address + OUT_DATA as u64;
        self.change(thread, &[MemoryOp::GetFs(address), MemoryOp::GetGs(address + 8)])?;
        let thread = self.thread(thread)?;
        let [fs, gs] = [0, 8].map(|offset| thread.slot.load(OUT_DATA + offset));
        Ok((fs, thread.owns_gs.then_some(gs)))
    }

    /// Each part of it is moved by the first stub, from which all others are forked.
    pub(super) fn place_vdso(&mut self, to: u64) -> Result<()> {
        let pieces = memory::vdso_pieces().map_err(errno)?;
        let Some(&(from, _)) = pieces.first() else { return (to == 0).then_some(()).ok_or(Errno::NOSYS) };
        if to == self.vdso {
            return Ok(());
        }
        if from != self.vdso {
            return Err(Errno::BUSY); // it was moved before
        }
        let (low, high) = pieces.iter().fold((u64::MAX, 0), |(low, high), piece| (low.min(piece.0), high.max(piece.1)));
        let moved = |at: u64| at.wrapping_sub(from).wrapping_add(to);
        let sound =
            to % PAGE == 0 && moved(low) >= SLOTS + SLOTS_SIZE && moved(high) <= END && moved(low) < moved(high);
        if !sound {
            return Err(Errno::INVAL);
        }
        let away = GUEST_END - (high - low); // where nothing is, on the way between places that overlap
        let step = |base: u64, target: u64| -> Vec<Op> {
            let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
            let op = |&(start, end): &(u64, u64)| {
                let args = [start - low + base, end - start, end - start, flags, start - low + target, 0];
                Op { number: libc::SYS_mremap as u64, args }
            };
            pieces.iter().map(op).collect()
        };
        for ops in [step(low, away), step(away, moved(low))] {
            done(&self.run(ZYGOTE, &ops, Vec::new())?)?;
        }
        self.vdso = to;
        Ok(())
    }
}

/// Of a line of the list, if the address is in that mapping: which object, and where in it.
fn object_in(line: &str, address: u64) -> Option<((u64, u64), u64)> {
    let hexadecimal = |word: &str| u64::from_str_radix(word, 16).ok();
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
    let (_, offset, device) = (words.next()?, hexadecimal(words.next()?)?, words.next()?);
    let (major, minor) = device.split_once(':')?;
    let device = hexadecimal(major)? << 32 | hexadecimal(minor)?;
    let inode = words.next()?.parse().ok()?;
    (start..end).contains(&address).then_some(((device, inode), offset + (address - start)))
}

fn note(own: &mut Vec<(u64, u64)>, page: u64) {
    match own.last_mut() {
        Some((_, end)) if *end == page => *end += PAGE,
        _ => own.push((page, page + PAGE)),
    }
}

const _: () = assert!(GUEST_END < CODE);
