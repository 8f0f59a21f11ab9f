//! File systems whose files are made up when they are read: procfs and sysfs.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use drupe_appkernel_abi::{Errno, Result};

use crate::file::{Context, File, Metadata, Timestamp};
use crate::inode::{Attachment, DirEntry, FileSystem, Inode, InodeRef, LinkTarget};
use crate::kind::{FileType, SetAttributes, StatFs};
use crate::mount::anonymous_device;
use crate::open::OpenFlags;
use crate::sync::Mutex;

/// Makes the text of a file.
pub type Generate = Arc<dyn Fn() -> Result<Vec<u8>> + Send + Sync>;
/// Takes what is written to a file.
pub type Accept = Arc<dyn Fn(&Context, &[u8]) -> Result<()> + Send + Sync>;

/// What an entry is.
#[derive(Clone)]
pub enum Entry {
    Directory(Arc<dyn Directory>),
    Text(Generate),
    /// A text that may be written too.
    Control(Generate, Accept),
    Link(Arc<dyn Fn() -> Result<LinkTarget> + Send + Sync>),
}

/// An entry with its permissions and owner (uid, gid).
#[derive(Clone)]
pub struct Item {
    pub entry: Entry,
    pub permissions: u32,
    pub owner: (u32, u32),
    /// Read and followed by its owner alone, whatever the permissions, and by who may trace others (ptrace(2), access mode
    /// checking).
    pub guarded: bool,
}

impl Item {
    /// Of root's, with the usual permissions.
    pub fn new(entry: Entry) -> Self {
        let permissions = match entry {
            Entry::Directory(_) => 0o555,
            Entry::Text(_) => 0o444,
            Entry::Control(..) => 0o644,
            Entry::Link(_) => 0o777,
        };
        Self { entry, permissions, owner: (0, 0), guarded: false }
    }

    /// A text that never changes.
    pub fn fixed(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        Self::new(Entry::Text(Arc::new(move || Ok(bytes.clone()))))
    }

    pub fn text(generate: impl Fn() -> Result<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::new(Entry::Text(Arc::new(generate)))
    }

    pub fn link(lead: impl Fn() -> Result<LinkTarget> + Send + Sync + 'static) -> Self {
        Self::new(Entry::Link(Arc::new(lead)))
    }

    pub fn link_to(target: &str) -> Self {
        let text = target.as_bytes().to_vec();
        Self::link(move || Ok(LinkTarget::Text(text.clone())))
    }

    pub fn directory(directory: impl Directory + 'static) -> Self {
        Self::new(Entry::Directory(Arc::new(directory)))
    }

    #[must_use]
    pub fn with(self, permissions: u32, owner: (u32, u32)) -> Self {
        Self { permissions, owner, ..self }
    }

    #[must_use]
    pub fn guarded(self) -> Self {
        Self { guarded: true, ..self }
    }

    /// EACCES.
    fn check_reader(&self, context: &Context) -> Result<()> {
        const CAP_SYS_PTRACE: u32 = 19;
        let by = context.credentials;
        let may = !self.guarded || by.uid == self.owner.0 || by.capable(CAP_SYS_PTRACE);
        may.then_some(()).ok_or(Errno::ACCES)
    }

    fn kind(&self) -> FileType {
        match self.entry {
            Entry::Directory(_) => FileType::Directory,
            Entry::Link(_) => FileType::Symlink,
            _ => FileType::Regular,
        }
    }
}

/// A name in a directory, and a number by which to go on after it, ascending and never 0.
pub struct Listed {
    pub cookie: u64,
    pub name: Vec<u8>,
    pub kind: FileType,
}

/// A directory whose entries are made up.
pub trait Directory: Send + Sync {
    fn child(&self, name: &[u8]) -> Option<Item>;

    /// All entries, by cookie.
    fn list(&self) -> Vec<Listed>;
}

/// A directory with the same entries always.
#[derive(Default)]
pub struct Fixed(BTreeMap<Vec<u8>, Item>);

impl Fixed {
    pub fn new(items: impl IntoIterator<Item = (&'static str, Item)>) -> Self {
        Self(items.into_iter().map(|(name, item)| (name.as_bytes().to_vec(), item)).collect())
    }

    /// Directories as the paths ("a/b") of these items need them.
    pub fn tree(items: Vec<(String, Item)>) -> Self {
        let mut directories: BTreeMap<String, Vec<(String, Item)>> = BTreeMap::new();
        let mut here = BTreeMap::new();
        for (path, item) in items {
            match path.split_once('/') {
                Some((first, rest)) => directories.entry(first.into()).or_default().push((rest.into(), item)),
                None => drop(here.insert(path.into_bytes(), item)),
            }
        }
        let trees =
            directories.into_iter().map(|(name, items)| (name.into_bytes(), Item::directory(Self::tree(items))));
        here.extend(trees);
        Self(here)
    }
}

impl Directory for Fixed {
    fn child(&self, name: &[u8]) -> Option<Item> {
        self.0.get(name).cloned()
    }

    fn list(&self) -> Vec<Listed> {
        let listed = self.0.iter().zip(1..);
        listed.map(|((name, item), cookie)| Listed { cookie, name: name.clone(), kind: item.kind() }).collect()
    }
}

struct Shared {
    device: u64,
    since: Timestamp,
    nodes: Mutex<HashMap<u64, Weak<PseudoNode>>>,
}

/// A file system of made-up files.
pub struct PseudoFs {
    name: &'static str,
    magic: u64,
    root: Arc<PseudoNode>,
}

impl PseudoFs {
    /// `name` and `magic` as statfs(2) and /proc/filesystems have them; all times are `since`.
    pub fn new(name: &'static str, magic: u64, root: Arc<dyn Directory>, since: Timestamp) -> Arc<Self> {
        let shared = Arc::new(Shared { device: anonymous_device(), since, nodes: Mutex::default() });
        let root = PseudoNode::get(&shared, 1, Item::new(Entry::Directory(root)));
        Arc::new(Self { name, magic, root })
    }
}

impl FileSystem for PseudoFs {
    fn name(&self) -> &str {
        self.name
    }

    fn root(&self) -> InodeRef {
        self.root.clone()
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs { magic: self.magic, block_size_bytes: 4096, name_max_bytes: 255, ..StatFs::default() })
    }
}

/// A made-up file, directory or link.
struct PseudoNode {
    own: Weak<PseudoNode>,
    shared: Arc<Shared>,
    number: u64,
    item: Item,
    attachment: Attachment,
}

/// FNV-1a over the parent's number and the name: the same file has the same number each time.
fn number_below(parent: u64, name: &[u8]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let seed = parent.to_le_bytes().iter().fold(0xcbf2_9ce4_8422_2325, mix);
    name.iter().fold(seed, mix) >> 8 | 1 << 50
}

impl PseudoNode {
    fn get(shared: &Arc<Shared>, number: u64, item: Item) -> Arc<Self> {
        let mut nodes = shared.nodes.lock();
        if let Some(node) = nodes.get(&number).and_then(Weak::upgrade).filter(|node| node.item.owner == item.owner) {
            return node;
        }
        if nodes.len() >= 64 && nodes.len().is_power_of_two() {
            nodes.retain(|_, node| node.strong_count() > 0);
        }
        let (shared, attachment) = (Arc::clone(shared), Attachment::default());
        let node = Arc::new_cyclic(|own| Self { own: own.clone(), shared, number, item, attachment });
        nodes.insert(number, Arc::downgrade(&node));
        node
    }

    fn generate(&self) -> Result<Vec<u8>> {
        match &self.item.entry {
            Entry::Text(generate) | Entry::Control(generate, _) => generate(),
            _ => Err(Errno::INVAL),
        }
    }
}

impl Inode for PseudoNode {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn metadata(&self) -> Result<Metadata> {
        let since = self.shared.since;
        let (uid, gid) = self.item.owner;
        let links = if self.kind() == FileType::Directory { 2 } else { 1 };
        Ok(Metadata {
            device: self.shared.device,
            inode: self.number,
            links,
            uid,
            gid,
            accessed: since,
            modified: since,
            changed: since,
            block_size: 1024,
            ..Metadata::new(self.kind(), self.item.permissions)
        })
    }

    fn kind(&self) -> FileType {
        self.item.kind()
    }

    fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    fn lookup(&self, name: &[u8]) -> Result<InodeRef> {
        let Entry::Directory(directory) = &self.item.entry else { return Err(Errno::NOTDIR) };
        let item = directory.child(name).ok_or(Errno::NOENT)?;
        Ok(Self::get(&self.shared, number_below(self.number, name), item))
    }

    fn is_volatile(&self) -> bool {
        true
    }

    fn read_dir(&self, cookie: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        let Entry::Directory(directory) = &self.item.entry else { return Err(Errno::NOTDIR) };
        for Listed { cookie, name, kind } in directory.list().into_iter().filter(|entry| entry.cookie > cookie) {
            let inode = number_below(self.number, &name);
            if !sink(DirEntry { name: &name, inode, kind, next_cookie: cookie }) {
                break;
            }
        }
        Ok(())
    }

    fn check_follow(&self, context: &Context) -> Result<()> {
        self.item.check_reader(context)
    }

    fn read_link(&self) -> Result<LinkTarget> {
        match &self.item.entry {
            Entry::Link(lead) => lead(),
            _ => Err(Errno::INVAL),
        }
    }

    /// O_TRUNC of a control file changes nothing; nothing else can be changed.
    fn set_attributes(&self, _: &Context, changes: &SetAttributes) -> Result<()> {
        let cut = SetAttributes { size_bytes: Some(0), ..SetAttributes::default() };
        (*changes == cut && matches!(self.item.entry, Entry::Control(..))).then_some(()).ok_or(Errno::PERM)
    }

    fn open(&self, context: &Context, flags: OpenFlags) -> Result<Arc<dyn File>> {
        self.item.check_reader(context)?;
        if flags.writes() && !matches!(self.item.entry, Entry::Control(..)) {
            return Err(Errno::ACCES);
        }
        let node = self.own.upgrade().ok_or(Errno::NOENT)?;
        Ok(Arc::new(PseudoFile { node, text: Mutex::default() }))
    }
}

/// An open made-up file: its text is made when it is read from the start.
struct PseudoFile {
    node: Arc<PseudoNode>,
    text: Mutex<Option<Vec<u8>>>,
}

impl File for PseudoFile {
    fn read(&self, _: &Context, offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut text = self.text.lock();
        if offset == 0 || text.is_none() {
            *text = Some(self.node.generate()?);
        }
        let bytes = text.as_deref().unwrap_or_default();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let count = out.len().min(bytes.len() - start);
        out[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn write(&self, context: &Context, _: u64, data: &[u8]) -> Result<usize> {
        let Entry::Control(_, accept) = &self.node.item.entry else { return Err(Errno::INVAL) };
        accept(context, data)?;
        Ok(data.len())
    }

    fn append(&self, context: &Context, data: &[u8]) -> Result<(usize, u64)> {
        Ok((self.write(context, 0, data)?, data.len() as u64))
    }

    fn metadata(&self) -> Result<Metadata> {
        self.node.metadata()
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
