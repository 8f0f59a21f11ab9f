//! Ops `mount`, `umount`, `netns_socket`, `netns_open`.

use crate::protocol::{reply, Failure, Fds, Fields, Outcome, Reply};
use crate::server::{end, Keeper};
use drupe_sys::{mount, net};
use serde_json::json;
use std::env;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Flags of mount(2) by their names in mount(8).
const FLAGS: [(&str, u64); 14] = [
    ("ro", libc::MS_RDONLY),
    ("nosuid", libc::MS_NOSUID),
    ("nodev", libc::MS_NODEV),
    ("noexec", libc::MS_NOEXEC),
    ("sync", libc::MS_SYNCHRONOUS),
    ("dirsync", libc::MS_DIRSYNC),
    ("noatime", libc::MS_NOATIME),
    ("nodiratime", libc::MS_NODIRATIME),
    ("relatime", libc::MS_RELATIME),
    ("strictatime", libc::MS_STRICTATIME),
    ("lazytime", libc::MS_LAZYTIME),
    ("silent", libc::MS_SILENT),
    ("nosymfollow", 256),
    ("remount", libc::MS_REMOUNT),
];

const PROPAGATION: [(&str, u64); 4] = [
    ("private", libc::MS_PRIVATE),
    ("slave", libc::MS_SLAVE),
    ("shared", libc::MS_SHARED),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// MOUNT_ATTR_ bits of mount_setattr(2) for the flags that a bind mount may have.
const ATTRIBUTES: [(u64, u64); 8] = [
    (libc::MS_RDONLY, 0x1),
    (libc::MS_NOSUID, 0x2),
    (libc::MS_NODEV, 0x4),
    (libc::MS_NOEXEC, 0x8),
    (libc::MS_NOATIME, 0x10),
    (libc::MS_STRICTATIME, 0x20),
    (libc::MS_NODIRATIME, 0x80),
    (256, 0x0020_0000),
];

#[derive(Debug, Default, PartialEq, Eq)]
struct Flags {
    plain: u64,
    bind: bool,
    moved: bool,
    recursive: bool,
    propagation: u64,
}

impl Flags {
    fn parse(words: &[String]) -> Outcome<Flags> {
        let mut flags = Flags::default();
        for word in words {
            let known = |table: &[(&str, u64)]| table.iter().find(|(name, _)| name == word).map(|entry| entry.1);
            match word.as_str() {
                "bind" => flags.bind = true,
                "rbind" => (flags.bind, flags.recursive) = (true, true),
                "rec" => flags.recursive = true,
                "move" => flags.moved = true,
                "rw" => {}
                _ => match (known(&FLAGS), known(&PROPAGATION)) {
                    (Some(bit), _) => flags.plain |= bit,
                    (_, Some(bit)) => flags.propagation |= bit,
                    _ => return Err(Failure::invalid(format!("unknown mount flag {word:?}"))),
                },
            }
        }
        Ok(flags)
    }

    fn recursion(&self) -> u64 {
        if self.recursive {
            libc::MS_REC
        } else {
            0
        }
    }

    /// The attributes for a bind mount; an error for a flag that a bind mount cannot have.
    fn attributes(&self) -> Outcome<u64> {
        let known = ATTRIBUTES.iter().filter(|(flag, _)| self.plain & flag != 0);
        let (covered, bits) = known.fold((0, 0), |sum, (flag, bit)| (sum.0 | flag, sum.1 | bit));
        // relatime is what a bind mount has anyway.
        match self.plain & !covered & !libc::MS_RELATIME & !libc::MS_SILENT {
            0 => Ok(bits),
            _ => {
                Err(Failure::invalid("a bind mount takes ro, nosuid, nodev, noexec, nosymfollow and atime flags only"))
            }
        }
    }
}

struct Mount {
    source: String,
    target: String,
    fstype: String,
    flags: Flags,
    data: String,
    cwd: Option<String>,
    tree: Option<OwnedFd>,
}

impl Mount {
    fn from_fields(mut fields: Fields, fds: &mut Fds) -> Outcome<Mount> {
        let tree = fields.take::<String>("tree")?;
        let tree = tree.map(|name| fds.take_all(&[name])).transpose()?.and_then(|mut list| list.pop());
        let mount = Mount {
            source: fields.take("source")?.unwrap_or_default(),
            target: fields.need("target")?,
            fstype: fields.take("fstype")?.unwrap_or_default(),
            flags: Flags::parse(&fields.take::<Vec<String>>("flags")?.unwrap_or_default())?,
            data: fields.take("data")?.unwrap_or_default(),
            cwd: fields.take("cwd")?,
            tree,
        };
        end(&mut fields)?;
        if !mount.target.starts_with('/') {
            return Err(Failure::invalid(format!("mount target {:?} is not absolute", mount.target)));
        }
        Ok(mount)
    }

    /// Whether it adds a mount (and does not merely change one).
    fn adds(&self) -> bool {
        self.flags.bind || self.flags.moved || self.tree.is_some() || !self.fstype.is_empty()
    }

    fn mount(&self) -> Outcome<()> {
        let failed = |error: io::Error| {
            let kind = if self.flags.bind { "bind" } else { &self.fstype };
            Failure::io(format!("cannot mount {} on {} ({kind})", self.source, self.target), &error)
        };
        if let Some(cwd) = &self.cwd {
            env::set_current_dir(cwd).map_err(|error| Failure::io(format!("cannot enter {cwd}"), &error))?;
        }
        let result = self.mount_here().map_err(failed);
        if self.cwd.is_some() {
            let _ = env::set_current_dir("/");
        }
        result?;
        match self.attributes() {
            Err(failure) if self.adds() => {
                let _ = mount::umount(Path::new(&self.target), libc::MNT_DETACH);
                Err(failure)
            }
            result => result,
        }
    }

    fn mount_here(&self) -> io::Result<()> {
        let target = Path::new(&self.target);
        let recursion = self.flags.recursion();
        if let Some(tree) = &self.tree {
            return mount::move_mount(tree, target);
        }
        if self.flags.plain & libc::MS_REMOUNT != 0 {
            let bind = if self.flags.bind { libc::MS_BIND } else { 0 };
            return mount::mount(&self.source, target, &self.fstype, self.flags.plain | bind, &self.data);
        }
        if self.flags.bind {
            return mount::mount(&self.source, target, "", libc::MS_BIND | recursion, "");
        }
        if self.flags.moved {
            return mount::mount(&self.source, target, "", libc::MS_MOVE, "");
        }
        if self.fstype.is_empty() {
            return Ok(());
        }
        mount::mount(&self.source, target, &self.fstype, self.flags.plain, &self.data)
    }

    /// What the first call could not set: attributes of a bind mount, propagation.
    fn attributes(&self) -> Outcome<()> {
        let target = Path::new(&self.target);
        let failed = |error: io::Error| Failure::io(format!("cannot set the flags of mount {}", self.target), &error);
        if self.flags.bind && self.flags.plain & libc::MS_REMOUNT == 0 {
            let bits = self.flags.attributes()?;
            if bits != 0 {
                mount::mount_setattr(target, bits, self.flags.recursive).map_err(failed)?;
            }
        }
        if self.flags.propagation != 0 {
            let flags = self.flags.propagation | self.flags.recursion();
            mount::mount("", target, "", flags, "").map_err(failed)?;
        }
        Ok(())
    }
}

impl Keeper {
    pub fn mount(&mut self, fields: &mut Fields, fds: &mut Fds) -> Outcome<Reply> {
        let list: Vec<Fields> = fields.need("mounts")?;
        end(fields)?;
        let mounts = list.into_iter().map(|fields| Mount::from_fields(fields, fds)).collect::<Outcome<Vec<_>>>()?;
        fds.finish()?;
        let mut done: Vec<PathBuf> = Vec::new();
        for mount in &mounts {
            if let Err(failure) = mount.mount() {
                for target in done.iter().rev() {
                    let _ = mount::umount(target, libc::MNT_DETACH);
                }
                return Err(failure);
            }
            if mount.adds() && mount.flags.plain & libc::MS_REMOUNT == 0 {
                done.push(PathBuf::from(&mount.target));
            }
        }
        self.mounted.extend(done);
        reply(json!({}))
    }

    pub fn umount(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let targets: Vec<String> = fields.need("targets")?;
        let lazy = fields.take("lazy")?.unwrap_or(false);
        end(fields)?;
        for target in targets {
            unmount(Path::new(&target), lazy)
                .map_err(|error| Failure::io(format!("cannot unmount {target}"), &error))?;
            if let Some(place) = self.mounted.iter().rposition(|known| known == Path::new(&target)) {
                self.mounted.remove(place);
            }
        }
        reply(json!({}))
    }

    pub fn netns_socket(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let netns: String = fields.need("netns")?;
        let (family, kind) = (fields.need("family")?, fields.need("type")?);
        let protocol = fields.take("protocol")?.unwrap_or(0);
        end(fields)?;
        let socket = net::in_netns(Path::new(&netns), || net::socket(family, kind, protocol));
        let what = format!("cannot make a socket in network namespace {netns}");
        let mut fds = Fds::default();
        fds.push("socket", socket.map_err(|error| Failure::io(what, &error))?);
        Ok(Some((json!({}), fds)))
    }

    /// A device or a sysctl whose file belongs to the network namespace in which it is opened.
    pub fn netns_open(&mut self, fields: &mut Fields) -> Outcome<Reply> {
        let (netns, path): (String, String) = (fields.need("netns")?, fields.need("path")?);
        end(fields)?;
        let mut how = OpenOptions::new();
        how.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = net::in_netns(Path::new(&netns), || how.open(&path));
        let what = format!("cannot open {path} in network namespace {netns}");
        let mut fds = Fds::default();
        fds.push("file", file.map_err(|error| Failure::io(what, &error))?.into());
        Ok(Some((json!({}), fds)))
    }

    pub fn unmount_everything(&mut self) {
        while let Some(target) = self.mounted.pop() {
            crate::namespaces::end_first(&target);
            let _ = unmount_all(&target);
        }
    }
}

/// umount2(2); not mounted and missing are success. lazy: detaches a busy mount.
pub fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let result = match mount::umount(target, libc::UMOUNT_NOFOLLOW) {
        Err(error) if lazy && error.raw_os_error() == Some(libc::EBUSY) => {
            return unmount_all(target);
        }
        result => result,
    };
    missing_is_fine(result)
}

/// umount2(2) MNT_DETACH: with all that is mounted below; not mounted and missing are success.
pub fn unmount_all(target: &Path) -> io::Result<()> {
    // What is mounted below a peer of a host's mount is the host's too, and must stay there.
    let _ = mount::mount("", target, "", libc::MS_PRIVATE | libc::MS_REC, "");
    missing_is_fine(mount::umount(target, libc::UMOUNT_NOFOLLOW | libc::MNT_DETACH))
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &[&str]) -> Outcome<Flags> {
        Flags::parse(&words.iter().map(|word| word.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_bits() {
        let parsed = flags(&["rbind", "ro", "nodev", "private"]).unwrap();
        assert!(parsed.bind && parsed.recursive);
        assert_eq!(parsed.propagation, libc::MS_PRIVATE);
        assert_eq!(parsed.attributes().unwrap(), 0x5);
        assert!(flags(&["readonly"]).unwrap_err().message.contains("\"readonly\""));
        assert!(flags(&["bind", "sync"]).unwrap().attributes().is_err());
    }
}
