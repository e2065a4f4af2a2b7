//! The configuration file, watched: by inotify in its folder (atomic replacement, editors' renames, the symlinks of a
//! ConfigMap), and by a look every two seconds where inotify sees nothing (network filesystems, links to elsewhere).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// Says that the file may have changed.
pub struct Watch {
    changes: mpsc::Receiver<()>,
    // Dropped, it stops.
    _watcher: Option<RecommendedWatcher>,
}

/// How long to wait for more events: an editor's rename is several.
const SETTLE: Duration = Duration::from_millis(20);
/// How often to look without an event.
const POLL: Duration = Duration::from_secs(2);

impl Watch {
    /// Watch the folder of a file, and that of what it links to.
    ///
    /// # Errors
    /// The folder does not exist.
    pub fn new(file: &Path) -> Result<Self> {
        let (sender, changes) = mpsc::channel(1);
        let folders = folders(file).with_context(|| format!("watching {}", file.display()))?;
        let events = notify::recommended_watcher(move |_event| {
            // A full channel says the same already.
            let _ = sender.try_send(());
        });
        let watcher = match events {
            Ok(mut watcher) => {
                for folder in &folders {
                    if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                        tracing::warn!(folder = %folder.display(), %error, "cannot watch; looking every 2 s instead");
                    }
                }
                Some(watcher)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot watch files; looking every 2 s instead");
                None
            }
        };
        Ok(Self { changes, _watcher: watcher })
    }

    /// Wait until the file may have changed.
    pub async fn changed(&mut self) {
        let event = tokio::time::timeout(POLL, self.changes.recv()).await;
        match event {
            Ok(Some(())) => {
                tokio::time::sleep(SETTLE).await;
                while self.changes.try_recv().is_ok() {}
            }
            // No watcher: the channel is closed, and only the clock is left.
            Ok(None) => tokio::time::sleep(POLL).await,
            Err(_elapsed) => {}
        }
    }
}

fn folders(file: &Path) -> Result<Vec<PathBuf>> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let folder = parent(file);
    anyhow::ensure!(folder.is_dir(), "{} is no folder", folder.display());
    let mut folders = vec![folder];
    if let Ok(target) = file.canonicalize() {
        let target = parent(&target);
        if !folders.contains(&target) {
            folders.push(target);
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn soon(watch: &mut Watch) -> bool {
        tokio::time::timeout(Duration::from_millis(1500), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn sees_a_rename_over_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        fs::write(&file, "a").unwrap();
        let mut watch = Watch::new(&file).unwrap();
        fs::write(folder.path().join("new"), "b").unwrap();
        fs::rename(folder.path().join("new"), &file).unwrap();
        assert!(soon(&mut watch).await);
    }

    /// As the kubelet does: `c.yaml → ..data/c.yaml`, `..data → ..1`, and `..data` is replaced.
    #[tokio::test]
    async fn sees_the_swap_of_a_config_map() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("..1", "a"), ("..2", "b")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("c.yaml"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/c.yaml", at("c.yaml")).unwrap();
        let mut watch = Watch::new(&at("c.yaml")).unwrap();
        symlink("..2", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        assert!(soon(&mut watch).await);
        assert_eq!(fs::read_to_string(at("c.yaml")).unwrap(), "b");
    }

    #[tokio::test]
    async fn a_missing_folder_is_an_error() {
        assert!(Watch::new(Path::new("/nonexistent/c.yaml")).is_err());
    }
}
