//! The source of `core`, which a BPF target has no prebuilt copy of: from rustup, else from Debian.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::apt;
use crate::{process, workspace};

/// The Debian package that has the source of one compiler release.
const DEBIAN: DebianPackage =
    DebianPackage { release: "1.95.0", suite: "trixie-backports", version: "1.95.0+dfsg1-2~bpo13+1" };

/// rustup fetches three megabytes; where its server cannot be reached it would try for minutes.
const RUSTUP_LIMIT: Duration = Duration::from_secs(90);

/// Names, while it exists, an installation that has not come to its end.
const UNFINISHED: &str = "beeline-setup-unfinished";

struct DebianPackage {
    release: &'static str,
    suite: &'static str,
    version: &'static str,
}

/// The compiler that `rust-toolchain.toml` pins, and where it is installed.
pub(super) struct Toolchain {
    channel: String,
    sysroot: PathBuf,
}

impl Toolchain {
    /// The workspace's toolchain, as installed here.
    ///
    /// # Errors
    /// When `rust-toolchain.toml` names no channel or rustc cannot be started.
    pub(super) fn pinned() -> Result<Self> {
        let path = workspace::root().join("rust-toolchain.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let channel = channel(&text).with_context(|| format!("{} names no channel", path.display()))?;
        let sysroot = process::output(workspace::rustc().args(["--print", "sysroot"]))?;
        Ok(Self { channel: channel.to_owned(), sysroot: PathBuf::from(sysroot.trim_end()) })
    }

    /// The release, as in `rust-toolchain.toml`.
    pub(super) fn channel(&self) -> &str {
        &self.channel
    }

    /// The folder that the compiler is installed in.
    pub(super) fn sysroot(&self) -> &Path {
        &self.sysroot
    }

    /// Whether the whole source is there.
    pub(super) fn has_source(&self) -> bool {
        let library = self.source().join("library");
        library.join("Cargo.lock").is_file()
            && library.join("core/Cargo.toml").is_file()
            && !self.parent().join(UNFINISHED).exists()
    }

    /// Installs the source; `cache` is a folder for the time being.
    ///
    /// # Errors
    /// When the toolchain's folder cannot be written, or neither rustup nor Debian has the source.
    pub(super) fn install_source(&self, cache: &Path) -> Result<()> {
        eprintln!("setup: the source of core (rust-src {}) is missing", self.channel);
        self.begin().with_context(|| {
            format!(
                "rust-src cannot be put into {}: run `cargo xtask setup` once as the owner of that toolchain",
                self.sysroot.display()
            )
        })?;
        let installed = self.add_by_rustup().or_else(|rustup| {
            eprintln!("setup: {rustup:#}; trying Debian's package");
            self.clear()?;
            self.add_from_debian(cache).map_err(|debian| {
                anyhow!(
                    "no source of core for Rust {}: {rustup:#}; {debian:#}. By hand: `rustup component add rust-src`",
                    self.channel
                )
            })
        });
        if installed.is_err() {
            self.clear()?;
        }
        let mark = self.parent().join(UNFINISHED);
        fs::remove_file(&mark).with_context(|| format!("{} cannot be removed", mark.display()))?;
        installed
    }

    fn parent(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src")
    }

    fn source(&self) -> PathBuf {
        self.parent().join("rust")
    }

    /// Leaves the mark of an unfinished installation and clears away an earlier one's half.
    fn begin(&self) -> Result<()> {
        let parent = self.parent();
        fs::create_dir_all(&parent).with_context(|| format!("{} cannot be made", parent.display()))?;
        let mark = parent.join(UNFINISHED);
        fs::write(&mark, "").with_context(|| format!("{} cannot be written", mark.display()))?;
        self.clear()
    }

    fn clear(&self) -> Result<()> {
        for folder in [self.source(), self.part()] {
            match fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).context(format!("{} cannot be removed", folder.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Beside the final place, so that a rename puts the whole there at once.
    fn part(&self) -> PathBuf {
        self.parent().join("rust.beeline-part")
    }

    fn add_by_rustup(&self) -> Result<()> {
        let mut rustup = Command::new("rustup");
        rustup.current_dir(workspace::root()).args(["component", "add", "rust-src", "--toolchain", &self.channel]);
        // What it says without one is enough.
        rustup.env_remove("RUST_BACKTRACE");
        process::run_within(&mut rustup, RUSTUP_LIMIT)?;
        // The toolchain may not be rustup's, or rustup may hold a component for present that somebody removed.
        if !self.source().join("library/Cargo.lock").is_file() {
            bail!("rustup put no source into {}", self.sysroot.display());
        }
        Ok(())
    }

    fn add_from_debian(&self, cache: &Path) -> Result<()> {
        if self.channel != DEBIAN.release {
            bail!("the Debian package known here is for Rust {}, not {}", DEBIAN.release, self.channel);
        }
        let work = cache.join("rust-src.tmp");
        if work.exists() {
            fs::remove_dir_all(&work).with_context(|| format!("{} cannot be removed", work.display()))?;
        }
        let result = self.copy_from_debian(&work);
        // A half that stays is cleared away by the next set-up; the error that matters is the one above.
        fs::remove_dir_all(&work).ok();
        result
    }

    fn copy_from_debian(&self, work: &Path) -> Result<()> {
        let package = apt::download(work, DEBIAN.suite, "rust-src", DEBIAN.version)?;
        let tree = work.join("tree");
        process::output(Command::new("dpkg").arg("-x").arg(&package).arg(&tree))?;
        let library = tree.join(format!("usr/src/rustc-{}/library", self.channel));
        let part = self.part();
        fs::create_dir(&part).with_context(|| format!("{} cannot be made", part.display()))?;
        process::output(Command::new("cp").arg("-a").arg(&library).arg(&part).stdin(Stdio::null()))?;
        let source = self.source();
        fs::rename(&part, &source).with_context(|| format!("{} cannot be put in place", source.display()))
    }
}

/// The channel that a `rust-toolchain.toml` names.
fn channel(text: &str) -> Option<&str> {
    text.lines().find_map(|line| {
        let value = line.trim().strip_prefix("channel")?.trim_start().strip_prefix('=')?;
        value.trim().strip_prefix('"')?.split('"').next()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sysroot of its own in the system's folder for temporary files, removed at the end.
    struct Sysroot(PathBuf);

    impl Sysroot {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("beeline-xtask-{test}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn toolchain(&self) -> Toolchain {
            Toolchain { channel: "1.95.0".to_owned(), sysroot: self.0.clone() }
        }

        fn put_source(&self) {
            let library = self.0.join("lib/rustlib/src/rust/library");
            fs::create_dir_all(library.join("core")).unwrap();
            fs::write(library.join("Cargo.lock"), "").unwrap();
            fs::write(library.join("core/Cargo.toml"), "").unwrap();
        }
    }

    impl Drop for Sysroot {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    #[test]
    fn the_channel_is_read_from_the_workspaces_own_file() {
        let text = fs::read_to_string(workspace::root().join("rust-toolchain.toml")).unwrap();
        assert_eq!(channel(&text), Some(DEBIAN.release), "a new compiler needs its Debian package's version here");
        assert_eq!(channel("[toolchain]\n# channel\nchannel=\"1.2\" # x\n"), Some("1.2"));
        assert_eq!(channel("[toolchain]\nprofile = \"minimal\"\n"), None);
    }

    #[test]
    fn a_whole_source_is_present() {
        let sysroot = Sysroot::new("whole");
        assert!(!sysroot.toolchain().has_source());
        sysroot.put_source();
        assert!(sysroot.toolchain().has_source());
    }

    #[test]
    fn half_a_source_is_not() {
        let sysroot = Sysroot::new("half");
        sysroot.put_source();
        fs::remove_file(sysroot.0.join("lib/rustlib/src/rust/library/Cargo.lock")).unwrap();
        assert!(!sysroot.toolchain().has_source());
    }

    #[test]
    fn an_interrupted_installation_counts_for_nothing_and_is_cleared_away() {
        let sysroot = Sysroot::new("interrupted");
        let toolchain = sysroot.toolchain();
        toolchain.begin().unwrap();
        sysroot.put_source();
        assert!(!toolchain.has_source());
        toolchain.begin().unwrap();
        assert!(!toolchain.source().exists());
        sysroot.put_source();
        fs::remove_file(toolchain.parent().join(UNFINISHED)).unwrap();
        assert!(toolchain.has_source());
    }

    #[test]
    fn a_sysroot_that_cannot_be_written_is_named_with_the_way_out() {
        let sysroot = Sysroot::new("file");
        let file = sysroot.0.join("file");
        fs::write(&file, "").unwrap();
        let toolchain = Toolchain { channel: "1.95.0".to_owned(), sysroot: file.clone() };
        let error = toolchain.install_source(&sysroot.0).unwrap_err().to_string();
        assert!(error.contains(&*file.to_string_lossy()) && error.contains("as the owner"), "{error}");
    }
}
