//! From a command line to a daemon: lock, mount namespace, socket.

use crate::server::Keeper;
use drupe_sys::daemon::{self, context, Begun, Starter};
use drupe_sys::{cgroup, mount, process, socket};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub struct Options {
    pub run_dir: PathBuf,
    pub log: Option<PathBuf>,
    /// An open mount namespace of an earlier keeper, to go on in.
    pub mount_namespace: Option<i32>,
}

/// What the foreground process ends with.
pub const STARTED: u8 = 0;
pub const FAILED: u8 = 1;
pub const LOCKED: u8 = 3;

/// Starts the daemon and returns once it accepts connections: the exit code for the foreground.
pub fn start(options: &Options) -> io::Result<u8> {
    let namespace = process::shed_descriptors(options.mount_namespace)?;
    // With SIGCHLD ignored (a caller may have left it so) the kernel would throw exit codes away.
    process::default_signal(libc::SIGCHLD);
    process::set_umask(0o022);
    let dir = &options.run_dir;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o711).create(dir).map_err(context(format!("cannot make {}", dir.display())))?;
    match daemon::begin(&dir.join("keeper.lock"), |starter| serve(options, namespace, starter))? {
        Begun::Serves => Ok(STARTED),
        Begun::Locked => {
            eprintln!("drupe-keeper: another keeper serves {}", dir.display());
            Ok(LOCKED)
        }
    }
}

/// The daemon itself.
fn serve(options: &Options, namespace: Option<OwnedFd>, starter: &Starter) -> i32 {
    match prepare(options, namespace) {
        Err(error) => {
            starter.failed(&error);
            1
        }
        Ok(mut keeper) => {
            if daemon::detach_stdio(options.log.as_deref()).and_then(|()| starter.ready()).is_err() {
                return 1;
            }
            match keeper.run() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("drupe-keeper: {error}");
                    1
                }
            }
        }
    }
}

fn prepare(options: &Options, namespace: Option<OwnedFd>) -> io::Result<Keeper> {
    process::set_name("drupe-keeper");
    process::set_child_subreaper()?;
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGPIPE, libc::SIGQUIT, libc::SIGTTOU] {
        process::ignore_signal(signal);
    }
    let signals = process::signal_fd(&[libc::SIGCHLD, libc::SIGTERM])?;
    let nofile = process::nofile_limit()?;
    process::set_nofile_limit(nofile.1, nofile.1)?;
    let dir = fs::canonicalize(&options.run_dir)?;
    match &namespace {
        Some(namespace) => mount::setns(namespace, libc::CLONE_NEWNS)
            .map_err(context("cannot join the mount namespace of the earlier keeper".into()))?,
        None => prepare_mounts(&dir)?,
    }
    std::env::set_current_dir("/")?;
    let listener = listen(&dir)?;
    fs::write(dir.join("keeper.pid"), format!("{}\n", std::process::id()))?;
    Keeper::new(dir, listener, signals, nofile)
}

/// A mount namespace of our own, into which the host's mounts still come.
fn prepare_mounts(dir: &Path) -> io::Result<()> {
    let root = Path::new("/");
    mount::unshare(libc::CLONE_NEWNS).map_err(context("cannot make a mount namespace".into()))?;
    mount::mount("", root, "", libc::MS_SLAVE | libc::MS_REC, "")?;
    cgroup::hide_unified().map_err(context("cannot unmount /sys/fs/cgroup/unified".into()))?;
    mount::mount(&dir.to_string_lossy(), dir, "", libc::MS_BIND | libc::MS_REC, "")
        .and_then(|()| mount::mount("", dir, "", libc::MS_PRIVATE | libc::MS_REC, ""))
        .map_err(context(format!("cannot make mounts below {} private", dir.display())))
}

/// The control socket. Its name is reached through /proc/self/fd, because a socket's path is short (unix(7)).
fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let path = dir.join("keeper.sock");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}/keeper.sock", handle.as_raw_fd()));
    let listener = socket::listen_seqpacket(&short).map_err(context(format!("cannot listen on {}", path.display())))?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}
