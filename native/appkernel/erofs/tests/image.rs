//! Images that mkfs.erofs wrote, compared with the tree that it was given; and the same images with bytes changed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use drupe_appkernel_abi::Result;
use drupe_appkernel_erofs::{Erofs, Image};
use drupe_appkernel_vfs::inode::LinkTarget;
use drupe_appkernel_vfs::{Context, Credentials, FileSystem, FileType, HostFile, InodeRef, OpenFlags, Timestamp};

struct NoHost;

impl HostFile for NoHost {
    fn raw_fd(&self) -> i32 {
        -1
    }
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("erofs-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("tree")).unwrap();
        Self(path)
    }

    /// None, with a word why, where mkfs.erofs is missing.
    fn image(&self) -> Option<Vec<u8>> {
        let image = self.0.join("image");
        let Ok(done) = Command::new("mkfs.erofs").arg("--quiet").arg(&image).arg(self.0.join("tree")).output() else {
            eprintln!("skipped: mkfs.erofs is not installed");
            return None;
        };
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Some(fs::read(image).unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn fill(tree: &Path) {
    for size in [0, 1, 100, 4095, 4096, 4097, 8192, 70_000] {
        let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        fs::write(tree.join(format!("file{size}")), bytes).unwrap();
    }
    fs::create_dir(tree.join("many")).unwrap();
    (0..1500).for_each(|i| fs::write(tree.join(format!("many/a-rather-long-name-{i}")), b"x").unwrap());
    std::os::unix::fs::symlink("../file1", tree.join("many/link")).unwrap();
    fs::hard_link(tree.join("file100"), tree.join("second")).unwrap();
}

fn open(bytes: Vec<u8>) -> Result<Arc<Erofs>> {
    Erofs::new(Image::open(Arc::new(bytes))?, Arc::new(NoHost))
}

fn names(directory: &InodeRef) -> Result<Vec<Vec<u8>>> {
    let (mut found, mut cookie) = (Vec::new(), 0);
    loop {
        let before = found.len();
        directory.read_dir(cookie, &mut |entry| {
            found.push(entry.name.to_vec());
            cookie = entry.next_cookie;
            found.len() - before < 100 // in pieces, so that going on is tested too
        })?;
        if found.len() == before || found.len() > 100_000 {
            return Ok(found);
        }
    }
}

fn content(inode: &InodeRef) -> Result<Vec<u8>> {
    let credentials = Credentials::root();
    let context = Context { credentials: &credentials, now: Timestamp::ZERO, pid: 1, session: 1 };
    let size = inode.metadata()?.size_bytes.min(1 << 20) as usize;
    let mut bytes = vec![0; size];
    let count = inode.open(&context, OpenFlags::default())?.read(&context, 0, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

fn compare(inode: &InodeRef, path: &Path) {
    let (ours, theirs) = (inode.metadata().unwrap(), fs::symlink_metadata(path).unwrap());
    assert_eq!((ours.mode, ours.uid, ours.gid), (theirs.mode(), theirs.uid(), theirs.gid()), "{path:?}");
    match ours.kind() {
        FileType::Directory => compare_directory(inode, path),
        FileType::Symlink => {
            let Ok(LinkTarget::Text(text)) = inode.read_link() else { panic!("{path:?}") };
            assert_eq!(OsStr::from_bytes(&text), fs::read_link(path).unwrap());
        }
        _ => {
            assert_eq!(u64::from(ours.links), theirs.nlink(), "{path:?}");
            assert_eq!(content(inode).unwrap(), fs::read(path).unwrap(), "{path:?}");
        }
    }
}

fn compare_directory(inode: &InodeRef, path: &Path) {
    let mut found = names(inode).unwrap();
    let mut expected: Vec<Vec<u8>> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{path:?}");
    inode
        .read_dir(0, &mut |entry| {
            assert_eq!(entry.kind, inode.lookup(entry.name).unwrap().kind(), "{path:?}");
            true
        })
        .unwrap();
    for name in found {
        compare(&inode.lookup(&name).unwrap(), &path.join(OsStr::from_bytes(&name)));
        let mut missing = name.clone();
        missing.push(b'!');
        assert!(inode.lookup(&missing).is_err());
    }
}

#[test]
fn the_image_is_the_tree() {
    let scratch = Scratch::new("tree");
    fill(&scratch.0.join("tree"));
    let Some(bytes) = scratch.image() else { return };
    compare(&open(bytes).unwrap().root(), &scratch.0.join("tree"));
}

/// Look at everything; only that it ends without a panic matters.
fn visit(inode: &InodeRef, depth: u32) -> Result<()> {
    inode.metadata()?;
    let _ = inode.xattrs()?.list();
    match inode.kind() {
        FileType::Directory if depth < 4 => {
            for name in names(inode)?.into_iter().take(50) {
                let _ = inode.lookup(&name).and_then(|child| visit(&child, depth + 1));
            }
        }
        FileType::Symlink => drop(inode.read_link()?),
        FileType::Regular => drop(content(inode)?),
        _ => {}
    }
    Ok(())
}

#[test]
fn a_corrupt_image_gives_errors_and_no_panic() {
    let scratch = Scratch::new("corrupt");
    let tree = scratch.0.join("tree");
    fs::create_dir(tree.join("d")).unwrap();
    fs::write(tree.join("d/f"), [7; 5000]).unwrap();
    std::os::unix::fs::symlink("d/f", tree.join("l")).unwrap();
    let Some(good) = scratch.image() else { return };
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..20_000_u32 {
        let mut bad = good.clone();
        for _ in 0..1 + random() % 8 {
            let used = 1024 + (random() as usize) % (bad.len() - 1024);
            bad[used] = random() as u8;
        }
        if round % 8 == 0 {
            bad.truncate((random() as usize) % good.len());
        }
        if let Ok(fs) = open(bad) {
            let _ = visit(&fs.root(), 0);
        }
    }
}
