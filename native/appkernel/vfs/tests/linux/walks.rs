//! openat2(2): random paths over links of all kinds, with each RESOLVE_* flag; what is found, or why not.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path as HostPath;

use drupe_appkernel_vfs::walk::How;
use drupe_appkernel_vfs::{OpenFlags, Path};
use rustix::fs::{openat2, Mode, OFlags, ResolveFlags};

use crate::tree::{tmpfs, HostTree, OurTree, Tree};
use crate::world::{Answer, Random};

/// Deep enough that the paths below do not leave the tree.
const START: &str = "p/q/r/s/t/u";
const LINKS: [(&str, &str); 9] = [
    ("down", "a/b"),
    ("up", ".."),
    ("around", "../u/a"),
    ("loop", "loop"),
    ("one", "two"),
    ("two", "one"),
    ("gone", "nothing"),
    ("slash", "a/"),
    ("file-slash", "file/"),
];
const NAMES: [&str; 17] = [
    "a",
    "a",
    "b",
    "..",
    ".",
    "file",
    "missing",
    "down",
    "up",
    "around",
    "loop",
    "one",
    "gone",
    "slash",
    "file-slash",
    "root",
    "new",
];
/// As PATH, NOFOLLOW, DIRECTORY, CREAT, EXCL; O_RDONLY.
const FLAGS: [u32; 8] = [
    OpenFlags::PATH,
    OpenFlags::PATH | OpenFlags::NOFOLLOW,
    OpenFlags::PATH | OpenFlags::DIRECTORY,
    0,
    OpenFlags::NOFOLLOW,
    OpenFlags::DIRECTORY,
    OpenFlags::CREAT,
    OpenFlags::CREAT | OpenFlags::EXCL,
];

fn build(tree: &dyn Tree, link: &dyn Fn(&str, &str)) {
    let mut made = String::new();
    for part in START.split('/').chain(["a", "b"]) {
        made = if made.is_empty() { part.into() } else { format!("{made}/{part}") };
        tree.mkdir(&made).unwrap();
        tree.write(&format!("{made}/file"), 0, made.as_bytes(), false).unwrap();
    }
    for place in [START.to_string(), format!("{START}/a"), format!("{START}/a/b")] {
        LINKS.iter().for_each(|(name, to)| link(to, &format!("{place}/{name}")));
        link("/a", &format!("{place}/root"));
    }
}

/// Kind and size, which tell the nodes apart: each file holds its own directory's path.
type Seen = (u32, u64);

fn host(start: &OwnedFd, path: &str, flags: u32, resolve: u64) -> Answer<Seen> {
    let mode = if flags & OpenFlags::CREAT != 0 { Mode::from_raw_mode(0o640) } else { Mode::empty() };
    let flags = OFlags::from_bits_retain(flags | OpenFlags::CLOEXEC);
    let opened = openat2(start.as_fd(), path, flags, mode, ResolveFlags::from_bits_retain(resolve));
    let stat = rustix::fs::fstat(opened.map_err(|error| error.raw_os_error())?).unwrap();
    let directory = stat.st_mode & 0o170_000 == 0o040_000;
    Ok((stat.st_mode, if directory { 0 } else { stat.st_size as u64 }))
}

fn ours(tree: &OurTree, start: &Path, path: &str, flags: u32, resolve: u64) -> Answer<Seen> {
    tree.with(|view, _| {
        let file = view.open(start, path.as_bytes(), OpenFlags(flags), 0o640, resolve)?;
        let metadata = file.metadata()?;
        Ok((metadata.mode, if metadata.is_directory() { 0 } else { metadata.size_bytes }))
    })
}

fn path(random: &mut Random) -> String {
    let names: Vec<&str> = (0..1 + random.below(4)).map(|_| NAMES[random.below(NAMES.len())]).collect();
    let (before, after) = (random.below(12), random.below(4));
    let slash = |yes| if yes { "/" } else { "" };
    format!("{}{}{}", slash(before == 0), names.join("/"), slash(after == 0))
}

#[test]
fn paths_lead_where_they_lead_on_linux() {
    let (there, here) = (HostTree::new("walks"), OurTree::new(tmpfs()));
    let at: &HostPath = &there.0;
    build(&there, &|to, name| symlink(to, at.join(name)).unwrap());
    build(&here, &|to, name| here.symlink(to, name).unwrap());
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let host_start = rustix::fs::open(at.join(START), directory, Mode::empty()).unwrap();
    let our_start = here.with(|view, root| view.walk(root, START.as_bytes(), How::FOLLOW)).unwrap();
    let mut random = Random(77);
    for _ in 0..6000 {
        let (path, flags) = (path(&mut random), FLAGS[random.below(FLAGS.len())]);
        let resolve = [0, 0, 1, 2, 4, 8, 16, 12, 20][random.below(9)];
        let confined = resolve & 24 != 0;
        if !confined && (path.starts_with('/') || path.contains("root")) {
            continue; // leads to the host's own root
        }
        let expected = host(&host_start, &path, flags, resolve);
        let found = ours(&here, &our_start, &path, flags, resolve);
        assert_eq!(found, expected, "{path} flags {flags:o} resolve {resolve}");
        if flags & OpenFlags::CREAT != 0 && expected.is_ok() {
            let removed = rustix::fs::unlinkat(&host_start, "new", rustix::fs::AtFlags::empty());
            let answer = here.with(|view, _| view.unlink(&our_start, b"new"));
            assert_eq!(answer, removed.map_err(|error| error.raw_os_error()));
        }
    }
}
