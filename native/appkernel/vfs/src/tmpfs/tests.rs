use drupe_appkernel_abi::Errno;

use super::*;
use crate::file::SeekFrom;
use crate::inode::RenameMode;
use crate::open::OpenFlags;
use crate::testing::{tmpfs, Asker, Tree};
use crate::walk::How;

const RW: OpenFlags = OpenFlags(OpenFlags::RDWR | OpenFlags::CREAT);

#[test]
fn bytes_are_where_they_were_written_also_after_mapping_and_cutting() {
    let (tree, asker) = (Tree::new(), Asker::root());
    let context = asker.context();
    let view = tree.view(&context);
    let file = view.open(&tree.root, b"f", RW, 0o666, 0).unwrap();
    assert_eq!(file.pwrite(&context, 5000, b"later").unwrap(), 5);
    file.write(&context, b"start").unwrap();
    let mut out = vec![0xff; 6000];
    for mapped in [false, true] {
        if mapped {
            file.file().mapping(0, 8192, true).unwrap();
        }
        assert_eq!(file.pread(&context, 0, &mut out).unwrap(), 5005);
        assert_eq!((&out[..5], &out[5..5000], &out[5000..5005]), (&b"start"[..], &vec![0; 4995][..], &b"later"[..]));
    }
    file.truncate(&context, 3).unwrap();
    file.truncate(&context, 10).unwrap();
    assert_eq!(file.pread(&context, 0, &mut out).unwrap(), 10);
    assert_eq!(&out[..10], b"sta\0\0\0\0\0\0\0");
    assert_eq!(file.seek(SeekFrom::End(-1)).unwrap(), 9);
    assert_eq!(file.seek(SeekFrom::Current(-10)), Err(Errno::INVAL));
}

#[test]
fn the_size_limit_holds_and_is_given_back() {
    let fs = tmpfs(Limits { size_bytes: 3 * PAGE_BYTES as u64, inodes: 4 });
    let tree = Tree::of(crate::mount::Mount::new(fs.clone(), b"t", 0));
    let asker = Asker::root();
    let context = asker.context();
    let view = tree.view(&context);
    let file = view.open(&tree.root, b"f", RW, 0o666, 0).unwrap();
    assert_eq!(file.write(&context, &[1; 4 * PAGE_BYTES]).unwrap(), 3 * PAGE_BYTES);
    assert_eq!(file.write(&context, b"x"), Err(Errno::NOSPC));
    file.truncate(&context, 1).unwrap();
    assert_eq!(fs.usage(), (PAGE_BYTES as u64, 2));
    assert_eq!(file.file().allocate(&context, 0, 0, 4 * PAGE_BYTES as u64), Err(Errno::NOSPC));
    assert_eq!(fs.usage().0, PAGE_BYTES as u64);
    view.unlink(&tree.root, b"f").unwrap();
    drop(file);
    assert_eq!(fs.usage(), (0, 1));
    (0..3).for_each(|i| drop(view.mkdir(&tree.root, format!("d{i}").as_bytes(), 0o755).unwrap()));
    assert_eq!(view.mkdir(&tree.root, b"more", 0o755).err(), Some(Errno::NOSPC));
}

#[test]
fn holes_are_found_and_punched() {
    let (tree, asker) = (Tree::new(), Asker::root());
    let context = asker.context();
    let file = tree.view(&context).open(&tree.root, b"f", RW, 0o666, 0).unwrap();
    file.pwrite(&context, 0, &[1; 4 * PAGE_BYTES]).unwrap();
    file.file().allocate(&context, 3, 100, 3 * PAGE_BYTES as u64).unwrap();
    let mut out = vec![9; 4 * PAGE_BYTES];
    file.pread(&context, 0, &mut out).unwrap();
    assert!(out[..100].iter().all(|&b| b == 1) && out[100..3 * PAGE_BYTES + 100].iter().all(|&b| b == 0));
    assert!(out[3 * PAGE_BYTES + 100..].iter().all(|&b| b == 1));
    assert_eq!(file.seek(SeekFrom::Hole(0)).unwrap(), PAGE_BYTES as u64);
    assert_eq!(file.seek(SeekFrom::Data(PAGE_BYTES as u64)).unwrap(), 3 * PAGE_BYTES as u64);
    assert_eq!(file.seek(SeekFrom::Data(4 * PAGE_BYTES as u64)), Err(Errno::NXIO));
}

#[test]
fn renames_replace_exchange_and_refuse() {
    let (tree, asker) = (Tree::new(), Asker::root());
    let context = asker.context();
    let (view, root) = (tree.view(&context), &tree.root);
    for name in [&b"a"[..], b"b", b"a/x"] {
        view.mkdir(root, name, 0o755).unwrap();
    }
    view.open(root, b"f", RW, 0o644, 0).unwrap().write(&context, b"f").unwrap();
    let rename = |old: &[u8], new: &[u8], mode| view.rename((root, old), (root, new), mode);
    assert_eq!(rename(b"a", b"a/x/y", RenameMode::Replace), Err(Errno::INVAL));
    assert_eq!(rename(b"b", b"a", RenameMode::Replace), Err(Errno::NOTEMPTY));
    assert_eq!(rename(b"f", b"a", RenameMode::Replace), Err(Errno::ISDIR));
    assert_eq!(rename(b"a", b"f", RenameMode::Replace), Err(Errno::NOTDIR));
    assert_eq!(rename(b"f", b"b", RenameMode::NoReplace), Err(Errno::EXIST));
    rename(b"f", b"a", RenameMode::Exchange).unwrap();
    assert!(view.walk(root, b"f/x", How::FOLLOW).unwrap().inode().metadata().unwrap().is_directory());
    assert_eq!(view.walk(root, b"a", How::FOLLOW).unwrap().inode().metadata().unwrap().size_bytes, 1);
    rename(b"f", b"b", RenameMode::Replace).unwrap();
    assert_eq!(view.walk(root, b"f", How::FOLLOW).err(), Some(Errno::NOENT));
    assert_eq!(root.inode().metadata().unwrap().links, 3);
}

#[test]
fn seals_hold() {
    let fs = tmpfs(Limits::default());
    let asker = Asker::root();
    let context = asker.context();
    let node = fs.memfd(&NewNode::new(FileType::Regular, 0o777, 0, 0), true, context.now).unwrap();
    let file = TmpFile::new(node);
    use crate::file::File;
    file.write(&context, 0, b"abc").unwrap();
    file.add_seals(F_SEAL_GROW).unwrap();
    assert_eq!(file.write(&context, 2, b"xy"), Err(Errno::PERM));
    file.write(&context, 0, b"x").unwrap();
    file.add_seals(F_SEAL_WRITE | F_SEAL_SEAL).unwrap();
    assert_eq!(file.write(&context, 0, b"x"), Err(Errno::PERM));
    assert_eq!(file.add_seals(F_SEAL_SHRINK), Err(Errno::PERM));
    assert!(file.mapping(0, 4096, true).is_err());
    assert!(file.mapping(0, 4096, false).is_ok());
}
