//! Kernel modules: which there are, what they need and what wants them stands in a list that the image's builder wrote.
//!
//!     module virtio_net kernel/drivers/net/virtio_net.ko net_failover virtio
//!     alias virtio:d00000001v* virtio_net
//!     boot overlay

use rustix::system::finit_module;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

struct List {
    directory: PathBuf,
    modules: BTreeMap<String, (String, Vec<String>)>,
    aliases: Vec<(String, String)>,
    boot: Vec<String>,
    loaded: Mutex<BTreeSet<String>>,
}

static LIST: OnceLock<List> = OnceLock::new();

fn list() -> &'static List {
    LIST.get_or_init(|| {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let directory = PathBuf::from("/lib/modules").join(release);
        let text = std::fs::read_to_string(directory.join("drupe.list")).unwrap_or_default();
        parse(directory, &text)
    })
}

fn parse(directory: PathBuf, text: &str) -> List {
    let mut list =
        List { directory, modules: BTreeMap::new(), aliases: Vec::new(), boot: Vec::new(), loaded: Mutex::default() };
    for line in text.lines() {
        let words: Vec<String> = line.split(' ').map(ToString::to_string).collect();
        match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["module", name, path, ..] => {
                list.modules.insert(name.to_string(), (path.to_string(), words[3..].to_vec()));
            }
            ["alias", pattern, name] => list.aliases.push((pattern.to_string(), name.to_string())),
            ["boot", name] => list.boot.push(name.to_string()),
            _ => {}
        }
    }
    list
}

/// Loads what the image's list wants at boot.
pub fn load_boot() {
    list().boot.iter().for_each(|name| list().load(name));
}

/// Loads what an alias asks for (a device's, a file system's), or the module of that name.
pub fn load_for(alias: &str) {
    let list = list();
    let plain = alias.replace('-', "_");
    if list.modules.contains_key(&plain) {
        return list.load(&plain);
    }
    let wanted = list.aliases.iter().filter(|(pattern, _)| matches(pattern.as_bytes(), alias.as_bytes()));
    wanted.for_each(|(_, name)| list.load(name));
}

impl List {
    fn load(&self, name: &str) {
        if !self.loaded.lock().unwrap().insert(name.to_string()) || is_here(name) {
            return;
        }
        let Some((path, needs)) = self.modules.get(name) else { return };
        needs.iter().for_each(|need| self.load(need));
        let result =
            File::open(self.directory.join(path)).and_then(|file| finit_module(&file, c"", 0).map_err(Into::into));
        match result {
            Ok(()) => {}
            // ENODEV: this machine has not what it is for.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENODEV)) => {}
            Err(error) => eprintln!("drupe-agent: cannot load module {name}: {error}"),
        }
    }
}

/// The kernel has what it asked another process of ours for; it would read and verify the file before it says so.
fn is_here(name: &str) -> bool {
    Path::new("/sys/module").join(name).join("initstate").exists()
}

/// fnmatch(3) with `*`, `?` and `[…]`, as modprobe does it.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.first(), text.first()) {
        (None, None) => true,
        (Some(b'*'), _) => matches(&pattern[1..], text) || (!text.is_empty() && matches(pattern, &text[1..])),
        (Some(b'?'), Some(_)) => matches(&pattern[1..], &text[1..]),
        (Some(b'['), Some(character)) => {
            let Some(end) = pattern.iter().position(|byte| *byte == b']') else { return false };
            in_set(&pattern[1..end], *character) && matches(&pattern[end + 1..], &text[1..])
        }
        (Some(wanted), Some(character)) => wanted == character && matches(&pattern[1..], &text[1..]),
        _ => false,
    }
}

fn in_set(set: &[u8], character: u8) -> bool {
    match set {
        [from, b'-', to, rest @ ..] => (from..=to).contains(&&character) || in_set(rest, character),
        [one, rest @ ..] => *one == character || in_set(rest, character),
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_match_as_modprobe_does() {
        assert!(matches(b"virtio:d00000001v*", b"virtio:d00000001v00001AF4"));
        assert!(matches(b"pci:v00001AF4d*sv*", b"pci:v00001AF4d00001041sv00001AF4"));
        assert!(matches(b"a[0-3x]b", b"a2b") && matches(b"a[0-3x]b", b"axb"));
        assert!(!matches(b"a[0-3]b", b"a4b") && !matches(b"ab", b"abc") && !matches(b"a[0", b"a0"));
    }

    #[test]
    fn the_list_is_read() {
        let list = parse("/m".into(), "module b b.ko a\nmodule a a.ko\nalias x* b\nboot b\nnoise\n");
        assert_eq!(list.modules["b"], ("b.ko".to_string(), vec!["a".to_string()]));
        assert_eq!((list.boot.len(), list.aliases.len()), (1, 1));
    }
}
