//! procfs (proc(5)): processes and the system as files. What they are the core tells, by `Processes`.

mod data;
mod net;
mod oom;
mod process;
mod stat;
mod sys;
mod system;

use std::sync::Arc;

use crate::file::Timestamp;
use crate::inode::LinkTarget;
use crate::kind::FileType;
use crate::pseudo::{Directory, Fixed, Item, Listed, PseudoFs};

pub use data::{Area, Places, Process, Processes, System, COUNTS};
pub use sys::sysfs;

const MAGIC: u64 = 0x9fa0;
/// Cookies of processes start here; those of the fixed entries are below.
const FIRST_PROCESS: u64 = 1 << 16;

type Source = Arc<dyn Processes>;

/// A procfs that shows these processes.
pub fn procfs(source: Arc<dyn Processes>, since: Timestamp) -> Arc<PseudoFs> {
    let fixed = system::entries(&source);
    PseudoFs::new("proc", MAGIC, Arc::new(Root { source, fixed }), since)
}

struct Root {
    source: Source,
    fixed: Fixed,
}

/// A number written as the kernel writes it, without sign or leading zeros.
fn number(name: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(name).ok()?;
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    canonical.then(|| text.parse().ok())?
}

impl Directory for Root {
    fn child(&self, name: &[u8]) -> Option<Item> {
        if let Some(pid) = number(name) {
            return process::directory(&self.source, pid, pid, false);
        }
        let (pid, tid) = self.source.current();
        match name {
            b"self" => Some(Item::link(move || Ok(LinkTarget::Text(pid.to_string().into_bytes())))),
            b"thread-self" => Some(Item::link(move || Ok(LinkTarget::Text(format!("{pid}/task/{tid}").into_bytes())))),
            _ => self.fixed.child(name),
        }
    }

    fn list(&self) -> Vec<Listed> {
        let mut all = self.fixed.list();
        let links = [b"self".to_vec(), b"thread-self".to_vec()];
        let next = all.len() as u64 + 1;
        all.extend(links.into_iter().zip(next..).map(|(name, cookie)| Listed {
            cookie,
            name,
            kind: FileType::Symlink,
        }));
        all.extend(numbered(self.source.pids(), FIRST_PROCESS, FileType::Directory));
        all
    }
}

/// Entries named by numbers, each with its number as the cookie.
fn numbered(mut numbers: Vec<u32>, first: u64, kind: FileType) -> Vec<Listed> {
    numbers.sort_unstable();
    let listed =
        |number: u32| Listed { cookie: first + u64::from(number), name: number.to_string().into_bytes(), kind };
    numbers.into_iter().map(listed).collect()
}

#[cfg(test)]
mod tests;
