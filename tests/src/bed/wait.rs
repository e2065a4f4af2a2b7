//! Waiting for an outcome, never for a time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`, and returns it.
///
/// # Errors
/// The last error, once `timeout` has passed: `what` says what was waited for.
pub fn eventually<T>(what: &str, timeout: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() >= timeout => {
                return Err(error.context(format!("waited {timeout:?} in vain for {what}")));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// `Ok` where `condition` is true, for use in [`eventually`].
///
/// # Errors
/// `otherwise` as text.
pub fn holds(condition: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(anyhow!(otherwise())) }
}
