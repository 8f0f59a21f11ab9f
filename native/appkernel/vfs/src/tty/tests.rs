use std::sync::Arc;

use drupe_appkernel_abi::{Errno, Result};

use super::*;
use crate::devices::Terminals;
use crate::file::{Context, File};
use crate::ioctl::{get_i32, put_i32};
use crate::mount::Mount;
use crate::open::OpenFlags;
use crate::sync::Mutex;
use crate::testing::{Asker, Counter, Tree};
use crate::wait;
use crate::walk::View;

const TIOCGPGRP: u32 = 0x540F;
const TIOCSPGRP: u32 = 0x5410;
const TIOCSWINSZ: u32 = 0x5414;
const TIOCSPTLCK: u32 = 0x4004_5431;
const TIOCGPTN: u32 = 0x8004_5430;

/// Groups 7 (the leader's) and 8 in session 7, 9 in session 9; the caller is in `own`.
#[derive(Default)]
struct Groups {
    own: Mutex<u32>,
    ignores: Mutex<bool>,
    sent: Mutex<Vec<(u32, i32)>>,
}

impl Groups {
    fn take(&self) -> Vec<(u32, i32)> {
        std::mem::take(&mut *self.sent.lock())
    }
}

impl Jobs for Groups {
    fn own_group(&self) -> u32 {
        *self.own.lock()
    }

    fn session_of(&self, group: u32) -> Option<u32> {
        [(7, 7), (8, 7), (9, 9)].into_iter().find(|(known, _)| *known == group).map(|(_, session)| session)
    }

    fn signal(&self, group: u32, signal: i32) {
        self.sent.lock().push((group, signal));
    }

    fn would_stop(&self, _: i32) -> bool {
        !*self.ignores.lock()
    }
}

struct Scene {
    jobs: Arc<Groups>,
    tree: Tree,
    pts: Arc<Devpts>,
}

impl Scene {
    fn new() -> Self {
        let jobs = Arc::new(Groups::default());
        *jobs.own.lock() = 7;
        let pts = Devpts::new(jobs.clone());
        Self { jobs, tree: Tree::of(Mount::new(pts.clone(), b"devpts", 0)), pts }
    }

    fn open(&self, context: &Context, name: &str, flags: u32) -> Result<Arc<crate::open::OpenFile>> {
        let view: View<'_> = self.tree.view(context);
        view.open(&self.tree.root, name.as_bytes(), OpenFlags(OpenFlags::RDWR | flags), 0, 0)
    }
}

fn ask(file: &Arc<dyn File>, context: &Context, request: u32, value: i32) -> Result<i32> {
    let mut data = Vec::new();
    put_i32(&mut data, value);
    file.ioctl(context, request, 0, &mut data)?;
    get_i32(&data)
}

#[test]
fn a_new_pair_is_locked_then_named_and_gone_with_its_master() {
    let (scene, asker) = (Scene::new(), Asker::root());
    let context = asker.context();
    let master = scene.open(&context, "ptmx", 0).unwrap();
    assert_eq!(ask(master.file(), &context, TIOCGPTN, 9), Ok(0));
    assert_eq!(scene.open(&context, "0", 0).err(), Some(Errno::IO));
    ask(master.file(), &context, TIOCSPTLCK, 0).unwrap();
    let second = scene.open(&context, "ptmx", 0).unwrap();
    assert_eq!(ask(second.file(), &context, TIOCGPTN, 9), Ok(1));
    let slave = scene.open(&context, "0", OpenFlags::NOCTTY).unwrap();
    assert_eq!(slave.metadata().unwrap().mode, 0o20_620);
    drop(master);
    let mut out = [0; 9];
    assert_eq!((slave.read(&context, &mut out), slave.write(&context, b"x")), (Ok(0), Err(Errno::IO)));
    assert_eq!(slave.poll(wait::IN), wait::IN | wait::HUP | wait::ERR);
    assert_eq!(scene.open(&context, "0", 0).err(), Some(Errno::NOENT));
    drop(slave);
    let third = scene.open(&context, "ptmx", 0).unwrap();
    assert_eq!(ask(third.file(), &context, TIOCGPTN, 9), Ok(0));
}

#[test]
fn a_master_hears_that_the_last_slave_has_left() {
    let (scene, asker) = (Scene::new(), Asker::root());
    let context = asker.context();
    let master = scene.open(&context, "ptmx", 0).unwrap();
    ask(master.file(), &context, TIOCSPTLCK, 0).unwrap();
    let (mut out, woken) = ([0; 9], Arc::new(Counter::default()));
    assert_eq!(master.read(&context, &mut out), Err(Errno::AGAIN));
    let slave = scene.open(&context, "0", OpenFlags::NOCTTY).unwrap();
    slave.write(&context, b"bye\n").unwrap();
    let _registration = master.file().queue().unwrap().register(wait::IN, woken.clone());
    drop(slave);
    assert_eq!((woken.count(), master.poll(wait::IN)), (1, wait::IN | wait::HUP));
    assert_eq!((master.read(&context, &mut out), &out[..5]), (Ok(5), &b"bye\r\n"[..]));
    assert_eq!(master.read(&context, &mut out), Err(Errno::IO));
}

#[test]
fn jobs_are_told_of_keys_windows_and_hangups_and_the_background_is_stopped() {
    let (scene, asker) = (Scene::new(), Asker::root());
    let (context, jobs) = (asker.context(), &scene.jobs); // process 7 leads session 7
    let master = scene.open(&context, "ptmx", 0).unwrap();
    ask(master.file(), &context, TIOCSPTLCK, 0).unwrap();
    assert_eq!(scene.pts.controlling(&context).err(), Some(Errno::NXIO));
    let slave = scene.open(&context, "0", 0).unwrap();
    let tty = scene.pts.controlling(&context).unwrap();
    assert_eq!(ask(&tty, &context, TIOCGPGRP, 0), Ok(7));
    assert_eq!(ask(&tty, &context, TIOCSPGRP, 9), Err(Errno::PERM));
    assert_eq!(ask(&tty, &context, TIOCSPGRP, 99), Err(Errno::SRCH));
    ask(&tty, &context, TIOCSPGRP, 8).unwrap();
    master.write(&context, b"typed\x03\x1a").unwrap();
    assert_eq!(jobs.take(), [(8, SIGINT), (8, SIGTSTP)]);
    let mut window = vec![24, 0, 80, 0, 0, 0, 0, 0];
    master.file().ioctl(&context, TIOCSWINSZ, 0, &mut window).unwrap();
    master.file().ioctl(&context, TIOCSWINSZ, 0, &mut window).unwrap();
    assert_eq!(jobs.take(), [(8, SIGWINCH)]);
    let mut out = [0; 9];
    assert_eq!(slave.read(&context, &mut out), Err(RESTART)); // group 7 is behind now
    assert_eq!(ask(&tty, &context, TIOCSPGRP, 7), Err(RESTART));
    assert_eq!(jobs.take(), [(7, SIGTTIN), (7, SIGTTOU)]);
    *jobs.ignores.lock() = true;
    assert_eq!(slave.read(&context, &mut out), Err(Errno::IO));
    assert_eq!(slave.write(&context, b"x"), Ok(1)); // no TOSTOP
    assert_eq!(scene.pts.of_session(7).unwrap().1, 8);
    drop(master);
    assert_eq!(jobs.take(), [(7, SIGHUP), (7, SIGCONT), (8, SIGHUP), (8, SIGCONT)]);
}

#[test]
fn a_terminal_is_free_once_its_leader_has_ended() {
    let (scene, asker) = (Scene::new(), Asker::root());
    let context = asker.context();
    let master = scene.open(&context, "ptmx", 0).unwrap();
    ask(master.file(), &context, TIOCSPTLCK, 0).unwrap();
    let slave = scene.open(&context, "0", 0).unwrap();
    scene.pts.leader_ended(7);
    assert_eq!(scene.jobs.take(), [(7, SIGHUP), (7, SIGCONT)]);
    assert_eq!(ask(slave.file(), &context, TIOCGPGRP, 0), Err(Errno::NOTTY));
    let other = Context { pid: 9, session: 9, ..context };
    *scene.jobs.own.lock() = 9;
    assert_eq!(slave.file().ioctl(&other, 0x540E, 0, &mut Vec::new()), Ok(0));
    assert_eq!(ask(slave.file(), &other, TIOCGPGRP, 0), Ok(9));
}

/// A writer who never reads, and one who types and whose echo nobody reads.
#[test]
fn nothing_grows_without_end() {
    let (scene, asker) = (Scene::new(), Asker::root());
    let context = asker.context();
    let master = scene.open(&context, "ptmx", 0).unwrap();
    ask(master.file(), &context, TIOCSPTLCK, 0).unwrap();
    let slave = scene.open(&context, "0", OpenFlags::NOCTTY).unwrap();
    let mut total = 0;
    while let Ok(count) = slave.write(&context, &[b'x'; 3000]) {
        total += count;
    }
    assert!((60_000..70_000).contains(&total));
    for _ in 0..200 {
        let _ = master.write(&context, &[b'\t'; 4000]); // EAGAIN would do as well
    }
    let terminal = &master.downcast::<Master>().unwrap().pty;
    assert!(terminal.state.lock().discipline.output.bytes.len() < 80_000);
    assert_eq!(terminal.state.lock().discipline.unread(), 0);
    master.write(&context, b"\n").unwrap();
    assert_eq!(terminal.state.lock().discipline.unread(), 4096);
}
