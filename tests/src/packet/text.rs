//! Values that YAML has no type for: MAC addresses, bytes in hexadecimal, values that may be anything.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, ensure};
use serde::{Deserialize, Deserializer, de};

/// A MAC address, written `02:00:00:00:00:0a`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bytes = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16))
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("{text:?} is not a MAC address like 02:00:00:00:00:0a"))?;
        let count = bytes.len();
        let bytes = bytes.try_into().ok().with_context(|| format!("MAC address {text:?} has {count} bytes, not 6"))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|e| de::Error::custom(format!("{e:#}")))
    }
}

/// Bytes, written in hexadecimal; spaces may stand between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl FromStr for Hex {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        ensure!(digits.len().is_multiple_of(2), "{text:?} has an odd number of hexadecimal digits");
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
        let bytes = digits.chunks(2).map(byte).collect::<Result<_, _>>();
        Ok(Self(bytes.with_context(|| format!("{text:?} is not hexadecimal"))?))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|e| de::Error::custom(format!("{e:#}")))
    }
}

/// A value, or `any`: it is not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Wild<T> {
    /// This value.
    Value(T),
    /// Whatever is there.
    Any(AnyWord),
}

/// The word `any`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AnyWord {
    /// The word itself.
    Any,
}
