//! The unix socket: root's alone, one agent at a time, nothing left behind.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
    sockopt::PeerCredentials,
};
use nix::sys::stat::{Mode, fchmod};

/// Questions that wait to be accepted.
const BACKLOG: i32 = 64;

/// A listening socket and its file.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// The socket's file, removed on drop if it is still ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Socket {
    /// Takes `path`, from a dead agent if need be.
    ///
    /// # Errors
    /// A live agent has it, something that is no socket is there, or the folder cannot be made or written.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let folder = path.parent().with_context(|| format!("{} is in no folder", path.display()))?;
        let _lock = lock(folder)?;
        remove_stale(path)?;
        let listener = listener(path).with_context(|| format!("the status socket {}", path.display()))?;
        let metadata = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
        let file = SocketFile { path: path.to_owned(), inode: (metadata.dev(), metadata.ino()) };
        Ok(Self { listener, file })
    }

    /// The socket for a runtime, and its file.
    ///
    /// # Errors
    /// There is no runtime that watches sockets.
    pub(super) fn listen(self) -> io::Result<(tokio::net::UnixListener, SocketFile)> {
        let Self { listener, file } = self;
        Ok((tokio::net::UnixListener::from_std(listener)?, file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.inode);
        if ours {
            // A file that stays is replaced by the next agent.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The folder, made if need be, and locked: of two agents that start at once, one sees the other's socket.
fn lock(folder: &Path) -> Result<Flock<File>> {
    let shown = || format!("the folder of the status socket, {}", folder.display());
    if !folder.exists() {
        DirBuilder::new().recursive(true).mode(0o755).create(folder).with_context(shown)?;
        // Whatever the umask was.
        fs::set_permissions(folder, Permissions::from_mode(0o755)).with_context(shown)?;
    }
    let file = File::open(folder).with_context(shown)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| anyhow!(errno)).with_context(shown)
}

/// Removes the socket that an agent left which is no more.
///
/// # Errors
/// A live agent has it, something that is no socket is there, or it cannot be removed.
pub(super) fn remove_stale(path: &Path) -> Result<()> {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| shown.to_string()),
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{shown} is not a socket, and the agent answers there; move it away")
        }
        Ok(_) => {}
    }
    match listening(path) {
        Ok(pid) => {
            let who = pid.map_or("its process cannot be seen from here".to_owned(), |pid| format!("pid {pid}"));
            bail!("another agent ({who}) answers at {shown}; stop it, or give this one a pinPath of its own")
        }
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).with_context(|| format!("{shown}, which a dead agent left")),
        Err(errno) => Err(errno).with_context(|| format!("{shown}, which another agent left")),
    }
}

/// The process that listens at `path`, as far as it can be seen. Never waits.
fn listening(path: &Path) -> nix::Result<Option<i32>> {
    let socket = unix_socket()?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => {
            let peer = getsockopt(&socket, PeerCredentials)?;
            Ok(Some(peer.pid()).filter(|pid| *pid > 0))
        }
        // It lives, and has more questions before it than it answers.
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn unix_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

/// A listening socket whose file was never open to others: on Linux the file takes its mode from the socket.
fn listener(path: &Path) -> Result<UnixListener> {
    let socket = unix_socket()?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let address = UnixAddr::new(path).context("the path is too long for a socket; take a shorter pinPath")?;
    bind(socket.as_raw_fd(), &address)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(socket))
}
