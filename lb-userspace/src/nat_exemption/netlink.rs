//! Two questions to nftables that need no program: which generation its ruleset is, and whether a table is there.

use std::io::{self, Read as _};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// How long an answer may take. The kernel gives it within the call that asks.
const PATIENCE: Duration = Duration::from_secs(1);

/// Messages and attributes of include/uapi/linux/netfilter/nf_tables.h that libc does not name.
const NFT_MSG_GETTABLE: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_GEN_ID: u16 = 1;

/// Bytes of a netlink header, and of nfnetlink's behind it (family, version, resource).
const NETLINK_HEADER: usize = 16;
const HEADERS: usize = NETLINK_HEADER + 4;
/// Bytes of an attribute's header.
const ATTRIBUTE_HEADER: usize = 4;

/// A number that the kernel counts up with each change of this network namespace's ruleset, whoever makes it
/// (NFT_MSG_GETGEN, kernel 3.18).
///
/// # Errors
/// The kernel has no nftables, or the right to ask is missing (CAP_NET_ADMIN).
pub(super) fn generation() -> Result<u32> {
    let answer = ask(libc::NFT_MSG_GETGEN as u16, libc::NFPROTO_UNSPEC, &[]).context("asking nftables' generation")?;
    generation_in(&answer).context("nftables answered without its generation")
}

/// Whether there is a table of this name and of the family `inet`.
///
/// # Errors
/// The right to ask is missing (CAP_NET_ADMIN).
pub(super) fn has_table(name: &str) -> Result<bool> {
    let name_attribute = attribute(NFTA_TABLE_NAME, &[name.as_bytes(), &[0]].concat())?;
    match ask(NFT_MSG_GETTABLE, libc::NFPROTO_INET, &name_attribute) {
        Ok(_) => Ok(true),
        // All but the first: a kernel without nftables.
        Err(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => Ok(false),
        Err(error) => Err(anyhow!(error).context(format!("asking nftables for the table {name}"))),
    }
}

/// Asks nftables one question; returns the attributes of the answer.
fn ask(message: u16, family: i32, attributes: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut answer = [0; 4096];
    let read = exchange(&question(message, family, attributes), &mut answer).map_err(errno)?;
    attributes_in(&answer[..read])
}

fn exchange(question: &[u8], answer: &mut [u8]) -> io::Result<usize> {
    let protocol = Protocol::from(libc::NETLINK_NETFILTER);
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // Without an address it goes to the kernel.
    socket.send(question)?;
    socket.read(answer)
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn question(message: u16, family: i32, attributes: &[u8]) -> Vec<u8> {
    let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | message;
    let mut question = Vec::with_capacity(HEADERS + attributes.len());
    question.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    question.extend(kind.to_ne_bytes());
    question.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Sequence number and port: one question on a socket of its own needs neither.
    question.extend([0; 8]);
    question.extend([family as u8, 0, 0, 0]);
    question.extend(attributes);
    question
}

/// An attribute with its header, as long as a multiple of 4.
fn attribute(kind: u16, value: &[u8]) -> Result<Vec<u8>> {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).context("too long for a netlink attribute")?;
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    Ok(attribute)
}

/// The attributes of an answer, or the error that it is.
fn attributes_in(answer: &[u8]) -> Result<Vec<u8>, Errno> {
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    if kind.map(i32::from) == Some(libc::NLMSG_ERROR) {
        let error = answer.get(NETLINK_HEADER..NETLINK_HEADER + 4).and_then(|error| error.try_into().ok());
        return Err(Errno::from_raw(-error.map_or(-libc::EIO, i32::from_ne_bytes)));
    }
    answer.get(HEADERS..).map(<[u8]>::to_vec).ok_or(Errno::EIO)
}

/// The generation among the attributes of an answer.
fn generation_in(mut attributes: &[u8]) -> Option<u32> {
    while let Some((header, _)) = attributes.split_first_chunk::<ATTRIBUTE_HEADER>() {
        let [length, kind] = [[header[0], header[1]], [header[2], header[3]]].map(u16::from_ne_bytes);
        let length = usize::from(length);
        let value = attributes.get(ATTRIBUTE_HEADER..length)?;
        if kind == NFTA_GEN_ID {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_laid_out_as_the_kernel_wants_it() {
        let name = attribute(NFTA_TABLE_NAME, b"ab\0").expect("it is short");
        assert_eq!(name, [&7_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), b"ab\0\0"].concat());
        let question = question(NFT_MSG_GETTABLE, libc::NFPROTO_INET, &name);
        let header = [&28_u32.to_ne_bytes()[..], &0x0a01_u16.to_ne_bytes(), &1_u16.to_ne_bytes(), &[0; 8]].concat();
        assert_eq!(question, [&header[..], &[1, 0, 0, 0], &name].concat());
    }

    #[test]
    fn the_generation_is_found_behind_other_attributes() {
        let other = attribute(2, &[1, 2, 3, 4, 5]).expect("it is short");
        let generation = attribute(NFTA_GEN_ID, &[0, 0, 1, 2]).expect("it is short");
        assert_eq!(generation_in(&[&other[..], &generation].concat()), Some(258));
        assert_eq!(generation_in(&other), None);
        // Cut off, or with a length of nothing.
        assert_eq!(generation_in(&generation[..6]), None);
        assert_eq!(generation_in(&[0; 8]), None);
    }

    #[test]
    fn an_error_is_told_from_an_answer() {
        let mut answer = question(15, 0, &[9; 4]);
        assert_eq!(attributes_in(&answer), Ok(vec![9; 4]));
        answer[4..6].copy_from_slice(&2_u16.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(attributes_in(&answer), Err(Errno::ENOENT));
        assert_eq!(attributes_in(&answer[..10]), Err(Errno::EIO));
        assert_eq!(attributes_in(&[]), Err(Errno::EIO));
    }
}
