//! Values as people write them: on the command line, in variables and in files alike.
//!
//! Pure.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};

/// A number of bytes: `123`, `512M`, `4G`, `1.5T`; powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// A list of cores: `0,1` or `4-7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Lines,
    /// One JSON object for each line.
    Json,
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; write for example 512M or 4G");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift =
            match text[digits.len()..].to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
                "" => 0,
                "K" => 10,
                "M" => 20,
                "G" => 30,
                "T" => 40,
                _ => return Err(wrong()),
            };
        let value: f64 = digits.parse().map_err(|_| wrong())?;
        let bytes = value * (1u64 << shift) as f64;
        if !(bytes >= 1.0 && bytes < 2f64.powi(62)) {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a list of cores; write for example 0,1 or 4-7");
        let mut all = Vec::new();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to): (usize, usize) =
                (from.trim().parse().map_err(|_| wrong())?, to.trim().parse().map_err(|_| wrong())?);
            if from > to || to >= 4096 {
                return Err(wrong());
            }
            all.extend(from..=to);
        }
        let mut distinct = all.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() == all.len() { Ok(Self(all)) } else { Err(format!("`{text}` names a core twice")) }
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lines" => Ok(Self::Lines),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is neither lines nor json")),
        }
    }
}

/// A value that is written as text, or as a number where that is one.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Number(i64),
}

/// Reads a value of a file as its text says it, for `deserialize_with` and implementations of `Deserialize`.
pub fn written<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(from: D) -> Result<T, D::Error> {
    let text = match Written::deserialize(from)? {
        Written::Text(text) => text,
        Written::Number(number) => number.to_string(),
    };
    text.parse().map_err(de::Error::custom)
}

/// The same, where it need not be said.
pub fn written_or_none<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    written(from).map(Some)
}

/// One value of a file, or a list of them.
pub fn one_or_many<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Many {
        One(String),
        Many(Vec<String>),
    }
    let all = match Many::deserialize(from)? {
        Many::One(one) => vec![one],
        Many::Many(many) => many,
    };
    all.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

macro_rules! deserialized_as_written {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                written(from)
            }
        }
    )*};
}

deserialized_as_written!(Bytes, Cores, LogFormat);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let size = |text: &str| text.parse::<Bytes>().map(|bytes| bytes.0);
        assert_eq!(size("123"), Ok(123));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("2gb"), Ok(2 << 30));
        for bad in ["", "M", "-1", "0", "1X", "nan", "inf", "1e30"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cores_are_lists_and_ranges() {
        let cores = |text: &str| text.parse::<Cores>().map(|cores| cores.0);
        assert_eq!(cores("0,2-4"), Ok(vec![0, 2, 3, 4]));
        for bad in ["", "a", "3-1", "1,1", "0-99999"] {
            assert!(cores(bad).is_err(), "{bad}");
        }
    }
}
