//! Which agent a command is about: agents of one kernel differ by where they pin.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Deserialize;

use crate::config;

/// Which pins: those of a configuration, or those under a path.
#[derive(Args, Debug)]
pub struct Which {
    /// Take pinPath from this configuration file.
    #[arg(long, value_name = "FILE", conflicts_with = "pin_path")]
    config: Option<PathBuf>,
    /// Where the agent pins its maps and links.
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_PIN_PATH, value_parser = absolute)]
    pin_path: PathBuf,
}

/// The one field that is wanted of a file whose others may be wrong.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PinPath {
    pin_path: Option<PathBuf>,
}

impl Which {
    /// The path. A configuration with errors will do, if its pinPath can be made out: an operator who asks what is wrong
    /// with the newest version is not to be told that it is wrong.
    ///
    /// # Errors
    /// The configuration cannot be read, or is no YAML.
    pub fn pin_path(&self) -> Result<PathBuf> {
        let Some(file) = &self.config else { return Ok(self.pin_path.clone()) };
        let error = match config::load(file) {
            Ok(config) => return Ok(config.pin_path),
            Err(error) => error,
        };
        let text = std::fs::read_to_string(file).with_context(|| format!("{}: cannot be read", file.display()))?;
        match serde_saphyr::from_str::<PinPath>(&text) {
            Ok(PinPath { pin_path }) => Ok(pin_path.unwrap_or_else(|| config::DEFAULT_PIN_PATH.into())),
            Err(_) => Err(error).context("its pinPath cannot be made out; say --pin-path"),
        }
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("is not an absolute path".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<PathBuf> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Which { config: Some(file.path().to_owned()), pin_path: PathBuf::new() }.pin_path()
    }

    #[test]
    fn the_pin_path_of_a_file_with_errors_is_found() {
        assert_eq!(
            of("pinPath: /sys/fs/bpf/beeline-a\nhashSede: 1\n").unwrap(),
            PathBuf::from("/sys/fs/bpf/beeline-a")
        );
        assert_eq!(of("hashSede: 1\n").unwrap(), PathBuf::from(config::DEFAULT_PIN_PATH));
        assert!(of("pinPath: [\n").is_err());
    }
}
