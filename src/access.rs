//! Who may ask for what: API keys, of which the configuration knows nothing but the SHA-256, with scopes and rates.
//!
//! A key is 256 random bits, so that its hash needs neither salt nor slowness: there is nothing to guess.

use std::collections::HashSet;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::ValueEnum;
use facewise_core::manifest::is_name;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What keys begin with, so that people and scanners of leaked secrets recognise them.
const PREFIX: &str = "fw_";

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Asking about pictures.
    Predict,
    /// Scoring labelled sets.
    Evaluate,
    /// Changing what is served.
    Admin,
}

impl Scope {
    /// Its word in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Predict => "predict",
            Self::Evaluate => "evaluate",
            Self::Admin => "admin",
        }
    }
}

/// SHA-256 of a key. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash of a key.
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Whether both are the same, in a time that does not tell where they differ.
    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for Hash {
    type Error = String;

    fn try_from(hex: String) -> Result<Self, String> {
        let wrong = || format!("'{hex}' is no SHA-256 in 64 hexadecimal digits: `facewise key` writes one");
        let digits: Option<Vec<u8>> = hex.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect();
        let bytes: Vec<u8> =
            digits.ok_or_else(wrong)?.chunks(2).map(|pair| pair.iter().fold(0, |a, b| a << 4 | b)).collect();
        if hex.len() != 64 {
            return Err(wrong());
        }
        bytes.try_into().map(Self).map_err(|_| wrong())
    }
}

/// How often a key may be used: so many requests at once, and as many again in each period, evenly. Written as `10/s`,
/// `600/m` or `5000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rate {
    requests: NonZeroU32,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

impl Rate {
    fn quota(self) -> Quota {
        match self.unit {
            Unit::Second => Quota::per_second(self.requests),
            Unit::Minute => Quota::per_minute(self.requests),
            Unit::Hour => Quota::per_hour(self.requests),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Second => 's',
            Unit::Minute => 'm',
            Unit::Hour => 'h',
        };
        write!(f, "{}/{unit}", self.requests)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let wrong = || format!("'{word}' is no rate like 10/s, 600/m or 5000/h");
        let (requests, unit) = word.split_once('/').ok_or_else(wrong)?;
        let requests = requests.parse().map_err(|_| wrong())?;
        let unit = match unit {
            "s" => Unit::Second,
            "m" => Unit::Minute,
            "h" => Unit::Hour,
            _ => return Err(wrong()),
        };
        Ok(Self { requests, unit })
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        word.parse()
    }
}

/// A key as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Whose it is, for the log.
    pub name: String,
    /// What it is known by.
    pub sha256: Hash,
    /// What it is good for.
    pub scopes: Vec<Scope>,
    /// How often it may be used; without it, as often as the server can answer.
    pub rate: Option<Rate>,
}

/// Checks what no single key can.
///
/// # Errors
/// When two keys share a name or are the same, or one has no name or is good for nothing.
pub fn validate(keys: &[Key]) -> Result<(), String> {
    let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
    for Key { name, sha256, scopes, .. } in keys {
        if !is_name(name) {
            return Err(format!(
                "the key '{name}' has no name: 1 to 64 of a-z, 0-9, '-', '_' and '.', starting with a letter or digit"
            ));
        }
        if !names.insert(name) {
            return Err(format!("there are two keys '{name}'"));
        }
        if !hashes.insert(sha256) {
            return Err(format!("the key '{name}' is the same as another one"));
        }
        if scopes.is_empty() {
            return Err(format!(
                "the key '{name}' is good for nothing: give it some of the scopes predict, evaluate, admin"
            ));
        }
    }
    Ok(())
}

/// Makes a new key.
///
/// # Errors
/// When the system gives no random numbers.
pub fn generate() -> Result<String, getrandom::Error> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)?;
    Ok(PREFIX.to_owned() + &BASE64_URL_SAFE_NO_PAD.encode(secret))
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied<'a> {
    /// It has no key.
    #[error("a key is needed: send it as `authorization: Bearer <key>` or as `x-api-key: <key>`")]
    Missing,
    /// Its key is none of ours.
    #[error("the key is not known here")]
    Unknown,
    /// Its key is good for other things.
    #[error("the key '{name}' does not have the scope '{}'", needed.name())]
    OutOfScope {
        /// The key.
        name: &'a str,
        /// What would be needed.
        needed: Scope,
    },
    /// Its key has been used too often.
    #[error("the key '{name}' is good for {rate}: try again later")]
    TooMany {
        /// The key.
        name: &'a str,
        /// How often it may be used.
        rate: Rate,
        /// When it may be used again.
        wait: Duration,
    },
}

/// The keys of a server, and how often they have been used.
#[derive(Default)]
pub struct Access(Vec<Entry>);

struct Entry {
    key: Key,
    limiter: Option<DefaultDirectRateLimiter>,
}

impl Access {
    /// Nobody has used them yet.
    pub fn new(keys: &[Key]) -> Self {
        let entry =
            |key: &Key| Entry { key: key.clone(), limiter: key.rate.map(|rate| RateLimiter::direct(rate.quota())) };
        Self(keys.iter().map(entry).collect())
    }

    /// Whether there are no keys, so that none is asked for.
    pub const fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose key it is, when it is good for `scope`, or for anything without one. This use of it counts.
    ///
    /// # Errors
    /// When there is no key, or it is unknown, out of scope, or used too often.
    pub fn check(&self, secret: Option<&str>, scope: Option<Scope>) -> Result<&str, Denied<'_>> {
        let hash = Hash::of(secret.ok_or(Denied::Missing)?);
        // All are looked at, so that the time does not tell which one it was.
        let found =
            self.0.iter().fold(None, |found, entry| if entry.key.sha256.is(&hash) { Some(entry) } else { found });
        let Entry { key, limiter } = found.ok_or(Denied::Unknown)?;
        let name = key.name.as_str();
        if let Some(needed) = scope.filter(|scope| !key.scopes.contains(scope)) {
            return Err(Denied::OutOfScope { name, needed });
        }
        if let (Some(limiter), Some(rate)) = (limiter, key.rate)
            && let Err(too_early) = limiter.check()
        {
            let wait = too_early.wait_time_from(DefaultClock::default().now());
            return Err(Denied::TooMany { name, rate, wait });
        }
        Ok(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn key(name: &str, secret: &str, scopes: &[Scope], rate: Option<&str>) -> Key {
        let rate = rate.map(|rate| rate.parse().unwrap());
        Key { name: name.into(), sha256: Hash::of(secret), scopes: scopes.to_vec(), rate }
    }

    #[test]
    fn a_key_is_good_for_its_scopes_only() {
        let access = Access::new(&[
            key("a", "secret-a", &[Scope::Predict], None),
            key("b", "secret-b", &[Scope::Evaluate, Scope::Admin], None),
        ]);
        assert!(!access.is_open() && Access::default().is_open());
        assert_eq!(access.check(Some("secret-a"), Some(Scope::Predict)), Ok("a"));
        assert_eq!(access.check(Some("secret-b"), Some(Scope::Admin)), Ok("b"));
        assert_eq!(access.check(Some("secret-b"), None), Ok("b"));
        let needed = Scope::Admin;
        assert_eq!(access.check(Some("secret-a"), Some(needed)), Err(Denied::OutOfScope { name: "a", needed }));
        assert_eq!(access.check(None, None), Err(Denied::Missing));
        for wrong in ["", "secret-", "secret-a ", "secret-c", &Hash::of("secret-a").to_string()] {
            assert_eq!(access.check(Some(wrong), None), Err(Denied::Unknown), "{wrong}");
        }
    }

    #[test]
    fn a_key_used_too_often_has_to_wait() {
        let access =
            Access::new(&[key("slow", "s", &[Scope::Predict], Some("2/h")), key("fast", "f", &[Scope::Predict], None)]);
        let ask = |secret| access.check(Some(secret), Some(Scope::Predict));
        assert_eq!([ask("s"), ask("s")], [Ok("slow"), Ok("slow")]);
        let Err(Denied::TooMany { name: "slow", wait, .. }) = ask("s") else { panic!("two are allowed") };
        assert!((1700..=1800).contains(&wait.as_secs()), "one of two an hour: {wait:?}");
        assert_eq!(ask("f"), Ok("fast"), "others do not wait for it");
    }

    #[test]
    fn a_refused_request_does_not_use_the_key_up() {
        let access = Access::new(&[key("a", "s", &[Scope::Predict], Some("1/h"))]);
        assert!(access.check(Some("s"), Some(Scope::Admin)).is_err());
        assert_eq!(access.check(Some("s"), Some(Scope::Predict)), Ok("a"));
    }

    #[test]
    fn new_keys_differ_and_are_long() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert!(one.starts_with(PREFIX) && one.len() == 46, "{one}");
        assert_ne!(one, two);
    }

    #[test]
    fn hashes_are_those_of_sha256sum() {
        let hex = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        assert_eq!(Hash::of("secret").to_string(), hex);
        assert_eq!(Hash::try_from(hex.to_uppercase()).unwrap(), Hash::of("secret"));
        for wrong in ["", "2bb8", &hex.replace('2', "g"), &format!("{hex}00"), &"é".repeat(32)] {
            assert!(Hash::try_from(wrong.to_owned()).unwrap_err().contains("no SHA-256"), "{wrong}");
        }
    }

    #[test]
    fn rates_are_read_as_they_are_written() {
        for rate in ["10/s", "600/m", "5000/h"] {
            assert_eq!(rate.parse::<Rate>().unwrap().to_string(), rate);
        }
        for wrong in ["", "10", "0/s", "-1/s", "10/d", "10 / s", "1.5/s"] {
            assert!(wrong.parse::<Rate>().unwrap_err().contains("no rate"), "{wrong}");
        }
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        let a = key("a", "1", &[Scope::Predict], None);
        for (other, message) in [
            (key("a", "2", &[Scope::Predict], None), "two keys 'a'"),
            (key("b", "1", &[Scope::Predict], None), "'b' is the same as another one"),
            (key("b", "2", &[], None), "'b' is good for nothing"),
            (key("Not a name", "2", &[Scope::Predict], None), "has no name"),
        ] {
            let error = validate(&[a.clone(), other]).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        assert_eq!(validate(&[a.clone(), key("b", "2", &[Scope::Admin], None)]), Ok(()));
    }
}
