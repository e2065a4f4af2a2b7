//! What can be wrong with a configuration file, in words that name the thing, the value and the way out.

use std::path::PathBuf;
use std::{fmt, io};

/// A place in a file, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The character in the line.
    pub column: u32,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where in the configuration: `services[2].backends[0].address`. Empty where the file as a whole is meant.
    pub path: String,
    /// The value, what is wrong with it and, where there is one, the way out.
    pub message: String,
    /// Where in the file; `None` for a value that the file leaves out.
    pub line: Option<Position>,
}

/// Everything that is wrong with a file: at least one thing, in the order of the file. Displayed as one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// What the file is called in messages.
    pub file: String,
    /// The errors.
    pub errors: Vec<ConfigError>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, ConfigError { path, message, line }) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&self.file)?;
            if let Some(Position { line, column }) = line {
                write!(f, ":{line}:{column}")?;
            }
            f.write_str(": ")?;
            if !path.is_empty() {
                write!(f, "{path}: ")?;
            }
            f.write_str(message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Why no configuration came of a file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be read.
    #[error("{}: cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says; part of the message, and so no source of its own.
        error: io::Error,
    },
    /// It is larger than [`super::MAX_FILE_BYTES`].
    #[error("{}: is larger than {} MiB, more than any configuration needs", path.display(), super::MAX_FILE_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not UTF-8.
    #[error("{}: is not UTF-8 text: byte {offset} is wrong; save it as UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where the first wrong byte is, counted from 0.
        offset: usize,
    },
    /// It says something that it must not.
    #[error(transparent)]
    Invalid(#[from] ConfigErrors),
}
