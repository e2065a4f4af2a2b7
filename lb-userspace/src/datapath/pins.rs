//! Where maps and links are pinned, so that the datapath outlives the agent: `<pinPath>/v<ABI>/` with a file for each
//! map, and `links/` with one for each interface.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use lb_common::maps::ABI_VERSION;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::links::tc;

/// The pins of one agent.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// Where Linux has its BPF filesystem.
pub const BPF_FS: &str = "/sys/fs/bpf";

impl Pins {
    /// The pins under a path; nothing is made yet.
    #[must_use]
    pub fn new(pin_path: &Path) -> Self {
        Self { root: pin_path.to_owned() }
    }

    /// The folder of the maps of this ABI version.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.version(ABI_VERSION)
    }

    /// The folder of the links of this ABI version.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.maps().join("links")
    }

    fn version(&self, abi: u32) -> PathBuf {
        self.root.join(format!("v{abi}"))
    }

    /// Folders of all ABI versions that are there.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn versions(&self) -> Result<Vec<PathBuf>> {
        let mut versions: Vec<_> =
            entries(&self.root)?.into_iter().filter(|path| path.is_dir() && name(path).starts_with('v')).collect();
        versions.sort();
        Ok(versions)
    }

    /// Make the folders, and mount the BPF filesystem where Linux has it if it is not mounted.
    ///
    /// # Errors
    /// The path is not on a BPF filesystem and none can be mounted there.
    pub fn prepare(&self) -> Result<()> {
        let root = self.root.display();
        if self.root.starts_with(BPF_FS) && Path::new(BPF_FS).is_dir() && !is_bpf_fs(Path::new(BPF_FS)) {
            mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| {
                format!("{BPF_FS} is no BPF filesystem and cannot be mounted: as root, `mount -t bpf bpf {BPF_FS}`")
            })?;
            tracing::info!(path = BPF_FS, "mounted the BPF filesystem");
        }
        let parent = self.root.ancestors().skip(1).find(|path| path.is_dir());
        if !parent.is_some_and(is_bpf_fs) {
            bail!("pinPath {root} is not on a BPF filesystem: `mount -t bpf bpf {BPF_FS}`, or choose another pinPath");
        }
        fs::create_dir_all(self.links()).with_context(|| format!("making {}", self.links().display()))
    }

    /// The pin of the link of an interface. Names of files on a BPF filesystem have no dots (kernel: bpf_lookup).
    #[must_use]
    pub fn link(&self, interface: &str, index: u32) -> PathBuf {
        self.links().join(format!("{index}-{}", interface.replace('%', "%25").replace('.', "%2e")))
    }

    /// Every link's pin, of this ABI version or another.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn all_links(&self) -> Result<Vec<PathBuf>> {
        let mut links = Vec::new();
        for version in self.versions()? {
            links.extend(entries(&version.join("links"))?);
        }
        Ok(links)
    }

    /// The map pins that are there, by name, of this ABI version.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn all_maps(&self) -> Result<Vec<PathBuf>> {
        Ok(entries(&self.maps())?.into_iter().filter(|path| !path.is_dir()).collect())
    }

    /// Remove the maps of other ABI versions that no link uses any more. Says whose.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn remove_superseded(&self) -> Result<Vec<PathBuf>> {
        let mut superseded = Vec::new();
        for version in self.versions()? {
            if version != self.maps() && entries(&version.join("links"))?.is_empty() {
                remove_maps(&version)?;
                superseded.push(version);
            }
        }
        Ok(superseded)
    }

    /// Remove everything: links first, so that no program runs without its maps' names. Says how many of each.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn remove(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        for link in self.all_links()? {
            tc::release(&link)?;
            unpin(&link)?;
            removed.links += 1;
        }
        for version in self.versions()? {
            removed.maps += remove_maps(&version)?;
        }
        match fs::remove_dir(&self.root) {
            // What is left is not ours.
            Ok(()) => Ok(removed),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Ok(removed),
            Err(error) => Err(error).with_context(|| format!("removing {}", self.root.display())),
        }
    }
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Links: interfaces that lost their program.
    pub links: usize,
    /// Maps.
    pub maps: usize,
}

/// Remove the folder of an ABI version that has no links any more. Says how many maps it had.
fn remove_maps(version: &Path) -> Result<usize> {
    let mut maps = 0;
    for entry in entries(version)? {
        if entry.is_dir() {
            fs::remove_dir(&entry).with_context(|| format!("removing {}", entry.display()))?;
        } else {
            unpin(&entry)?;
            maps += 1;
        }
    }
    fs::remove_dir(version).with_context(|| format!("removing {}", version.display()))?;
    Ok(maps)
}

/// Remove one pin.
///
/// # Errors
/// It cannot be removed.
pub fn unpin(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("removing the pin {}", path.display()))
}

fn is_bpf_fs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", folder.display())),
    };
    let paths: Result<Vec<_>, _> = listing.map(|entry| entry.map(|entry| entry.path())).collect();
    paths.with_context(|| format!("reading {}", folder.display()))
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
