//! Network namespaces for a test: one for its thread, one for each peer. None has a name, so that nothing is left.

use std::io::Write as _;
use std::panic;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a new network namespace, on a thread of its own.
///
/// # Panics
///
/// When the test does, and without root.
pub(crate) fn in_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
    if let Err(reason) = thread.join() {
        panic::resume_unwind(reason);
    }
}

/// Another host: a namespace held by a sleeping process, with `eth0` at the other end of a veth.
pub(crate) struct Peer {
    holder: Child,
}

impl Peer {
    /// Makes a veth, `name` here and `eth0` with the MAC address there. Both ends are down.
    pub(crate) fn new(name: &str, mac: &str) -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "300"]).spawn().expect("unshare can be started");
        let peer = Self { holder };
        let theirs = format!("/proc/{}/ns/net", peer.holder.id());
        let ours = std::fs::read_link("/proc/thread-self/ns/net").expect("this thread has a namespace");
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::read_link(&theirs).is_ok_and(|theirs| theirs == ours) {
            assert!(Instant::now() < deadline, "unshare made no namespace");
            std::thread::sleep(Duration::from_millis(2));
        }
        ip(&format!("link add {name} type veth peer name eth0 address {mac} netns {}", peer.holder.id()));
        peer
    }

    /// The process that holds the namespace.
    pub(crate) fn id(&self) -> u32 {
        self.holder.id()
    }

    /// Runs `ip` there.
    pub(crate) fn ip(&self, arguments: &str) {
        self.run("ip", &arguments.split_whitespace().collect::<Vec<_>>());
    }

    /// Runs a shell command there.
    pub(crate) fn shell(&self, command: &str) {
        self.run("sh", &["-c", command]);
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let net = format!("--net=/proc/{}/ns/net", self.holder.id());
        output(Command::new("nsenter").arg(net).arg(program).args(arguments));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs `ip` here.
pub(crate) fn ip(arguments: &str) {
    ip_output(arguments);
}

/// Runs `ip` here and returns what it prints.
pub(crate) fn ip_output(arguments: &str) -> String {
    output(Command::new("ip").args(arguments.split_whitespace()))
}

/// Runs many `ip` commands here, one a line.
pub(crate) fn ip_batch(commands: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip can be started");
    child.stdin.take().expect("a pipe").write_all(commands.as_bytes()).expect("ip reads");
    assert!(child.wait().expect("ip ends").success());
}

/// Writes a setting of this namespace.
pub(crate) fn set(path: &str, value: &str) {
    std::fs::write(path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// How many multicast messages the netlink sockets of this namespace have lost.
pub(crate) fn netlink_drops() -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/netlink").expect("the kernel lists netlink sockets");
    let mut lines = table.lines();
    let column = lines.next().and_then(|head| head.split_whitespace().position(|name| name == "Drops"));
    let column = column.expect("a column named Drops");
    lines.filter_map(|line| line.split_whitespace().nth(column)?.parse::<u64>().ok()).sum()
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
