use drupe_appkernel_abi::Errno;

use super::*;
use crate::dentry::Path;
use crate::inode::RenameMode;
use crate::mount::Mount;
use crate::open::OpenFlags;
use crate::testing::{tmpfs, Asker, Tree};
use crate::tmpfs::Limits;
use crate::walk::{How, View};

const RW: OpenFlags = OpenFlags(OpenFlags::RDWR | OpenFlags::CREAT);

/// An overlay whose lower layer `fill` has made.
fn over(limits: Limits, fill: impl Fn(&View<'_>, &Path)) -> Tree {
    let (lower, asker) = (tmpfs(Limits::default()), Asker::root());
    let context = asker.context();
    let below = Tree::of(Mount::new(lower.clone(), b"lower", 0));
    fill(&below.view(&context), &below.root);
    let overlay = Overlay::new(&context, tmpfs(limits), vec![lower.root()]).unwrap();
    Tree::of(Mount::new(overlay, b"overlay", 0))
}

fn put(view: &View<'_>, root: &Path, name: &str, bytes: &[u8]) {
    view.open(root, name.as_bytes(), RW, 0o644, 0).unwrap().write(view.context, bytes).unwrap();
}

fn get(view: &View<'_>, root: &Path, name: &str) -> Result<Vec<u8>> {
    let (file, mut out) = (view.open(root, name.as_bytes(), OpenFlags(0), 0, 0)?, vec![0; 99]);
    let count = file.read(view.context, &mut out)?;
    out.truncate(count);
    Ok(out)
}

fn names(view: &View<'_>, root: &Path, name: &str) -> Vec<String> {
    let directory = view.open(root, name.as_bytes(), OpenFlags(OpenFlags::DIRECTORY), 0, 0).unwrap();
    let mut found = Vec::new();
    let mut add = |entry: crate::inode::DirEntry<'_>| {
        found.push(String::from_utf8_lossy(entry.name).into_owned());
        true
    };
    directory.read_dir(&mut add).unwrap();
    found.split_off(2)
}

#[test]
fn a_directory_in_the_place_of_one_that_was_removed_is_empty() {
    let asker = Asker::root();
    let context = asker.context();
    let tree = over(Limits::default(), |view, root| {
        ["d", "e"].iter().for_each(|name| drop(view.mkdir(root, name.as_bytes(), 0o755).unwrap()));
        ["d/x", "d/y", "e/z"].iter().for_each(|name| put(view, root, name, b"lower"));
    });
    let (view, root) = (tree.view(&context), &tree.root);
    assert_eq!(view.rmdir(root, b"d"), Err(Errno::NOTEMPTY));
    [&b"d/x"[..], b"d/y", b"e/z"].iter().for_each(|name| view.unlink(root, name).unwrap());
    [&b"d"[..], b"e"].iter().for_each(|name| view.rmdir(root, name).unwrap());
    assert_eq!(names(&view, root, "."), [""; 0]);
    view.mkdir(root, b"d", 0o755).unwrap();
    assert_eq!(names(&view, root, "d"), [""; 0]);
    view.rename((root, b"d"), (root, b"e"), RenameMode::Replace).unwrap();
    assert_eq!((names(&view, root, "e"), names(&view, root, ".")), (vec![], vec!["e".to_string()]));
}

#[test]
fn a_copy_keeps_number_times_names_and_readers() {
    let asker = Asker::root();
    let context = asker.context();
    let tree = over(Limits::default(), |view, root| {
        put(view, root, "f", b"lower");
        let path = view.walk(root, b"f", How::FOLLOW).unwrap();
        view.link(&path, root, b"g").unwrap();
    });
    let (view, root) = (tree.view(&context), &tree.root);
    let stat = |name: &[u8]| view.walk(root, name, How::FOLLOW).unwrap().inode().metadata().unwrap();
    let (reader, before) = (view.open(root, b"f", OpenFlags(0), 0, 0).unwrap(), stat(b"f"));
    put(&view, root, "f", b"LO");
    let mut out = [0; 9];
    assert_eq!((reader.read(&context, &mut out), &out[..5]), (Ok(5), &b"LOwer"[..]));
    drop(reader);
    assert_eq!(get(&view, root, "g"), Ok(b"LOwer".to_vec()));
    assert_eq!((stat(b"f").inode, stat(b"g").inode), (before.inode, before.inode));
    view.unlink(root, b"f").unwrap();
    view.rename((root, b"g"), (root, b"h"), RenameMode::Replace).unwrap();
    assert_eq!((names(&view, root, "."), get(&view, root, "h")), (vec!["h".into()], Ok(b"LOwer".to_vec())));
}

#[test]
fn a_full_upper_layer_leaves_the_lower_one_to_be_seen_and_to_be_removed() {
    let asker = Asker::root();
    let context = asker.context();
    let limits = Limits { size_bytes: 4096, inodes: 3 }; // the root, the whiteout, one more
    let tree = over(limits, |view, root| put(view, root, "big", &[7; 9000]));
    let (view, root) = (tree.view(&context), &tree.root);
    assert_eq!(view.open(root, b"big", RW, 0, 0).err(), Some(Errno::NOSPC));
    let path = view.walk(root, b"big", How::FOLLOW).unwrap();
    assert_eq!(path.inode().metadata().unwrap().size_bytes, 9000);
    put(&view, root, "new", b"x");
    assert_eq!(view.mkdir(root, b"more", 0o755).err(), Some(Errno::NOSPC));
    view.unlink(root, b"big").unwrap();
    assert_eq!(names(&view, root, "."), ["new"]);
}

#[test]
fn directories_of_the_lower_layer_stay_and_whiteouts_cannot_be_made_or_seen() {
    let asker = Asker::root();
    let context = asker.context();
    let tree = over(Limits::default(), |view, root| {
        view.mkdir(root, b"d", 0o755).unwrap();
        put(view, root, "d/f", b"lower");
    });
    let (view, root) = (tree.view(&context), &tree.root);
    assert_eq!(view.rename((root, b"d"), (root, b"e"), RenameMode::Replace), Err(Errno::XDEV));
    assert_eq!(view.mknod(root, b"w", FileType::CharDevice.mode_bits(), 0).err(), Some(Errno::PERM));
    let directory = view.walk(root, b"d", How::FOLLOW).unwrap();
    let xattrs = directory.inode().xattrs().unwrap();
    assert_eq!(xattrs.set(&context, OPAQUE, b"y", XattrMode::Any), Err(Errno::NOTSUP));
    xattrs.set(&context, b"user.note", b"v", XattrMode::Any).unwrap();
    assert_eq!(xattrs.list(), Ok(vec![b"user.note".to_vec()]));
    assert_eq!(names(&view, root, "d"), ["f"]);
}

#[test]
fn entries_stay_where_they_are_while_they_are_copied_up() {
    let asker = Asker::root();
    let context = asker.context();
    let tree = over(Limits::default(), |view, root| {
        (0..30).for_each(|index| put(view, root, &format!("f{index}"), b"lower"));
    });
    let (view, root) = (tree.view(&context), &tree.root);
    let directory = view.open(root, b".", OpenFlags(OpenFlags::DIRECTORY), 0, 0).unwrap();
    let mut seen: Vec<String> = Vec::new();
    for round in 0..30 {
        let mut room = 2;
        let mut add = |entry: crate::inode::DirEntry<'_>| {
            room -= 1;
            if room >= 0 {
                seen.push(String::from_utf8_lossy(entry.name).into_owned());
            }
            room >= 0
        };
        directory.read_dir(&mut add).unwrap();
        put(&view, root, &format!("f{}", 29 - round), b"upper");
    }
    assert_eq!(seen.len(), 32);
    let (mut sorted, expected) = (seen.split_off(2), (0..30).map(|index| format!("f{index}")));
    sorted.sort_by_key(|name| name[1..].parse::<u32>().unwrap());
    assert!(sorted.into_iter().eq(expected));
}

/// Nothing that a workload can nest makes the kernel's stack deep.
#[test]
fn a_very_deep_directory_can_be_left_and_dropped() {
    let asker = Asker::root();
    let context = asker.context();
    let plain = Tree::of(Mount::new(tmpfs(Limits::default()), b"tmpfs", 0));
    for tree in [plain, over(Limits::default(), |_, _| {})] {
        let view = tree.view(&context);
        let mut at = tree.root.clone();
        for _ in 0..20_000 {
            at = view.mkdir(&at, b"d", 0o755).unwrap();
        }
        drop(at);
    }
}
