//! Captures: pcap and pcapng, link type Ethernet.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pcap_file::DataLink;
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};

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
                let packet = match reader.next_packet()? {
                    Ok(packet) => packet,
                    Err(error) => return Some(Err(error).context("the capture is damaged")),
                };
                let frame = whole(&packet.data, packet.orig_len);
                Some(Ok(Captured { timestamp: packet.timestamp, frame }))
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
        let (interface, timestamp, data, original) = match block {
            Block::EnhancedPacket(packet) => (packet.interface_id, packet.timestamp, packet.data, packet.original_len),
            Block::SimplePacket(packet) => (0, Duration::ZERO, packet.data, packet.original_len),
            _ => continue,
        };
        let link = reader.interfaces().get(interface as usize).map(|interface| interface.linktype);
        let frame = match link {
            Some(DataLink::ETHERNET) => whole(&data, original),
            Some(link) => Err(format!("it was captured on an interface of link type {link:?}, not Ethernet")),
            None => Err(format!("it names interface {interface}, which the capture does not describe")),
        };
        return Some(Ok(Captured { timestamp, frame }));
    }
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

/// Writes frames to a pcap file.
pub struct Writer(PcapWriter<File>);

impl Writer {
    /// Create the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("{}: cannot be written", path.display()))?;
        Ok(Self(PcapWriter::new(file).with_context(|| format!("{}: cannot be written", path.display()))?))
    }

    /// Append a frame.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, timestamp: Duration, frame: &[u8]) -> Result<()> {
        let packet = PcapPacket::new(timestamp, frame.len() as u32, frame);
        self.0.write_packet(&packet).context("writing the capture")?;
        Ok(())
    }
}
