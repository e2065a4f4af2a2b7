//! A packet for unit tests: plain bytes.

use std::vec::Vec;

use super::{Connection, Packet, QUOTE, Socket, ethernet};
use crate::address::Family;
use crate::checksum;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Packet for Bytes {
    const CAN_ANSWER: bool = true;

    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.get(offset as usize..offset as usize + N)?.try_into().ok()
    }

    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N]) -> bool {
        let place = self.0.get_mut(offset as usize..offset as usize + N);
        place.map(|place| place.copy_from_slice(bytes)).is_some()
    }

    fn excess(&self, length: u32) -> Option<u32> {
        (self.0.len() as u32).checked_sub(length)
    }

    fn quote_sum(&self, offset: u32) -> Option<u32> {
        self.load::<QUOTE>(offset).map(|bytes| checksum::sum(&bytes))
    }

    fn grow<const N: usize>(&mut self) -> bool {
        self.0.splice(..0, [0; N]);
        true
    }

    fn strip(&mut self, l3: u32, length: u32, family: Family) -> bool {
        let (Some(macs), Some(tags)) = (self.load::<12>(0), ethernet::tags(self, l3)) else { return false };
        self.0.drain(l3 as usize..(l3 + length) as usize);
        ethernet::write(self, l3, &macs, &tags, family)
    }

    fn trim(&mut self, length: u32) -> bool {
        self.0.truncate(self.0.len() - length as usize);
        true
    }

    fn interface(&self) -> u32 {
        1
    }

    fn socket(&self, _: u32, _: &Connection, _: u32, _: u32) -> Socket {
        Socket::None
    }
}
