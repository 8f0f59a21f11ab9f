//! What the control socket asks for, taken apart: processes and mounts. Unknown fields are refused, so nothing that was
//! asked for is left out silently.

use drupe_appkernel_core::seccomp::bpf::Program as Filter;
use drupe_appkernel_core::{default_limits, Program, Rights, USUAL_UMASK};
use drupe_appkernel_vfs::kind::make_device;
use drupe_appkernel_vfs::mount::{MS_NOATIME, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY};
use drupe_appkernel_vfs::Credentials;
use drupe_packets::{Failure, Fields, Outcome};

/// Longest list of words (arguments, environment, mounts): far above what execve(2) takes.
const MAX_WORDS: usize = 65_536;
const CAPABILITIES: u64 = (1 << 41) - 1;

/// A process from outside.
pub struct Settings {
    pub program: Program,
    pub cwd: Vec<u8>,
    pub credentials: Credentials,
    pub rights: Rights,
    pub limits: [(u64, u64); 16],
    pub umask: u32,
    pub oom_score_adj: i32,
    /// Rows and columns of its terminal, if it has one.
    pub terminal: Option<(u16, u16)>,
}

/// What a container sees: its root, mounts in their order; the root read-only; the pod's processes, not its own alone.
pub struct Tree {
    /// Its place below the shared directory; None: an EROFS image was sent along, and changes are kept in memory.
    pub root: Option<Vec<u8>>,
    pub mounts: Vec<MountOrder>,
    pub read_only: bool,
    pub share_pid: bool,
    /// Its first process waits until the container is to go on.
    pub waits: bool,
    pub devices: Vec<DeviceOrder>,
    /// Paths of its own that show nothing, and that cannot be changed.
    pub masked: Vec<Vec<u8>>,
    pub protected: Vec<Vec<u8>>,
    /// How many tasks it may have.
    pub tasks: Option<u64>,
    /// Its filter of system calls, struct sock_filter after struct sock_filter.
    pub filter: Option<Filter>,
}

impl Tree {
    pub fn take(fields: &mut Fields) -> Outcome<Tree> {
        let mounts: Vec<Fields> = fields.take("mounts")?.unwrap_or_default();
        let devices: Vec<Fields> = fields.take("devices")?.unwrap_or_default();
        Ok(Tree {
            root: fields.take("root")?.map(relative).transpose()?,
            mounts: mounts.into_iter().map(MountOrder::take).collect::<Outcome<Vec<_>>>()?,
            read_only: fields.take("read_only")?.unwrap_or(false),
            share_pid: fields.take("share_pid")?.unwrap_or(false),
            waits: fields.take("waits")?.unwrap_or(false),
            devices: devices.into_iter().map(DeviceOrder::take).collect::<Outcome<Vec<_>>>()?,
            masked: paths(fields, "masked_paths")?,
            protected: paths(fields, "read_only_paths")?,
            tasks: fields.take::<u64>("tasks")?.filter(|tasks| *tasks > 0),
            filter: fields.take("seccomp")?.map(filter).transpose()?,
        })
    }
}

/// One of the kernel's own devices, at another place.
pub struct DeviceOrder {
    pub path: Vec<u8>,
    pub number: u64,
    pub mode: u32,
    pub owner: (u32, u32),
}

impl DeviceOrder {
    fn take(mut fields: Fields) -> Outcome<DeviceOrder> {
        let number = make_device(fields.need("major")?, fields.need("minor")?);
        let order = DeviceOrder {
            path: absolute(fields.need("path")?, "path")?,
            number,
            mode: fields.take::<u32>("mode")?.unwrap_or(0o666) & 0o777,
            owner: (fields.take("uid")?.unwrap_or(0), fields.take("gid")?.unwrap_or(0)),
        };
        fields.finish()?;
        match drupe_appkernel_vfs::devices::is_plain(number) {
            true => Ok(order),
            false => Err(Failure::invalid(format!("there is no device {number:#x}"))),
        }
    }
}

/// Something that a container sees at a place of its own.
#[derive(Clone)]
pub struct MountOrder {
    pub target: Vec<u8>,
    pub what: What,
    pub flags: u32,
}

#[derive(Clone)]
pub enum What {
    Proc,
    Sysfs,
    /// A tmpfs with a container's devices in it.
    Devices,
    Terminals,
    Tmpfs {
        size_bytes: Option<u64>,
        mode: u32,
        /// User and group.
        owner: (u32, u32),
    },
    /// The memory that the pod's containers share; the first one's size counts.
    Shared {
        size_bytes: u64,
    },
    /// A directory or file of the host: its place below the shared directory.
    Bind(Vec<u8>),
}

fn words(list: Vec<String>, what: &str) -> Outcome<Vec<Vec<u8>>> {
    if list.len() > MAX_WORDS {
        return Err(Failure::invalid(format!("{what}: {} words, {MAX_WORDS} at most", list.len())));
    }
    Ok(list.into_iter().map(String::into_bytes).collect())
}

fn absolute(path: String, what: &str) -> Outcome<Vec<u8>> {
    match path.starts_with('/') {
        true => Ok(path.into_bytes()),
        false => Err(Failure::invalid(format!("{what} {path:?} is no absolute path"))),
    }
}

fn paths(fields: &mut Fields, name: &str) -> Outcome<Vec<Vec<u8>>> {
    let given: Vec<String> = fields.take(name)?.unwrap_or_default();
    given.into_iter().map(|path| absolute(path, name)).collect()
}

fn filter(instructions: Vec<u64>) -> Outcome<Filter> {
    let bytes: Vec<u8> = instructions.iter().flat_map(|one| one.to_le_bytes()).collect();
    Filter::parse(&bytes).map_err(|_| Failure::invalid("seccomp: this is no filter of system calls"))
}

fn relative(path: String) -> Outcome<Vec<u8>> {
    let sound = |part: &str| !part.is_empty() && part != "." && part != "..";
    match path.split('/').all(sound) {
        true => Ok(path.into_bytes()),
        false => Err(Failure::invalid(format!("source {path:?} is no path below the shared directory"))),
    }
}

impl Settings {
    pub fn take(fields: &mut Fields) -> Outcome<Settings> {
        let arguments = words(fields.need("args")?, "args")?;
        let path = arguments.first().filter(|name| !name.is_empty()).cloned();
        let path = path.ok_or_else(|| Failure::invalid("args: there is no program"))?;
        let environment = words(fields.take("env")?.unwrap_or_default(), "env")?;
        let groups: Vec<u32> = fields.take("groups")?.unwrap_or_default();
        let capabilities = |fields: &mut Fields, name: &str| -> Outcome<u64> {
            Ok(fields.take::<u64>(name)?.unwrap_or(0) & CAPABILITIES)
        };
        let effective = capabilities(fields, "effective")?;
        let (uid, gid) = (fields.need("uid")?, fields.need("gid")?);
        let credentials = Credentials { groups: groups.into(), ..Credentials::new(uid, gid, effective) };
        let rights = Rights {
            permitted: capabilities(fields, "permitted")?,
            inheritable: capabilities(fields, "inheritable")?,
            bounding: capabilities(fields, "bounding")?,
            no_new_privileges: fields.take("no_new_privileges")?.unwrap_or(false),
        };
        let terminal = fields.take("terminal")?.unwrap_or(false);
        let size = (fields.take("rows")?.unwrap_or(0), fields.take("cols")?.unwrap_or(0));
        Ok(Settings {
            program: Program { path, arguments, environment },
            cwd: absolute(fields.take("cwd")?.unwrap_or_else(|| "/".into()), "cwd")?,
            credentials,
            rights,
            limits: limits(fields.take("rlimits")?.unwrap_or_default())?,
            umask: fields.take::<u32>("umask")?.unwrap_or(USUAL_UMASK) & 0o777,
            oom_score_adj: fields.take::<i32>("oom_score_adj")?.unwrap_or(0).clamp(-1000, 1000),
            terminal: terminal.then_some(size),
        })
    }
}

/// Each limit as [number, soft, hard].
fn limits(given: Vec<Vec<u64>>) -> Outcome<[(u64, u64); 16]> {
    let mut limits = default_limits();
    for one in given {
        let place = match one[..] {
            [number, soft, hard] if soft <= hard => limits.get_mut(number as usize).map(|place| (place, soft, hard)),
            _ => None,
        };
        let Some((place, soft, hard)) = place else {
            return Err(Failure::invalid(format!("rlimits: {one:?} is not number, soft, hard")));
        };
        *place = (soft, hard);
    }
    Ok(limits)
}

impl MountOrder {
    pub fn take(mut fields: Fields) -> Outcome<MountOrder> {
        let target = absolute(fields.need("target")?, "target")?;
        let flags: Vec<String> = fields.take("flags")?.unwrap_or_default();
        let flags = flags.iter().map(|word| flag(word)).sum::<Outcome<u32>>()?;
        let kind: String = fields.need("type")?;
        let what = match kind.as_str() {
            "proc" => What::Proc,
            "sysfs" => What::Sysfs,
            "devices" => What::Devices,
            "devpts" => What::Terminals,
            "tmpfs" => What::Tmpfs {
                size_bytes: fields.take("size_bytes")?,
                mode: fields.take::<u32>("mode")?.unwrap_or(0o1777) & 0o7777,
                owner: (fields.take("uid")?.unwrap_or(0), fields.take("gid")?.unwrap_or(0)),
            },
            "shm" => What::Shared { size_bytes: fields.need("size_bytes")? },
            "bind" => What::Bind(relative(fields.need("source")?)?),
            _ => return Err(Failure::invalid(format!("unknown type of mount {kind:?}"))),
        };
        fields.finish()?;
        Ok(MountOrder { target, what, flags })
    }
}

fn flag(word: &str) -> Outcome<u32> {
    match word {
        "ro" => Ok(MS_RDONLY),
        "nosuid" => Ok(MS_NOSUID),
        "nodev" => Ok(MS_NODEV),
        "noexec" => Ok(MS_NOEXEC),
        "noatime" => Ok(MS_NOATIME),
        _ => Err(Failure::invalid(format!("unknown mount flag {word:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).unwrap()
    }

    fn refusal(text: &str) -> String {
        Settings::take(&mut fields(text)).map(|_| ()).unwrap_err().message
    }

    #[test]
    fn a_process_as_it_was_asked_for() {
        let text = r#"{"args": ["sh", "-c", "x"], "env": ["A=b"], "cwd": "/tmp", "uid": 7, "gid": 8, "groups": [9],
            "effective": 32, "bounding": 96, "no_new_privileges": true, "rlimits": [[7, 100, 200]],
            "terminal": true, "rows": 24, "cols": 80, "umask": 39, "oom_score_adj": 300}"#;
        let settings = Settings::take(&mut fields(text)).unwrap();
        assert_eq!(settings.program.path, b"sh");
        assert_eq!((settings.credentials.uid, settings.credentials.gid, settings.credentials.capabilities), (7, 8, 32));
        assert_eq!((settings.rights.bounding, settings.rights.no_new_privileges), (96, true));
        assert_eq!((settings.limits[7], settings.terminal), ((100, 200), Some((24, 80))));
        assert_eq!((settings.umask, settings.oom_score_adj), (0o47, 300));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        assert!(refusal(r#"{"args": [], "uid": 0, "gid": 0}"#).contains("no program"));
        assert!(refusal(r#"{"args": ["a"], "gid": 0}"#).contains("\"uid\" is missing"));
        assert!(refusal(r#"{"args": ["a"], "uid": 0, "gid": 0, "cwd": "x"}"#).contains("no absolute path"));
        assert!(refusal(r#"{"args": ["a"], "uid": 0, "gid": 0, "rlimits": [[16, 1, 1]]}"#).contains("rlimits"));
        assert!(refusal(r#"{"args": ["a"], "uid": 0, "gid": 0, "rlimits": [[7, 2, 1]]}"#).contains("rlimits"));
    }

    #[test]
    fn mounts() {
        let take = |text: &str| MountOrder::take(fields(text));
        let order = take(r#"{"target": "/m", "type": "bind", "source": "c/m0", "flags": ["ro", "noexec"]}"#).unwrap();
        assert_eq!(order.flags, MS_RDONLY | MS_NOEXEC);
        assert!(matches!(order.what, What::Bind(name) if name == b"c/m0"));
        assert!(take(r#"{"target": "m", "type": "proc"}"#).is_err());
        for source in ["../x", "/x", "a//b", "a/.", ""] {
            assert!(take(&format!(r#"{{"target": "/m", "type": "bind", "source": "{source}"}}"#)).is_err());
        }
        assert!(take(r#"{"target": "/m", "type": "nfs"}"#).is_err());
        assert!(take(r#"{"target": "/m", "type": "proc", "fd": "x"}"#).is_err());
        assert!(take(r#"{"target": "/m", "type": "proc", "flags": ["sync"]}"#).is_err());
    }
}
