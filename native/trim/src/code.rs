//! The memory of translated code: what of this process is readable, writable and executable, and no file's.

use std::ops::Range;

use crate::maps::Maps;

/// At the start of the buffer lies what enters and leaves translated code, which is made once; it is far smaller.
const KEPT_BYTES: usize = 64 << 10;
const AT_ONCE_PAGES: usize = 4096;

pub struct Code {
    maps: Maps,
}

impl Code {
    pub fn new(maps: Maps) -> Self {
        Self { maps }
    }

    /// How much of it is in memory.
    pub fn resident_bytes(&self) -> usize {
        let page = page_bytes();
        let mut pages = vec![0u8; AT_ONCE_PAGES];
        let mut found = 0;
        for part in self.parts() {
            for begin in part.clone().step_by(AT_ONCE_PAGES * page) {
                let length = (part.end - begin).min(AT_ONCE_PAGES * page);
                // SAFETY: asks for a byte for each page, of which `pages` holds enough; touches nothing else.
                let told = unsafe { libc::mincore(begin as *mut _, length, pages.as_mut_ptr()) };
                if told == 0 {
                    found += pages[..length.div_ceil(page)].iter().filter(|page| **page & 1 != 0).count() * page;
                }
            }
        }
        found
    }

    /// Give all of it back but its beginning, and what the lists of it took on the heap.
    ///
    /// # Safety
    /// Nobody runs or reads translated code, or will before it is written anew.
    pub unsafe fn give_back(&self) {
        let mut kept = KEPT_BYTES;
        for part in self.parts() {
            let begin = part.start + kept.min(part.len());
            kept = 0;
            // SAFETY: the caller's promise, and these are pages of the buffer.
            unsafe { libc::madvise(begin as *mut _, part.end - begin, libc::MADV_DONTNEED) };
        }
        // SAFETY: malloc_trim(3) may be called at any time.
        unsafe { libc::malloc_trim(0) };
    }

    /// Its parts, lowest first: QEMU divides the buffer among processors, with a page that nobody may touch between.
    fn parts(&self) -> Vec<Range<usize>> {
        self.maps.text().lines().filter_map(part).collect()
    }
}

/// A line of proc_pid_maps(5), if it is of a part: `7f73a9000000-7f73a92ff000 rwxp 00000000 00:00 0`.
fn part(line: &str) -> Option<Range<usize>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [range, "rwxp", _, _, "0"] = words[..] else { return None };
    let (begin, end) = range.split_once('-')?;
    Some(usize::from_str_radix(begin, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

fn page_bytes() -> usize {
    // SAFETY: asks for a number.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_executable_writable_and_no_file_is_a_part() {
        assert_eq!(part("7f7000001000-7f7000003000 rwxp 00000000 00:00 0 "), Some(0x7f70_0000_1000..0x7f70_0000_3000));
        for line in [
            "7f7000001000-7f7000003000 rw-p 00000000 00:00 0 ",
            "7f7000001000-7f7000003000 rwxp 00000000 08:01 77 /lib/x.so",
            "7f7000001000-7f7000003000 rwxp 00000000 00:00 0 [heap]",
            "",
        ] {
            assert_eq!(part(line), None, "{line}");
        }
    }

    #[test]
    fn what_is_given_back_is_no_longer_resident_but_for_its_beginning() {
        let size = 1 << 20;
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: new memory that this test alone knows.
        let memory = unsafe {
            let at = libc::mmap(std::ptr::null_mut(), size, all, flags, -1, 0);
            assert_ne!(at, libc::MAP_FAILED);
            std::slice::from_raw_parts_mut(at.cast::<u8>(), size)
        };
        memory.fill(7);
        let code = Code::new(Maps::open().expect("proc is there"));
        assert!(code.resident_bytes() >= size);
        // SAFETY: there is no code in it.
        unsafe { code.give_back() };
        assert!(code.resident_bytes() < size);
        assert_eq!((memory[0], memory[size - 1]), (7, 0));
    }
}
