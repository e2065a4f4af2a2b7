//! The program on a device's way out: at the head, again and again, without a process that holds it.

use std::path::{Path, PathBuf};
use std::process::Command;

use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use lb_userspace::config::MapSizes;
use lb_userspace::datapath::links::Attached;
use lb_userspace::datapath::links::tc::{self, Hook, Way};
use lb_userspace::datapath::object::{self, Program};
use lb_userspace::datapath::pins::Pins;

const SIZES: MapSizes = MapSizes { services: 1, backends: 1, slots: 64, flows: 1 };

/// A folder of pins, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = Self(PathBuf::from(format!("/sys/fs/bpf/beeline-test-{}-{name}", std::process::id())));
        folder.pins().prepare().expect("a folder for pins");
        folder
    }

    fn pins(&self) -> Pins {
        Pins::new(&self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A test that has failed already says so.
        let _ = self.pins().remove();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a test in a new network namespace, on a thread of its own.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a new network namespace: run it as root");
        test();
    });
    if let Err(reason) = thread.join() {
        std::panic::resume_unwind(reason);
    }
}

fn device() -> u32 {
    let made = Command::new("ip").args(["link", "add", "out0", "type", "veth", "peer", "name", "out1"]).status();
    assert!(made.expect("ip can be started").success());
    nix::net::if_::if_nametoindex("out0").expect("the device has an index")
}

fn programs() -> Vec<u32> {
    let (_, programs) = SchedClassifier::query_tcx("out0", TcAttachType::Egress).expect("TCX can be asked");
    programs.iter().map(aya::programs::ProgramInfo::id).collect()
}

/// The programs, once there are so many: the kernel ends a link without a pin a moment later.
fn settled(count: usize) -> Vec<u32> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while programs().len() != count && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    programs()
}

fn filters() -> String {
    let output =
        Command::new("tc").args(["filter", "show", "dev", "out0", "egress"]).output().expect("tc can be started");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn it_goes_back_to_the_head_and_outlives_its_loader() {
    in_namespace(|| {
        let folder = Folder::new("tcx");
        let pins = folder.pins();
        let index = device();
        let mut object = object::load(&SIZES, true, None, false).expect("the object");
        assert_eq!(tc::attach(&mut object, &pins, "out0", index, Hook::Out, Way::Tcx).expect("attach"), Attached::New);
        assert!(tc::is_first(&pins, "out0", index, Hook::Out).expect("asked"));

        // Somebody else goes before us.
        let mut other = object::load(&SIZES, true, None, false).expect("another object");
        let program = object::classifier(&mut other, Program::NodeTc).expect("another program");
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        program.attach_with_options("out0", TcAttachType::Egress, options).expect("attach before ours");
        let before = programs();
        assert_eq!(before.len(), 2);
        assert!(!tc::is_first(&pins, "out0", index, Hook::Out).expect("asked"));

        // The same agent puts itself back: one link of ours, at the head.
        assert_eq!(
            tc::attach(&mut object, &pins, "out0", index, Hook::Out, Way::Tcx).expect("attach again"),
            Attached::Replaced
        );
        assert!(tc::is_first(&pins, "out0", index, Hook::Out).expect("asked"));
        let after = settled(2);
        assert_eq!((after.len(), after[1]), (2, before[0]), "{before:?} {after:?}");

        // It stays without the agent, and the next one takes its place.
        drop(object);
        assert_eq!(programs(), after);
        let mut next = object::load(&SIZES, true, None, false).expect("the next agent's object");
        assert_eq!(
            tc::attach(&mut next, &pins, "out0", index, Hook::Out, Way::Tcx).expect("take over"),
            Attached::Replaced
        );
        let taken = programs();
        assert_eq!((taken.len(), taken[1]), (2, before[0]));
        assert_ne!(taken[0], after[0], "the program is the next agent's");

        tc::detach(&pins, "out0", index, Hook::Out).expect("detach");
        assert_eq!(settled(1), [before[0]]);
        assert_eq!(pins_left(&folder.0), 0);
    });
}

#[test]
fn a_filter_does_it_where_there_is_no_tcx() {
    in_namespace(|| {
        let folder = Folder::new("clsact");
        let pins = folder.pins();
        let index = device();
        let mut object = object::load(&SIZES, true, None, false).expect("the object");
        assert_eq!(
            tc::attach(&mut object, &pins, "out0", index, Hook::Out, Way::Clsact).expect("attach"),
            Attached::New
        );
        assert!(tc::is_first(&pins, "out0", index, Hook::Out).expect("asked"));
        drop(object);
        let first = filters();
        assert!(first.contains("beeline_return") && first.contains("pref 1 "), "{first}");

        let mut next = object::load(&SIZES, true, None, false).expect("the next agent's object");
        assert_eq!(
            tc::attach(&mut next, &pins, "out0", index, Hook::Out, Way::Clsact).expect("take over"),
            Attached::Replaced
        );
        drop(next);
        let second = filters();
        assert_eq!(second.matches("name beeline_return").count(), 1, "{second}");
        assert_ne!(second, first, "the program is the next agent's");

        tc::detach(&pins, "out0", index, Hook::Out).expect("detach");
        assert_eq!(filters(), "");
        assert_eq!(pins_left(&folder.0), 0);
    });
}

fn pins_left(root: &Path) -> usize {
    Pins::new(root).all_links().expect("the folder can be read").len()
}
