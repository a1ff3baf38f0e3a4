//! Bodies in gzip or deflate. What came is unpacked whatever it is; what goes is packed where the client can read it and it is worth it.
//! Brotli is not among them: there are clients that say they read it and do not.

use std::io::{self, Read, Write};

use axum::http::HeaderMap;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::api::error::ApiError;

/// Less than that fits into one packet anyway.
const WORTH_IT: usize = 1024;

/// How a body is packed. `deflate` is zlib's format (RFC 9110, 8.4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
}

impl Coding {
    const ALL: [Self; 2] = [Self::Gzip, Self::Deflate];

    /// Its name in headers.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|coding| coding.name().eq_ignore_ascii_case(name))
    }

    /// How the body of a request is packed; `None` when it is not.
    ///
    /// # Errors
    /// When it is packed in another way.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(None) };
        let name = value.to_str().unwrap_or_default().trim();
        if name.is_empty() || name.eq_ignore_ascii_case("identity") {
            return Ok(None);
        }
        Self::named(name).map(Some).ok_or_else(|| {
            ApiError::unsupported_media_type(format!(
                "bodies in the content encoding '{name}' are not read here: send gzip, deflate or neither"
            ))
        })
    }

    /// The way of packing that a client prefers; `None` when it reads neither.
    pub(super) fn accepted(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
        let mut best = None;
        for word in values.flat_map(|value| value.split(',')) {
            let mut parts = word.split(';').map(str::trim);
            let Some(coding) = parts.next().and_then(Self::named) else { continue };
            let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
            let quality = quality.unwrap_or(0.0);
            if quality > best.map_or(0.0, |(_, best)| best) {
                best = Some((coding, quality));
            }
        }
        best.map(|(coding, _)| coding)
    }

    /// Unpacks a body of at most `limit` bytes.
    ///
    /// # Errors
    /// When it is broken, or larger.
    pub(super) fn unpacked(self, body: &Bytes, limit: usize) -> Result<Bytes, ApiError> {
        let mut unpacked = Vec::new();
        let most = limit as u64 + 1;
        let read = match self {
            Self::Gzip => MultiGzDecoder::new(body.as_ref()).take(most).read_to_end(&mut unpacked),
            Self::Deflate => ZlibDecoder::new(body.as_ref()).take(most).read_to_end(&mut unpacked),
        };
        match read {
            Err(error) => Err(ApiError::bad_request(format!("the body is no {}: {error}", self.name()))),
            Ok(length) if length > limit => {
                Err(ApiError::too_large(format!("the body is larger than {limit} bytes when unpacked (--max-body)")))
            }
            Ok(_) => Ok(unpacked.into()),
        }
    }

    /// Packs a body, fast rather than well; `None` where that is not worth it.
    pub(super) fn packed(self, body: &[u8]) -> Option<Vec<u8>> {
        if body.len() < WORTH_IT {
            return None;
        }
        // Writing into memory does not fail.
        self.try_packed(body).ok().filter(|packed| packed.len() < body.len())
    }

    fn try_packed(self, body: &[u8]) -> io::Result<Vec<u8>> {
        let room = Vec::with_capacity(body.len() / 2);
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(room, Compression::fast());
                encoder.write_all(body)?;
                encoder.finish()
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(room, Compression::fast());
                encoder.write_all(body)?;
                encoder.finish()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::{HeaderName, HeaderValue};

    use super::*;
    use crate::api::error::Code;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_client_says_what_it_reads() {
        for (value, expected) in [
            ("gzip", Some(Coding::Gzip)),
            ("deflate", Some(Coding::Deflate)),
            ("gzip, deflate, br", Some(Coding::Gzip)),
            ("br, deflate;q=0.8, GZIP;q=0.5", Some(Coding::Deflate)),
            ("gzip;q=0, identity", None),
            ("br", None),
            ("gzip;q=much", None),
            ("", None),
        ] {
            assert_eq!(Coding::accepted(&headers(ACCEPT_ENCODING, value)), expected, "{value}");
        }
        assert_eq!(Coding::accepted(&HeaderMap::new()), None);
    }

    #[test]
    fn bodies_are_unpacked_within_the_limit() {
        let body = vec![7u8; 5000];
        for coding in Coding::ALL {
            let packed = Bytes::from(coding.packed(&body).unwrap());
            assert!(packed.len() < 100);
            assert_eq!(coding.unpacked(&packed, 5000).unwrap(), body);
            assert_eq!(coding.unpacked(&packed, 4999).unwrap_err().code(), Code::PayloadTooLarge);
            let broken = packed.slice(..packed.len() / 2);
            assert_eq!(coding.unpacked(&broken, 5000).unwrap_err().code(), Code::BadRequest);
            assert_eq!(coding.unpacked(&Bytes::from_static(b"plain"), 5000).unwrap_err().code(), Code::BadRequest);
            assert!(coding.packed(&body[..100]).is_none(), "it is small as it is");
        }
    }

    #[test]
    fn other_encodings_are_refused() {
        assert_eq!(Coding::of(&headers(CONTENT_ENCODING, "br")).unwrap_err().code(), Code::UnsupportedMediaType);
        assert_eq!(Coding::of(&headers(CONTENT_ENCODING, "identity")).unwrap(), None);
        assert_eq!(Coding::of(&headers(CONTENT_ENCODING, "Deflate")).unwrap(), Some(Coding::Deflate));
        assert_eq!(Coding::of(&HeaderMap::new()).unwrap(), None);
    }
}
