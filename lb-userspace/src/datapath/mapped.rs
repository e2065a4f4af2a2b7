//! BPF arrays in the agent's own memory (BPF_F_MMAPABLE, kernel 5.5): what is written here is what programs read, at
//! once and without a system call.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use memmap2::{MmapOptions, MmapRaw};

/// An array whose values are `WORDS` words of 64 bits.
pub(super) struct Mapped<const WORDS: usize> {
    memory: MmapRaw,
    entries: u32,
    /// Programs that are loaded later name the map by this descriptor.
    _map: MapData,
}

impl<const WORDS: usize> Mapped<WORDS> {
    /// Map an array.
    ///
    /// # Errors
    /// It has values of another size, or the kernel does not map it.
    pub(super) fn new(map: MapData) -> Result<Self> {
        let info = map.info().context("reading a map's sizes")?;
        ensure!(info.value_size() as usize == WORDS * 8, "its values have {} bytes", info.value_size());
        let entries = info.max_entries();
        let page = 4096;
        let length = (entries as usize * WORDS * 8).next_multiple_of(page);
        let memory = MmapOptions::new()
            .len(length)
            .map_raw(map.fd().as_fd().as_raw_fd())
            .context("mapping a BPF array into memory")?;
        Ok(Self { memory, entries, _map: map })
    }

    /// Number of entries.
    pub(super) const fn entries(&self) -> u32 {
        self.entries
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is at least this long, aligned to a page, lives as long as `self`, and is only ever
        // accessed by atomic operations on this side; the programs read and write it by aligned words.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<AtomicU64>(), self.entries as usize * WORDS) }
    }

    /// An entry.
    pub(super) fn read(&self, index: u32) -> [u64; WORDS] {
        let start = index as usize * WORDS;
        let words = &self.words()[start..start + WORDS];
        std::array::from_fn(|i| words[i].load(Ordering::Acquire))
    }

    /// Write an entry that nobody reads yet.
    pub(super) fn write(&mut self, index: u32, value: [u64; WORDS]) {
        let start = index as usize * WORDS;
        for (place, word) in self.words()[start..start + WORDS].iter().zip(value) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// Store one word of an entry that programs may be reading, after all that was written before.
    pub(super) fn publish(&mut self, index: u32, word: usize, value: u64) {
        fence(Ordering::SeqCst);
        self.words()[index as usize * WORDS + word].store(value, Ordering::Release);
    }
}
