//! A running kernel written down, and one that goes on from there (docs/appkernel.md, Snapshots).
//!
//! Everybody rests. What there is becomes lists that refer to one another by places in them; pages go to a file of their own, of
//! which restored spaces are private mappings. What cannot be written down is refused by name, before or while it is written, and
//! nothing of what is read is believed.

mod files;
mod locks;
mod memory;
mod queues;
mod restore;
mod save;
mod spaces;
pub mod state;
mod sysv;
mod terminals;

use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_vfs::{Backing, File, MountNamespace, OpenFile, Path};

use state::Place;

/// Files that are not the core's: whoever runs the kernel saves and makes them again.
pub trait Foreign {
    /// The file in its own words; None: it is none of these. An error says what it is, and why it cannot be saved.
    fn save(&self, file: &OpenFile) -> std::result::Result<Option<Vec<u8>>, String>;

    /// The file again, and where it is.
    fn restore(&self, saved: &[u8]) -> std::result::Result<Arc<OpenFile>, String>;
}

/// Why something cannot be saved, or what was saved cannot go on: for whoever asked.
pub type Refusal = String;

fn damaged(what: &str) -> Refusal {
    format!("the snapshot is damaged: {what}")
}

/// The file of pages while it is written.
pub struct Pages<'a> {
    memory: &'a dyn Backing,
    end: u64,
}

impl<'a> Pages<'a> {
    pub fn new(memory: &'a dyn Backing) -> Pages<'a> {
        Pages { memory, end: 0 }
    }

    /// Put whole pages behind what is there: where they lie.
    pub fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let at = self.end;
        self.memory.write_at(at, bytes)?;
        self.end += bytes.len() as u64;
        Ok(at)
    }
}

/// Namespaces by their numbers.
struct Trees<'a>(&'a [Arc<MountNamespace>]);

impl Trees<'_> {
    fn number(&self, namespace: &Arc<MountNamespace>) -> std::result::Result<u32, Refusal> {
        let found = self.0.iter().position(|known| Arc::ptr_eq(known, namespace));
        found.map(|at| at as u32).ok_or_else(|| String::from("a process sees a tree of files that no container has"))
    }

    fn get(&self, number: u32) -> std::result::Result<&Arc<MountNamespace>, Refusal> {
        self.0.get(number as usize).ok_or_else(|| damaged("a tree of files that is not there"))
    }

    /// Where a path is. None: it was removed, or is in no tree.
    fn place(&self, path: &Path) -> Option<Place> {
        let found = self.0.iter().enumerate().find_map(|(namespace, tree)| {
            let mount = tree.mounts().iter().position(|mount| Arc::ptr_eq(mount, &path.mount))?;
            Some((namespace as u32, mount as u32))
        });
        let (namespace, mount) = found?;
        let (mut names, mut at) = (Vec::new(), Arc::clone(&path.dentry));
        while !Arc::ptr_eq(&at, path.mount.root()) {
            if at.is_removed() {
                return None;
            }
            names.push(at.name());
            at = at.parent()?;
        }
        names.reverse();
        Some(Place { namespace, mount, names })
    }

    /// What is at a place now.
    fn find(&self, place: &Place) -> std::result::Result<Path, Refusal> {
        let mounts = self.get(place.namespace)?.mounts();
        let mount = mounts.get(place.mount as usize).ok_or_else(|| damaged("a mount that is not there"))?;
        let mut at = Arc::clone(mount.root());
        for name in &place.names {
            let sound = !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..";
            let found = if sound { at.lookup(name) } else { Err(Errno::INVAL) };
            at = found.map_err(|errno| format!("{}: {errno}", shown(place)))?;
        }
        Ok(Path::new(Arc::clone(mount), at))
    }
}

fn shown(place: &Place) -> String {
    let names: Vec<_> = place.names.iter().map(|name| String::from_utf8_lossy(name)).collect();
    format!("/{} (mount {})", names.join("/"), place.mount)
}

fn opened(file: Arc<dyn File>, path: Option<Path>, flags: u32) -> Arc<OpenFile> {
    OpenFile::new(file, path, drupe_appkernel_vfs::OpenFlags(flags))
}
