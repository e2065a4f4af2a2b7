//! Captures: pcap and pcapng, link type Ethernet.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, Endianness, TsResolution};

/// A packet of a capture, or why it cannot be run.
#[derive(Clone, Debug)]
pub struct Captured {
    /// When it was captured.
    pub timestamp: Duration,
    /// The whole frame; else a word of why not.
    pub frame: Result<Vec<u8>, String>,
}

/// Reads a capture, packet by packet.
pub enum Capture {
    /// The classic format.
    Pcap(PcapReader<BufReader<File>>),
    /// The format of Wireshark.
    PcapNg(PcapNgReader<BufReader<File>>),
}

/// First four bytes of a pcapng file: the type of its section header block.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

impl Capture {
    /// Open a capture.
    ///
    /// # Errors
    /// The file cannot be read, is no capture, or is one of another link type.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let mut file = File::open(path).with_context(|| format!("{name}: cannot be read"))?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic).with_context(|| format!("{name}: is shorter than a capture's header"))?;
        file.rewind().with_context(|| format!("{name}: cannot be read twice; a pipe? write it to a file"))?;
        let reader = BufReader::new(file);
        if magic == PCAPNG_MAGIC {
            let reader = PcapNgReader::new(reader).with_context(|| format!("{name}: is no pcapng file"))?;
            return Ok(Self::PcapNg(reader));
        }
        let reader = PcapReader::new(reader).with_context(|| format!("{name}: is no pcap or pcapng file"))?;
        let link = reader.header().datalink;
        if link != DataLink::ETHERNET {
            bail!("{name}: has link type {link:?}; capture on an Ethernet interface (not on `any`)");
        }
        Ok(Self::Pcap(reader))
    }

    /// The next packet.
    ///
    /// # Errors
    /// The file is damaged: no packet follows.
    pub fn next_packet(&mut self) -> Option<Result<Captured>> {
        match self {
            Self::Pcap(reader) => {
                let resolution = reader.header().ts_resolution;
                // Raw: the crate takes a packet longer than the file's snap length, which is one that was cut, for damage.
                let packet = match reader.next_raw_packet()? {
                    Ok(packet) => packet,
                    Err(error) => return Some(Err(error).context("the capture is damaged")),
                };
                let fraction = match resolution {
                    TsResolution::MicroSecond => Duration::from_micros(packet.ts_frac.into()),
                    TsResolution::NanoSecond => Duration::from_nanos(packet.ts_frac.into()),
                };
                let timestamp = Duration::from_secs(packet.ts_sec.into()) + fraction;
                Some(Ok(Captured { timestamp, frame: whole(&packet.data, packet.orig_len) }))
            }
            Self::PcapNg(reader) => next_block(reader),
        }
    }
}

fn next_block(reader: &mut PcapNgReader<BufReader<File>>) -> Option<Result<Captured>> {
    loop {
        let block = match reader.next_block()? {
            Ok(block) => block.into_owned(),
            Err(error) => return Some(Err(error).context("the capture is damaged")),
        };
        let (interface, ticks, mut data, original) = match block {
            // The crate calls them nanoseconds, whatever the interface counts.
            Block::EnhancedPacket(packet) => {
                (packet.interface_id, packet.timestamp.as_nanos() as u64, packet.data, packet.original_len)
            }
            Block::Packet(packet) => {
                // The upper half stands first in either byte order, which the crate does not know.
                let swapped = matches!(reader.section().endianness, Endianness::Little);
                let ticks = packet.timestamp.rotate_left(if swapped { 32 } else { 0 });
                (packet.interface_id.into(), ticks, packet.data, packet.original_len)
            }
            Block::SimplePacket(packet) => (0, 0, packet.data, packet.original_len),
            _ => continue,
        };
        let Some(described) = reader.interfaces().get(interface as usize) else {
            let frame = Err(format!("it names interface {interface}, which the capture does not describe"));
            return Some(Ok(Captured { timestamp: Duration::ZERO, frame }));
        };
        let frame = if described.linktype == DataLink::ETHERNET {
            // A simple packet comes with what fills its block up to a multiple of four.
            data.to_mut().truncate(original as usize);
            whole(&data, original)
        } else {
            Err(format!("it was captured on an interface of link type {:?}, not Ethernet", described.linktype))
        };
        return Some(Ok(Captured { timestamp: timestamp(described, ticks), frame }));
    }
}

/// A time in an interface's own unit: a power of ten, or of two where the high bit is set (pcapng, `if_tsresol`); a
/// millionth of a second where it says nothing.
fn timestamp(interface: &InterfaceDescriptionBlock<'_>, ticks: u64) -> Duration {
    let resolution = interface.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    });
    let resolution = resolution.unwrap_or(6);
    let exponent = u32::from(resolution & 0x7f);
    let base: u64 = if resolution & 0x80 == 0 { 10 } else { 2 };
    let Some(unit) = base.checked_pow(exponent) else { return Duration::ZERO };
    let nanoseconds = u128::from(ticks % unit) * 1_000_000_000 / u128::from(unit);
    Duration::new(ticks / unit, nanoseconds as u32)
}

fn whole(data: &[u8], original: u32) -> Result<Vec<u8>, String> {
    if data.len() < original as usize {
        return Err(format!(
            "the capture has {} of its {original} bytes: capture with a longer snap length (tcpdump -s 0)",
            data.len()
        ));
    }
    Ok(data.to_vec())
}

/// The snap length of what is written, in bytes: tcpdump's own, more than any frame has.
const SNAP_LENGTH: u32 = 262_144;

/// Writes frames to a pcap file.
pub struct Writer(PcapWriter<File>);

impl Writer {
    /// Create the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("{}: cannot be written", path.display()))?;
        let header = PcapHeader { snaplen: SNAP_LENGTH, ..PcapHeader::default() };
        let writer = PcapWriter::with_header(file, header);
        Ok(Self(writer.with_context(|| format!("{}: cannot be written", path.display()))?))
    }

    /// Append a frame.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, timestamp: Duration, frame: &[u8]) -> Result<()> {
        // The format has 32 bits of seconds.
        let timestamp = timestamp.min(Duration::from_secs(u32::MAX.into()));
        let packet = PcapPacket::new(timestamp, frame.len() as u32, frame);
        self.0.write_packet(&packet).context("writing the capture")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// A classic capture of one packet, of which `kept` bytes are there.
    fn pcap(snap_length: u32, kept: usize, original: u32) -> Vec<u8> {
        let mut file = words(&[0xa1b2_c3d4, 0x0004_0002, 0, 0, snap_length, 1]);
        file.extend(words(&[1000, 5, kept as u32, original]));
        file.extend(vec![0x5a; kept]);
        file
    }

    fn block(kind: u32, mut body: Vec<u8>) -> Vec<u8> {
        body.resize(body.len().next_multiple_of(4), 0);
        let length = body.len() as u32 + 12;
        [words(&[kind, length]), body, words(&[length])].concat()
    }

    /// A capture of pcapng's kind: one Ethernet interface with these options, and these blocks.
    fn pcapng(options: &[u32], blocks: &[(u32, Vec<u8>)]) -> Vec<u8> {
        let mut file = block(0x0a0d_0d0a, words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]));
        file.extend(block(1, [words(&[1, 0]), words(options)].concat()));
        file.extend(blocks.iter().flat_map(|(kind, body)| block(*kind, body.clone())));
        file
    }

    fn read(bytes: &[u8]) -> Vec<Captured> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("capture");
        std::fs::write(&path, bytes).unwrap();
        let mut capture = Capture::open(&path).unwrap();
        std::iter::from_fn(|| capture.next_packet()).map(Result::unwrap).collect()
    }

    #[test]
    fn a_packet_that_the_snap_length_cut_is_said_and_the_rest_is_read() {
        let mut file = pcap(64, 64, 1500);
        file.extend(words(&[1001, 0, 60, 60]));
        file.extend([0x5a; 60]);
        let packets = read(&file);
        assert_eq!(packets.len(), 2);
        assert!(packets[0].frame.as_ref().unwrap_err().contains("64 of its 1500 bytes"), "{:?}", packets[0]);
        assert_eq!(packets[0].timestamp, Duration::new(1000, 5000));
        assert_eq!(packets[1].frame.as_deref(), Ok(&[0x5a; 60][..]));
    }

    #[test]
    fn a_file_without_a_snap_length_is_read() {
        assert_eq!(read(&pcap(0, 60, 60))[0].frame.as_deref(), Ok(&[0x5a; 60][..]));
    }

    #[test]
    fn every_kind_of_block_with_a_packet_counts_and_has_no_padding() {
        let frame = vec![0x5a; 61];
        let enhanced = [words(&[0, 0, 7_000_001, 61, 61]), frame.clone()].concat();
        let simple = [words(&[61]), frame.clone()].concat();
        let obsolete = [words(&[0, 0, 7_000_001, 61, 61]), frame.clone()].concat();
        let packets = read(&pcapng(&[], &[(6, enhanced), (3, simple), (5, words(&[0, 0, 0])), (2, obsolete)]));
        assert_eq!(packets.len(), 3);
        assert!(packets.iter().all(|packet| packet.frame.as_ref() == Ok(&frame)), "{packets:?}");
        let times: Vec<_> = packets.iter().map(|packet| packet.timestamp).collect();
        // A simple packet has none.
        assert_eq!(times, [Duration::new(7, 1000), Duration::ZERO, Duration::new(7, 1000)]);
    }

    #[test]
    fn times_are_in_the_unit_of_their_interface() {
        let packet = |low| (6, [words(&[0, 0, low, 4, 4]), vec![0; 4]].concat());
        // if_tsresol: option 9, one byte, filled up to four.
        let at = |resolution, ticks| read(&pcapng(&[9 | 1 << 16, resolution, 0], &[packet(ticks)]))[0].timestamp;
        assert_eq!(at(9, 2_000_000_001), Duration::new(2, 1));
        assert_eq!(at(3, 2_500), Duration::from_millis(2500));
        assert_eq!(at(0x80 | 1, 5), Duration::from_millis(2500));
    }
}
