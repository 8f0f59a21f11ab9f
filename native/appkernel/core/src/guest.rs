//! The guest's memory, copied. Addresses are the guest's word: EFAULT is the worst that comes of them.

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::Timestamp;

use crate::kernel::Kernel;
use crate::mm::PAGE;
use crate::task::Tid;
use crate::timers::nanoseconds;

const PATH_MAX: usize = 4096;
/// One string of execve(2), and all of them together.
const ARGUMENT_MAX: usize = 128 << 10;
const ARGUMENTS_MAX: usize = 2 << 20;
/// Buffers of one call: what is beyond is left for the next.
pub const IO_MAX: usize = 1 << 20;
const IOV_MAX: u64 = 1024;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub address: u64,
    pub size: usize,
}

impl Kernel {
    /// All of `out`, or EFAULT.
    pub(crate) fn get(&self, tid: Tid, address: u64, out: &mut [u8]) -> Result<()> {
        if let Some(known) = self.platform.input(self.thread(tid)?, address).get(..out.len()) {
            out.copy_from_slice(known);
            return Ok(());
        }
        let got = self.platform.read(self.space(tid)?, address, out)?;
        (got == out.len()).then_some(()).ok_or(Errno::FAULT)
    }

    /// For the caller, on its way back to the guest. EFAULT, there or here: nothing may have to be undone then.
    pub(crate) fn put(&self, tid: Tid, address: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.platform.stage(self.thread(tid)?, address, data)
    }

    /// As `put`, at once.
    pub(crate) fn put_now(&self, tid: Tid, address: u64, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let done = self.platform.write(self.space(tid)?, address, data)?;
        (done == data.len()).then_some(()).ok_or(Errno::FAULT)
    }

    /// As `put`; nothing where the guest gave no address.
    pub(crate) fn put_if(&self, tid: Tid, address: u64, data: &[u8]) -> Result<()> {
        if address == 0 {
            return Ok(());
        }
        self.put(tid, address, data)
    }

    pub(crate) fn get_bytes(&self, tid: Tid, address: u64, size: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size];
        if size > 0 {
            self.get(tid, address, &mut bytes)?;
        }
        Ok(bytes)
    }

    pub(crate) fn get_words<const N: usize>(&self, tid: Tid, address: u64) -> Result<[u64; N]> {
        let bytes = self.get_bytes(tid, address, 8 * N)?;
        let word = |i: usize| u64::from_le_bytes(bytes[8 * i..8 * i + 8].try_into().unwrap_or([0; 8]));
        Ok(std::array::from_fn(word))
    }

    pub(crate) fn get_u64(&self, tid: Tid, address: u64) -> Result<u64> {
        Ok(self.get_words::<1>(tid, address)?[0])
    }

    pub(crate) fn get_u32(&self, tid: Tid, address: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.get(tid, address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub(crate) fn put_words(&self, tid: Tid, address: u64, words: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(tid, address, &bytes)
    }

    /// A string that ends with a zero. `Err(too_long)` when it has none within `limit` bytes.
    pub(crate) fn text(&self, tid: Tid, address: u64, limit: usize, too_long: Errno) -> Result<Vec<u8>> {
        let known = self.platform.input(self.thread(tid)?, address);
        if let Some(end) = known.iter().take(limit).position(|&byte| byte == 0) {
            return Ok(known[..end].to_vec());
        }
        let space = self.space(tid)?;
        let mut text = Vec::new();
        while text.len() < limit {
            let at = address.checked_add(text.len() as u64).ok_or(Errno::FAULT)?;
            let step = ((PAGE - at % PAGE) as usize).min(256).min(limit - text.len());
            let old = text.len();
            text.resize(old + step, 0);
            let got = self.platform.read(space, at, &mut text[old..])?;
            if let Some(end) = text[old..old + got].iter().position(|&byte| byte == 0) {
                text.truncate(old + end);
                return Ok(text);
            }
            if got < step {
                return Err(Errno::FAULT);
            }
        }
        Err(too_long)
    }

    pub(crate) fn path_text(&self, tid: Tid, address: u64) -> Result<Vec<u8>> {
        self.text(tid, address, PATH_MAX, Errno::NAMETOOLONG)
    }

    /// A list of strings that ends with a null pointer (execve(2)). E2BIG.
    pub(crate) fn texts(&self, tid: Tid, address: u64) -> Result<Vec<Vec<u8>>> {
        let (mut list, mut total) = (Vec::new(), 0);
        if address == 0 {
            return Ok(list);
        }
        loop {
            let pointer = self.get_u64(tid, address.wrapping_add(8 * list.len() as u64))?;
            if pointer == 0 {
                return Ok(list);
            }
            let text = self.text(tid, pointer, ARGUMENT_MAX, Errno::TOOBIG)?;
            total += text.len() + 9;
            if total > ARGUMENTS_MAX {
                return Err(Errno::TOOBIG);
            }
            list.push(text);
        }
    }

    /// struct timespec. EINVAL.
    pub(crate) fn get_time(&self, tid: Tid, address: u64) -> Result<Timestamp> {
        let [seconds, part] = self.get_words(tid, address)?;
        let valid = (seconds as i64) >= 0 && part < 1_000_000_000;
        valid.then(|| Timestamp::new(seconds as i64, part as u32)).ok_or(Errno::INVAL)
    }

    /// The monotonic deadline of a relative struct timespec; None: no pointer, no deadline.
    pub(crate) fn get_deadline(&self, tid: Tid, address: u64) -> Result<Option<u64>> {
        if address == 0 {
            return Ok(None);
        }
        let wait = nanoseconds(self.get_time(tid, address)?);
        Ok(Some(self.timers.now_ns().saturating_add(wait)))
    }

    /// struct iovec[]. EINVAL.
    pub(crate) fn get_pieces(&self, tid: Tid, address: u64, count: u64) -> Result<Vec<Piece>> {
        let count = count & 0xffff_ffff; // as Linux has it
        if count > IOV_MAX {
            return Err(Errno::INVAL);
        }
        let bytes = self.get_bytes(tid, address, 16 * count as usize)?;
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or([0; 8]));
        let pieces = (0..count as usize).map(|i| (word(16 * i), word(16 * i + 8)));
        let mut total: u64 = 0;
        let mut list = Vec::new();
        for (address, size) in pieces {
            total = total.checked_add(size).filter(|&t| t <= i64::MAX as u64).ok_or(Errno::INVAL)?;
            list.push(Piece { address, size: size as usize });
        }
        Ok(list)
    }

    /// Bytes of the pieces from `skip` on, at most `limit`. EFAULT if there are none.
    pub(crate) fn gather(&self, tid: Tid, pieces: &[Piece], skip: u64, limit: usize) -> Result<Vec<u8>> {
        let (mut bytes, mut skip) = (Vec::new(), skip);
        for piece in pieces {
            let start = skip.min(piece.size as u64);
            skip -= start;
            let size = (piece.size as u64 - start).min((limit - bytes.len()) as u64) as usize;
            if size == 0 {
                continue;
            }
            let old = bytes.len();
            bytes.resize(old + size, 0);
            let got = self.get_some(tid, piece.address.wrapping_add(start), &mut bytes[old..]);
            bytes.truncate(old + got);
            if got < size {
                return if bytes.is_empty() { Err(Errno::FAULT) } else { Ok(bytes) };
            }
        }
        Ok(bytes)
    }

    fn get_some(&self, tid: Tid, address: u64, out: &mut [u8]) -> usize {
        match (self.get(tid, address, out), self.space(tid)) {
            (Err(_), Ok(space)) => self.platform.read(space, address, out).unwrap_or(0),
            (whole, _) => whole.map_or(0, |()| out.len()),
        }
    }

    /// Put `data` into the pieces, `skip` bytes in. EFAULT.
    pub(crate) fn scatter(&self, tid: Tid, pieces: &[Piece], skip: u64, data: &[u8]) -> Result<()> {
        let (mut rest, mut skip) = (data, skip);
        for piece in pieces {
            let start = skip.min(piece.size as u64);
            skip -= start;
            let (now, later) = rest.split_at(rest.len().min((piece.size as u64 - start) as usize));
            self.put(tid, piece.address.wrapping_add(start), now)?;
            rest = later;
        }
        Ok(())
    }
}

pub fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.size as u64).sum()
}
