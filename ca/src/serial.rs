//! Serial numbers of certificates: drawn, printed and read.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most octets that a serial number may have (RFC 5280, 4.1.2.2).
const OCTETS_MAX: usize = 20;

/// A positive serial number, printed as lower-case hex without leading zero octets.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Serial(Vec<u8>);

/// Why a string is no serial number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SerialError {
    /// Something other than hex digits (and colons between octets).
    #[error("holds {0:?}; only hex digits, and colons between octets, are allowed")]
    Char(char),
    /// Zero, or no digit at all.
    #[error("is zero or empty")]
    Zero,
    /// More than 20 octets.
    #[error("is longer than 20 octets")]
    TooLong,
}

/// The system's random number generator failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

impl Serial {
    /// Draws a serial of exactly 128 bits.
    ///
    /// The two highest bits are 0 and 1: the DER integer is then positive and always 16 octets long, and its hex form
    /// is the same whoever prints it. 126 bits are left to chance.
    pub fn draw() -> Result<Self, NoRandomness> {
        let mut octets = [0_u8; 16];
        rand::fill(&mut octets).map_err(|_| NoRandomness)?;
        octets[0] = (octets[0] & 0x3f) | 0x40;
        Ok(Self(octets.to_vec()))
    }

    /// The serial with these big-endian octets, as a certificate holds them.
    pub fn from_octets(octets: &[u8]) -> Result<Self, SerialError> {
        let from = octets.iter().position(|octet| *octet != 0).ok_or(SerialError::Zero)?;
        let octets = &octets[from..];
        if octets.len() > OCTETS_MAX {
            return Err(SerialError::TooLong);
        }
        Ok(Self(octets.to_vec()))
    }

    /// The big-endian octets, without leading zeros.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    /// Reads hex in either case, with or without colons between octets, as tools print it.
    fn from_str(text: &str) -> Result<Self, SerialError> {
        let mut digits = Vec::new();
        for c in text.chars().filter(|c| *c != ':') {
            let digit = c.to_digit(16).ok_or(SerialError::Char(c))?;
            digits.push(u8::try_from(digit).map_err(|_| SerialError::Char(c))?);
            if digits.len() > 2 * (OCTETS_MAX + 1) {
                return Err(SerialError::TooLong);
            }
        }
        if digits.len() % 2 == 1 {
            digits.insert(0, 0);
        }
        let octets: Vec<u8> = digits.chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]).collect();
        Self::from_octets(&octets)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Serial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Serial {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_drawn_serial_has_128_bits_is_positive_and_never_the_same() {
        let drawn: std::collections::BTreeSet<Serial> = (0..1000).map(|_| Serial::draw().unwrap()).collect();
        assert_eq!(drawn.len(), 1000);
        assert!(drawn.iter().all(|serial| serial.octets().len() == 16 && serial.octets()[0] >> 6 == 1));
    }

    #[test]
    fn a_serial_is_read_as_tools_print_it() {
        for text in ["0A:bc", "abc", "0abc", "000ABC", "00:0a:BC"] {
            assert_eq!(text.parse::<Serial>().unwrap().to_string(), "0abc", "{text}");
        }
        assert_eq!("".parse::<Serial>(), Err(SerialError::Zero));
        assert_eq!("00:00".parse::<Serial>(), Err(SerialError::Zero));
        assert_eq!("12g4".parse::<Serial>(), Err(SerialError::Char('g')));
        assert_eq!("1".repeat(41).parse::<Serial>(), Err(SerialError::TooLong));
        assert_eq!("1".repeat(4000).parse::<Serial>(), Err(SerialError::TooLong));
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_what_is_read_prints_back(text in "[0-9a-fA-F:]{0,50}|.{0,50}") {
            if let Ok(serial) = text.parse::<Serial>() {
                prop_assert_eq!(serial.to_string().parse::<Serial>().unwrap(), serial);
            }
        }
    }
}
