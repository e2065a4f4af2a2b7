//! Hash maps read in batches (BPF_MAP_LOOKUP_BATCH, kernel 5.6): thousands of entries a system call, where a walk by
//! keys takes two system calls for each.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{MapData, MapType};
use nix::errno::Errno;
use nix::libc;

/// The command's number (`enum bpf_cmd`, include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries read at once. A bucket that holds more cannot be read at all (ENOSPC); the maps have as many buckets as
/// entries, so that a bucket holds a few.
const BATCH: u32 = 8192;

/// What the command is asked (`union bpf_attr`, `struct { /* struct used by BPF_MAP_*_BATCH commands */ }`).
#[derive(Default)]
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Shows `visit` the entries of a hash map, one batch of keys and values after the other, each as words of 64 bits with
/// `KEY` and `VALUE` words an entry, until it has seen all or breaks.
///
/// Entries that come or go meanwhile may be missed or not; none is shown twice, unless it was removed and added again.
///
/// # Errors
/// It is no hash map, has keys or values of another size, or the kernel refuses.
pub fn walk<const KEY: usize, const VALUE: usize>(
    map: &MapData,
    mut visit: impl FnMut(&[u64; KEY], &[u64; VALUE]) -> ControlFlow<()>,
) -> Result<()> {
    let info = map.info().context("reading a map's sizes")?;
    let sizes = (info.key_size() as usize, info.value_size() as usize);
    ensure!(sizes == (KEY * 8, VALUE * 8), "its keys and values have {} and {} bytes", sizes.0, sizes.1);
    batches(map, |keys, values| {
        let keys = keys.as_chunks::<8>().0.as_chunks::<KEY>().0;
        let values = values.as_chunks::<8>().0.as_chunks::<VALUE>().0;
        for (key, value) in keys.iter().zip(values) {
            visit(&key.map(u64::from_ne_bytes), &value.map(u64::from_ne_bytes))?;
        }
        ControlFlow::Continue(())
    })
}

/// How many entries a hash map has.
///
/// # Errors
/// As [`walk`].
pub fn count(map: &MapData) -> Result<u64> {
    let key = map.info().context("reading a map's sizes")?.key_size() as usize;
    let mut entries = 0;
    batches(map, |keys, _| {
        entries += (keys.len() / key) as u64;
        ControlFlow::Continue(())
    })?;
    Ok(entries)
}

/// Shows `visit` the bytes of the keys and of the values of each batch.
fn batches(map: &MapData, mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> Result<()> {
    let info = map.info().context("reading a map's sizes")?;
    match info.map_type().context("reading a map's kind")? {
        MapType::Hash | MapType::LruHash => {}
        other => bail!("it is no hash map of one value an entry, but a {other:?}"),
    }
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    let (mut keys, mut values) = (vec![0u8; key * BATCH as usize], vec![0u8; value * BATCH as usize]);
    // Where the walk is: for a hash map the number of a bucket, and never more than a key (kernel 6.18).
    let mut place = vec![0u8; key.max(8)];
    let fd = map.fd().as_fd().as_raw_fd();
    // Each batch ends at a later bucket, and there are not more buckets than entries, rounded up.
    for batch in 0..=u64::from(info.max_entries()).next_power_of_two() {
        let mut asked = Attributes {
            in_batch: if batch == 0 { 0 } else { place.as_ptr() as u64 },
            out_batch: place.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH,
            map_fd: fd as u32,
            ..Attributes::default()
        };
        // SAFETY: the attributes and the buffers that they point to are live, and of the sizes that the kernel takes:
        // `count` keys and values, and a place no longer than a key. The kernel reads `in_batch` before it writes.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut asked, size_of::<Attributes>()) };
        let last = match Errno::result(result) {
            Ok(_) => false,
            // The end of the map, and the last entries with it.
            Err(Errno::ENOENT) => true,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(io::Error::from(error)).context("reading a batch of a map (kernel 5.6)"),
        };
        let entries = (asked.count as usize).min(BATCH as usize);
        if visit(&keys[..entries * key], &values[..entries * value]).is_break() || last {
            break;
        }
    }
    Ok(())
}
