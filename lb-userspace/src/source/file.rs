//! The configuration file, watched: by inotify in its folder (atomic replacement, editors' renames, the symlinks of a
//! ConfigMap), and by a look every two seconds where inotify sees nothing (network filesystems, links to elsewhere).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Says that the file may have changed.
pub struct Watch {
    changes: mpsc::Receiver<()>,
    /// When the file is to be looked at: soon after an event, else by the clock.
    due: Instant,
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
        Ok(Self { changes, due: Instant::now() + POLL, _watcher: watcher })
    }

    /// Wait until the file may have changed. Nothing is lost where the wait is given up for another and begun anew.
    pub async fn changed(&mut self) {
        loop {
            tokio::select! {
                Some(()) = self.changes.recv() => self.due = self.due.min(Instant::now() + SETTLE),
                // Without a watcher the channel is closed, and only the clock is left.
                () = sleep_until(self.due) => break,
            }
        }
        self.due = Instant::now() + POLL;
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
    async fn loses_nothing_when_the_wait_is_given_up_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.yaml");
        let mut watch = Watch::new(&file).unwrap();
        fs::write(&file, "a").unwrap();
        // Less than it takes to settle, and then less than it takes to look by the clock.
        for wait in [SETTLE / 4, POLL / 4] {
            let waits = 2 * (if wait < SETTLE { SETTLE } else { POLL }).as_millis() / wait.as_millis();
            let mut seen = 0;
            for _ in 0..waits {
                seen += usize::from(tokio::time::timeout(wait, watch.changed()).await.is_ok());
            }
            assert!(seen > 0, "nothing seen by {waits} waits of {wait:?}");
        }
    }

    #[tokio::test]
    async fn a_missing_folder_is_an_error() {
        assert!(Watch::new(Path::new("/nonexistent/c.yaml")).is_err());
    }
}
