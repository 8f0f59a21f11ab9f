//! Every kind of file, asked for anything, with numbers at the edges: whatever it answers, it must not panic.

use std::sync::Arc;

use crate::anonymous;
use crate::devices::{populate, Devices, Entropy, NoTerminals, Terminals};
use crate::event::{Epoll, EpollEvent, EventFd, TimerFd, TimerSetting};
use crate::file::{Context, File, SeekFrom};
use crate::inode::NewNode;
use crate::inotify::Inotify;
use crate::kind::FileType;
use crate::mount::Mount;
use crate::open::{OpenFile, OpenFlags};
use crate::overlay::Overlay;
use crate::pipe::{self, PipeEnd};
use crate::socket::{Address, Caller, Family, LocalSocket, Network, Outgoing, SocketKind};
use crate::testing::{tmpfs, Asker, HandClock, Tree};
use crate::time::{Clock, ClockId};
use crate::tmpfs::{Limits, TmpFile};
use crate::tty::{Devpts, Jobs, Master};
use crate::walk::View;

/// Whatever was answered.
fn any<T>(_: T) {}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number that somebody may have forgotten.
    fn edge(&mut self) -> u64 {
        let edges = [0_u64, 1, 7, 8, 4095, 4096, 4097, 65_535, 65_536, 1 << 31, 1 << 32, 1 << 63];
        let base = edges[self.below(edges.len() as u64) as usize];
        match self.below(4) {
            0 => self.next(),
            1 => u64::MAX - self.below(10),
            2 => base.wrapping_sub(self.below(3)),
            _ => base.wrapping_add(self.below(3)),
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = [0, 1, 4, 8, 16, 36, 44, 128, 5000][self.below(9) as usize];
        (0..length).map(|_| self.next() as u8).collect()
    }
}

struct Ones;

impl Entropy for Ones {
    fn fill(&self, out: &mut [u8]) {
        out.fill(1);
    }
}

struct NoJobs;

impl Jobs for NoJobs {
    fn own_group(&self) -> u32 {
        7
    }

    fn session_of(&self, group: u32) -> Option<u32> {
        (group < 9).then_some(7)
    }

    fn signal(&self, _: u32, _: i32) {}

    fn would_stop(&self, signal: i32) -> bool {
        signal == 21
    }
}

const RDWR: OpenFlags = OpenFlags(OpenFlags::RDWR);

fn of_tree(view: &View<'_>, tree: &Tree) -> Vec<Arc<OpenFile>> {
    let create = OpenFlags(OpenFlags::RDWR | OpenFlags::CREAT);
    let open = |name: &[u8], flags| view.open(&tree.root, name, flags, 0o644, 0).unwrap();
    let kind = FileType::Fifo.mode_bits() | 0o644;
    view.mknod(&tree.root, b"fifo", kind, 0).unwrap();
    let mut files = vec![open(b"file", create), open(b".", OpenFlags(0)), open(b"fifo", RDWR)];
    files.push(open(b"file", OpenFlags(OpenFlags::PATH)));
    files.extend([&b"null"[..], b"zero", b"full", b"random"].map(|name| open(name, RDWR)));
    files
}

fn events(context: &Context) -> Vec<Arc<OpenFile>> {
    let clock: Arc<dyn Clock> = Arc::new(HandClock::default());
    let files: [Arc<dyn File>; 4] =
        [EventFd::new(3, false), TimerFd::new(clock, ClockId::Monotonic), Epoll::new(), Inotify::new()];
    files.map(|file| anonymous::open(context, file, "test", RDWR)).to_vec()
}

fn talkers(context: &Context) -> Vec<Arc<OpenFile>> {
    let (network, terminals) = (Network::new(), Devpts::new(Arc::new(NoJobs)));
    let mut files = Vec::new();
    for kind in [SocketKind::Stream, SocketKind::Datagram, SocketKind::SeqPacket] {
        let (one, two) = LocalSocket::pair(context, &network, kind).unwrap();
        files.extend([one, two].map(|end| end.open(context, OpenFlags(0))));
    }
    for family in [Family::V4, Family::V6, Family::Unix] {
        let kinds = [SocketKind::Stream, SocketKind::Datagram];
        files.extend(kinds.map(|kind| LocalSocket::new(&network, family, kind).unwrap().open(context, OpenFlags(0))));
    }
    let master = terminals.new_master(context).unwrap();
    let mut unlocked = vec![0; 4];
    master.ioctl(context, 0x4004_5431, 0, &mut unlocked).unwrap();
    let slave = master.as_any().downcast_ref::<Master>().unwrap().open_peer(context, RDWR).unwrap();
    files.extend([master, slave].map(|end| anonymous::open(context, end, "tty", RDWR)));
    let (read, write) = pipe::pipe(context, OpenFlags(0)).unwrap();
    files.extend([read, write]);
    files
}

const REQUESTS: [u32; 24] = [
    0x5401,
    0x5402,
    0x5403,
    0x5404,
    0x5409,
    0x540A,
    0x540B,
    0x540E,
    0x540F,
    0x5410,
    0x5411,
    0x5413,
    0x5414,
    0x541B,
    0x5422,
    0x5429,
    0x802C_542A,
    0x402C_542B,
    0x8004_5430,
    0x4004_5431,
    0x8004_5439,
    0x8004_5200,
    0x5425,
    0x402C_542D,
];

/// One request to any file. What is answered does not matter.
fn ask(view: &View<'_>, tree: &Tree, file: &OpenFile, random: &mut Random) {
    let (context, object, edge, other) = (view.context, file.file(), random.edge(), random.edge());
    let mut data = random.bytes();
    match random.below(14) {
        0 | 1 => any(file.read(context, &mut data).is_ok()),
        2 | 3 => any(file.write(context, &data).is_ok()),
        4 => any(file.pread(context, edge, &mut data).is_ok()),
        5 => any(file.pwrite(context, edge % (1 << 20), &data).is_ok()),
        6 => any(file.pwrite(context, edge, &data).is_ok()),
        7 => {
            let to = [SeekFrom::Start(edge), SeekFrom::Current(edge as i64), SeekFrom::End(edge as i64)];
            let holes = [SeekFrom::Data(edge), SeekFrom::Hole(edge)];
            any(file.seek(to.into_iter().chain(holes).nth(random.below(5) as usize).unwrap()).is_ok());
        }
        8 => any(file.truncate(context, if random.below(2) == 0 { edge } else { edge % 100_000 }).is_ok()),
        9 => any(object.allocate(context, random.below(5) as u32, edge, other).is_ok()),
        10 => {
            let request = REQUESTS[random.below(REQUESTS.len() as u64) as usize];
            any(object.ioctl(context, request, edge, &mut data).is_ok());
        }
        11 => any(object.read_dir(edge, &mut |_| random.below(3) > 0).is_ok()),
        12 => {
            any((file.poll(edge as u32), file.metadata().is_ok(), object.mapping(edge, other, edge % 2 == 0).is_ok()))
        }
        _ => ask_by_kind(view, tree, file, random),
    }
}

fn ask_by_kind(view: &View<'_>, tree: &Tree, file: &OpenFile, random: &mut Random) {
    let (context, edge, data) = (view.context, random.edge(), random.bytes());
    if let Some(socket) = file.downcast::<LocalSocket>() {
        let caller = Caller { view, working: &tree.root };
        let port = random.below(3) as u16 * 1000;
        let inet = Address::Inet(([127, 0, 0, 1], port).into());
        let to = Address::decode(&data).unwrap_or(inet);
        any(match random.below(7) {
            0 => socket.bind(&caller, &to),
            1 => socket.connect(&caller, &to),
            2 => socket.listen(context, edge as u32),
            3 => socket.shutdown(random.below(4) as u32),
            4 => socket.set_option(random.below(50) as u32, random.below(70) as u32, &data),
            5 => socket.option(random.below(50) as u32, random.below(70) as u32).map(any),
            _ => socket.send(context, &data, Outgoing { to: Some((&caller, &to)), ..Outgoing::default() }).map(any),
        });
    }
    if let Some(timer) = file.downcast::<TimerFd>() {
        let time = std::time::Duration::new(edge, random.below(1_000_000_000) as u32);
        timer.set(TimerSetting { value: time, interval: time }, edge % 2 == 0);
        timer.get();
    }
    if let Some(pipe) = file.downcast::<PipeEnd>() {
        any(pipe.set_capacity(context, (edge % (1 << 24)) as usize).is_ok());
        any(pipe.set_capacity(context, edge as usize).is_ok());
    }
    if let Some(file) = file.downcast::<TmpFile>() {
        any(file.add_seals(edge as u32 & !31).is_ok());
    }
}

#[test]
fn nothing_that_is_asked_of_a_file_makes_the_kernel_panic() {
    let asker = Asker::root();
    let context = asker.context();
    let limits = Limits { size_bytes: 1 << 20, inodes: 500 };
    let lower = tmpfs(Limits::default());
    let node = NewNode::new(FileType::Regular, 0o644, 0, 0);
    crate::inode::FileSystem::root(&*lower).create(&context, b"file", &node).unwrap();
    let root = crate::inode::FileSystem::root(&*lower);
    let overlay = Overlay::new(&context, tmpfs(limits), vec![root]).unwrap();
    for (seed, mount) in [(11, Mount::new(tmpfs(limits), b"t", 0)), (2, Mount::new(overlay, b"o", 0))] {
        let tree = Tree::of(mount);
        populate(&context, tree.root.inode()).unwrap();
        let devices = Devices { entropy: Arc::new(Ones), terminals: Arc::new(NoTerminals) };
        let view = View { specials: &devices, ..tree.view(&context) };
        let mut random = Random(seed);
        for _ in 0..3 {
            any(view.unlink(&tree.root, b"fifo").is_ok());
            let mut files = of_tree(&view, &tree);
            files.extend(events(&context));
            files.extend(talkers(&context));
            watch_all(&files, &mut random);
            for _ in 0..2500 {
                let at = random.below(files.len() as u64) as usize;
                ask(&view, &tree, &files[at], &mut random);
            }
        }
    }
}

fn watch_all(files: &[Arc<OpenFile>], random: &mut Random) {
    let epolls = files.iter().filter_map(|file| file.downcast::<Epoll>());
    for (epoll, (fd, file)) in epolls.flat_map(|epoll| files.iter().enumerate().map(move |each| (epoll, each))) {
        let event = EpollEvent { events: random.edge() as u32, data: 0 };
        any(epoll.control(crate::event::Control::Add, fd as i32, file, event).is_ok());
        epoll.wait(random.below(5) as usize);
    }
}
