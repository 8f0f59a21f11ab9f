use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::*;
use crate::file::{Context, File};
use crate::open::OpenFlags;
use crate::pipe;
use crate::testing::{Asker, Counter, Tree};
use crate::wait;

const NONBLOCK: OpenFlags = OpenFlags(OpenFlags::NONBLOCK);

/// A tree, a network, and who asks.
struct Scene {
    tree: Tree,
    network: Arc<Network>,
    asker: Asker,
}

impl Scene {
    fn new() -> Self {
        Self { tree: Tree::new(), network: Network::new(), asker: Asker::root() }
    }

    fn context(&self) -> Context<'_> {
        self.asker.context()
    }

    fn unix(&self, kind: SocketKind) -> Arc<LocalSocket> {
        LocalSocket::new(&self.network, Family::Unix, kind).unwrap()
    }

    fn with<T>(&self, run: impl FnOnce(&Caller<'_>) -> T) -> T {
        let context = self.context();
        let view = self.tree.view(&context);
        run(&Caller { view: &view, working: &self.tree.root })
    }

    fn bind(&self, socket: &LocalSocket, address: &Address) -> Result<()> {
        self.with(|caller| socket.bind(caller, address))
    }

    fn connect(&self, socket: &LocalSocket, address: &Address) -> Result<()> {
        self.with(|caller| socket.connect(caller, address))
    }
}

fn path(text: &str) -> Address {
    Address::Path(text.into())
}

#[test]
fn a_socket_is_found_at_its_path_until_it_is_closed() {
    let scene = Scene::new();
    let (server, client) = (scene.unix(SocketKind::Stream), scene.unix(SocketKind::Stream));
    scene.bind(&server, &path("s")).unwrap();
    assert_eq!(scene.bind(&server, &path("other")), Err(Errno::INVAL));
    assert_eq!(scene.bind(&client, &path("s")), Err(Errno::ADDRINUSE));
    assert_eq!(scene.connect(&client, &path("s")), Err(Errno::CONNREFUSED));
    server.listen(&scene.context(), 1).unwrap();
    scene.connect(&client, &path("s")).unwrap();
    let (accepted, from) = server.accept(&scene.context(), NONBLOCK).unwrap();
    assert_eq!((from, client.peer_name(), server.name()), (Address::Unnamed, Ok(path("s")), path("s")));
    assert_eq!(accepted.downcast::<LocalSocket>().unwrap().name(), path("s"));
    let credentials: Vec<u8> = [7_u32, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    assert_eq!(client.option(1, 17), Ok(credentials));
    drop(server);
    assert_eq!(scene.connect(&scene.unix(SocketKind::Stream), &path("s")), Err(Errno::CONNREFUSED));
    assert_eq!(scene.connect(&scene.unix(SocketKind::Stream), &path("t")), Err(Errno::NOENT));
    assert_eq!(client.write(&scene.context(), 0, b"still"), Ok(5));
}

#[test]
fn a_full_backlog_makes_wait_and_a_closed_listener_resets() {
    let scene = Scene::new();
    let server = scene.unix(SocketKind::Stream);
    scene.bind(&server, &Address::Abstract(b"name".to_vec())).unwrap();
    server.listen(&scene.context(), 0).unwrap();
    let clients: Vec<_> = (0..2).map(|_| scene.unix(SocketKind::Stream)).collect();
    let name = server.name();
    scene.connect(&clients[0], &name).unwrap();
    let woken = Arc::new(Counter::default());
    let _registration = clients[1].queue().unwrap().register(wait::OUT, woken.clone());
    assert_eq!(scene.connect(&clients[1], &name), Err(Errno::AGAIN));
    let accepted = server.accept(&scene.context(), NONBLOCK).unwrap();
    assert_eq!(woken.count(), 1);
    scene.connect(&clients[1], &name).unwrap();
    drop(server);
    let mut out = [0; 9];
    assert_eq!(clients[1].read(&scene.context(), 0, &mut out), Err(Errno::CONNRESET));
    assert_eq!(clients[0].read(&scene.context(), 0, &mut out), Err(Errno::AGAIN));
    drop(accepted);
    assert_eq!(clients[0].read(&scene.context(), 0, &mut out), Ok(0));
    assert_eq!(scene.connect(&scene.unix(SocketKind::Stream), &name), Err(Errno::CONNREFUSED));
}

#[test]
fn files_arrive_with_their_bytes_and_close_with_the_inbox() {
    let scene = Scene::new();
    let context = scene.context();
    let (one, two) = LocalSocket::pair(&context, &scene.network, SocketKind::Stream).unwrap();
    let (read, write) = pipe::pipe(&context, NONBLOCK).unwrap();
    one.write(&context, 0, b"before").unwrap();
    one.send(&context, b"with", Outgoing { files: vec![write], ..Outgoing::default() }).unwrap();
    one.write(&context, 0, b"after").unwrap();
    let mut out = [0; 99];
    assert_eq!(read.read(&context, &mut out), Err(Errno::AGAIN)); // the writing end lives on its way
    let received = two.receive(&context, &mut out, MSG_PEEK).unwrap();
    assert_eq!((received.count, received.files.len()), (6, 0));
    let received = two.receive(&context, &mut out, 0).unwrap();
    assert_eq!((&out[..received.count], received.files.len()), (&b"beforewith"[..], 1));
    received.files[0].write(&context, b"x").unwrap();
    drop(received);
    assert_eq!(read.read(&context, &mut out), Ok(1));
    assert_eq!(read.read(&context, &mut out), Ok(0));
    assert_eq!(two.read(&context, 0, &mut out), Ok(5));
}

/// Each pair holds an end of the one before in an inbox; closing the last must not need a stack as deep as the chain.
#[test]
fn a_long_chain_of_sockets_in_flight_is_closed_and_too_long_a_one_refused() {
    let scene = Scene::new();
    let context = scene.context();
    let new = || LocalSocket::pair(&context, &scene.network, SocketKind::Datagram).unwrap();
    let (mut last, mut refused) = (new(), false);
    for _ in 0..9000 {
        let next = new();
        let files = vec![last.0.open(&context, NONBLOCK), last.1.open(&context, NONBLOCK)];
        match next.0.send(&context, b"x", Outgoing { files, ..Outgoing::default() }) {
            Ok(_) => last = next,
            Err(error) => {
                assert_eq!(error, Errno::TOOMANYREFS);
                refused = true;
                break;
            }
        }
    }
    assert!(refused);
}

#[test]
fn credentials_come_when_asked_for_and_cannot_be_forged() {
    let (scene, asker) = (Scene::new(), Asker::user(1000));
    let user = asker.context();
    let (one, two) = LocalSocket::pair(&user, &scene.network, SocketKind::Datagram).unwrap();
    let forged = Some(PeerCredentials::default());
    let outgoing = Outgoing { credentials: forged, ..Outgoing::default() };
    assert_eq!(one.send(&user, b"x", outgoing).err(), Some(Errno::PERM));
    one.write(&user, 0, b"x").unwrap();
    one.write(&user, 0, b"yz").unwrap();
    let mut out = [0; 1];
    assert_eq!(two.receive(&user, &mut out, 0).unwrap().credentials, None);
    two.set_option(1, 16, &1_u32.to_ne_bytes()).unwrap();
    let received = two.receive(&user, &mut out, 0).unwrap();
    assert_eq!(received.credentials, Some(PeerCredentials { pid: 7, uid: 1000, gid: 1000 }));
    assert_eq!((received.count, received.full_length, received.flags), (1, 2, MSG_TRUNC));
}

#[test]
fn ports_are_told_apart_and_shared_when_both_say_so() {
    let scene = Scene::new();
    let tcp = |family| LocalSocket::new(&scene.network, family, SocketKind::Stream).unwrap();
    let any = |text: &str| Address::Inet(text.parse().unwrap());
    let (one, two) = (tcp(Family::V4), tcp(Family::V4));
    scene.bind(&one, &any("0.0.0.0:80")).unwrap();
    assert_eq!(scene.bind(&two, &any("127.0.0.1:80")), Err(Errno::ADDRINUSE));
    assert_eq!(scene.bind(&two, &any("10.1.1.1:81")), Err(Errno::ADDRNOTAVAIL));
    assert_eq!(scene.connect(&two, &any("10.1.1.1:80")), Err(Errno::NETUNREACH));
    [&one, &two].iter().for_each(|socket| socket.set_option(1, 15, &1_u32.to_ne_bytes()).unwrap());
    scene.bind(&two, &any("127.0.0.1:80")).unwrap();
    one.listen(&scene.context(), 9).unwrap();
    let client = tcp(Family::V6);
    scene.connect(&client, &any("[::ffff:127.0.0.1]:80")).unwrap();
    assert_eq!(client.peer_name(), Ok(any("[::ffff:127.0.0.1]:80")));
    let (accepted, from) = one.accept(&scene.context(), NONBLOCK).unwrap();
    assert!(matches!(from, Address::Inet(from) if from.is_ipv4() && from.ip().is_loopback()));
    drop((accepted, one));
    let user = Asker::user(5);
    let context = user.context();
    let view = scene.tree.view(&context);
    let caller = Caller { view: &view, working: &scene.tree.root };
    assert_eq!(tcp(Family::V4).bind(&caller, &any("127.0.0.1:99")), Err(Errno::ACCES));
}

#[test]
fn addresses_and_control_messages_survive_both_ways() {
    let inet = |text: &str| Address::Inet(text.parse().unwrap());
    for address in
        [path("a/b"), Address::Abstract(b"\0x".to_vec()), inet("1.2.3.4:567"), inet("[fe80::1]:9"), Address::Unnamed]
    {
        assert_eq!(Address::decode(&address.encode()), Ok(address));
    }
    assert_eq!((Address::decode(&[1]), Address::decode(&[99, 0, 1])), (Err(Errno::INVAL), Err(Errno::AFNOSUPPORT)));
    let (mut bytes, level) = (Vec::new(), SOL_SOCKET);
    let messages = [(SCM_RIGHTS, &b"12345"[..]), (SCM_CREDENTIALS, b"12")].map(|(kind, data)| ControlMessage {
        level,
        kind,
        data,
    });
    assert!(messages.iter().all(|message| push_control_message(&mut bytes, 42, *message)));
    assert!(!push_control_message(&mut bytes, 42, messages[1]));
    assert_eq!(control_messages(&bytes), Ok(messages.to_vec()));
    let mut seed = 0x1234_5678_u64;
    for _ in 0..5000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (mut bad, at) = (bytes.clone(), (seed >> 40) as usize % bytes.len());
        bad[at] ^= (seed >> 32) as u8;
        bad.truncate((seed >> 20) as usize % 50);
        let _ = control_messages(&bad); // only that it ends
        let _ = Address::decode(&bad);
    }
}
