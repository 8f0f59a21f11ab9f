//! Memory of a machine: a range of this process's addresses, of which parts are memory, parts are pages of files.
//! A machine's address is an offset in it. Guest code may change any of it at any time: everything is copied.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::remote;

pub const PAGE: u64 = 4096;

/// The range.
pub struct Arena {
    base: *mut u8,
    size: u64,
}

// SAFETY: all that is done to the memory is atomic words or copies of bytes that anybody may change meanwhile.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped by `reserve`; nobody refers to it any more.
        unsafe { libc::munmap(self.base.cast(), self.size as usize) };
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl Arena {
    /// Addresses, and no memory yet.
    pub fn reserve(size: u64) -> io::Result<Arena> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping, at an address that the host chooses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size as usize, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Arena { base: base.cast(), size })
    }

    fn at(&self, offset: u64, size: u64) -> io::Result<*mut u8> {
        match offset.checked_add(size) {
            // SAFETY: within the mapping.
            Some(end) if end <= self.size => Ok(unsafe { self.base.add(offset as usize) }),
            _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        }
    }

    pub(crate) fn host_address(&self, offset: u64, size: u64) -> io::Result<u64> {
        Ok(self.at(offset, size)? as u64)
    }

    /// Fresh memory of zeros there.
    pub fn back(&self, offset: u64, size: u64) -> io::Result<()> {
        let at = self.at(offset, size)?;
        // SAFETY: a range of our own mapping, to which there are no references.
        done(unsafe { libc::mprotect(at.cast(), size as usize, libc::PROT_READ | libc::PROT_WRITE) })
    }

    /// Pages of a file there; `shared`: what is written reaches the file.
    pub fn map_file(&self, offset: u64, size: u64, file: BorrowedFd<'_>, from: u64, shared: bool) -> io::Result<()> {
        let at = self.at(offset, size)?;
        let (protection, flags) = file_mapping(shared);
        let from = libc::off_t::try_from(from).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        // SAFETY: it replaces a range of our own mapping, to which there are no references.
        let made = unsafe {
            libc::mmap(at.cast(), size as usize, protection, flags | libc::MAP_FIXED, file.as_raw_fd(), from)
        };
        if made == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Nothing there any more.
    pub fn unmap(&self, offset: u64, size: u64) -> io::Result<()> {
        let at = self.at(offset, size)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: it replaces a range of our own mapping, to which there are no references.
        let made = unsafe { libc::mmap(at.cast(), size as usize, libc::PROT_NONE, flags, -1, 0) };
        if made == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Give memory back; it is zeros from then on. No processor knows it any more.
    pub fn discard(&self, offset: u64, size: u64) -> io::Result<()> {
        let at = self.at(offset, size)?;
        // SAFETY: memory of our own mapping, of which nobody counts on what is in it.
        done(unsafe { libc::madvise(at.cast(), size as usize, libc::MADV_DONTNEED) })
    }

    /// Have every processor forget where these pages are, so that it looks at the guest's page tables again. `protection`:
    /// that of the range. What runs meanwhile may come out with `Exit::NoMemory`, and is to try again.
    pub fn shoot(&self, offset: u64, size: u64, file: Option<bool>) -> io::Result<()> {
        let at = self.at(offset, size)?;
        let protection = file.map_or(libc::PROT_READ | libc::PROT_WRITE, |shared| file_mapping(shared).0);
        // SAFETY: a range of our own mapping; whoever copies from it holds the same lock as the caller.
        done(unsafe { libc::mprotect(at.cast(), size as usize, libc::PROT_NONE) })?;
        // SAFETY: as above.
        done(unsafe { libc::mprotect(at.cast(), size as usize, protection) })
    }

    fn word(&self, offset: u64) -> io::Result<&AtomicU64> {
        let at = self.at(offset & !7, 8)?;
        // SAFETY: an aligned word of the mapping, which lives as long as `self`.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    /// A word of memory (not of a file's pages).
    pub fn load(&self, offset: u64) -> io::Result<u64> {
        Ok(self.word(offset)?.load(Ordering::SeqCst))
    }

    pub fn store(&self, offset: u64, value: u64) -> io::Result<()> {
        self.word(offset)?.store(value, Ordering::SeqCst);
        Ok(())
    }

    /// Change 32 bits of memory (not of a file's pages); what was there.
    pub fn update(&self, offset: u64, change: impl Fn(u32) -> u32) -> io::Result<u32> {
        let at = self.at(offset & !3, 4)?;
        // SAFETY: an aligned word of the mapping, which lives as long as `self`.
        let word = unsafe { AtomicU32::from_ptr(at.cast()) };
        let old = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(change(old)));
        Ok(old.unwrap_or_else(|old| old))
    }

    /// Copy out of memory, or (`file`) of pages that may end.
    pub fn read(&self, offset: u64, out: &mut [u8], file: bool) -> io::Result<()> {
        let at = self.at(offset, out.len() as u64)?;
        if file {
            return whole(remote::read(std::process::id() as i32, at as u64, out)?, out.len());
        }
        // SAFETY: within the mapping, which is backed there; `out` is ours.
        unsafe { std::ptr::copy(at, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    pub fn write(&self, offset: u64, data: &[u8], file: bool) -> io::Result<()> {
        let at = self.at(offset, data.len() as u64)?;
        if file {
            return whole(remote::write(std::process::id() as i32, at as u64, data)?, data.len());
        }
        // SAFETY: within the mapping, which is backed there.
        unsafe { std::ptr::copy(data.as_ptr(), at, data.len()) };
        Ok(())
    }

    pub fn zero(&self, offset: u64, size: u64) -> io::Result<()> {
        let at = self.at(offset, size)?;
        // SAFETY: within the mapping, which is backed there.
        unsafe { std::ptr::write_bytes(at, 0, size as usize) };
        Ok(())
    }
}

fn file_mapping(shared: bool) -> (libc::c_int, libc::c_int) {
    match shared {
        true => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
        false => (libc::PROT_READ, libc::MAP_PRIVATE),
    }
}

fn whole(done: usize, size: usize) -> io::Result<()> {
    (done == size).then_some(()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))
}
