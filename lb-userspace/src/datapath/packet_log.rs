//! What the programs log of each packet in a debugging run, with reasons by name.

use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use lb_common::verdict::Reason;

/// How often the programs' ring buffer is looked at: a debugging run need not be faster.
const LOOK: Duration = Duration::from_millis(50);

/// Let what the programs log come out with the agent's own log.
///
/// # Errors
/// The object has no ring buffer for it.
pub(super) fn follow(object: &mut Ebpf) -> Result<()> {
    let mut logger = EbpfLogger::init_with_logger(object, Packets).context("reading what the programs log")?;
    tokio::spawn(async move {
        loop {
            logger.flush();
            tokio::time::sleep(LOOK).await;
        }
    });
    Ok(())
}

/// Takes the programs' lines. They can print numbers alone: a table of names would have to lie in their memory.
struct Packets;

impl log::Log for Packets {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::info!("packet: {}", with_names(&record.args().to_string()));
    }

    fn flush(&self) {}
}

/// A line of the programs with the numbers of reason and action replaced by names.
fn with_names(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    for place in 1..words.len() {
        let Ok(number) = words[place].parse::<u32>() else { continue };
        let name = match words[place - 1].as_str() {
            "reason" => Reason::from_index(number).map(Reason::name),
            "action" => ["aborted", "drop", "pass", "tx", "redirect"].get(number as usize).copied(),
            _ => None,
        };
        if let Some(name) = name {
            words[place] = name.to_owned();
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_get_their_names() {
        let line = format!("in 2 action 3 reason {} service 1 slot 77", Reason::Forwarded as u32);
        assert_eq!(with_names(&line), "in 2 action tx reason forwarded service 1 slot 77");
        assert_eq!(with_names("reason 200 action"), "reason 200 action");
    }
}
