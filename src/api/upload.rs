//! The picture in a request: the raw body, a part of a form, or base64 in JSON.

use std::borrow::Cow;
use std::convert::Infallible;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use utoipa::ToSchema;

use super::error::ApiError;
use crate::cpu::Cpu;

/// Standard base64, with or without the padding that some clients leave out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Names of the part that holds the picture.
pub(super) const PARTS: [&str; 2] = ["image", "file"];

/// A picture as JSON.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PictureJson, example = json!({"image": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="}))]
pub(super) struct Json<'a> {
    /// The file in base64, bare or as a `data:` URL.
    #[serde(borrow)]
    image: Cow<'a, str>,
}

/// A picture as a form.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only describes the form in the documentation")]
#[schema(as = PictureForm)]
pub(super) struct Form {
    /// The file; the part may also be called `file`.
    #[schema(value_type = String, format = Binary)]
    image: Vec<u8>,
}

/// How a body holds its picture.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Raw,
    Json,
    Form { boundary: String },
}

impl Kind {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Self::Raw) };
        let value = value.to_str().unwrap_or_default();
        let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/octet-stream" => Ok(Self::Raw),
            image if image.starts_with("image/") => Ok(Self::Raw),
            "application/json" => Ok(Self::Json),
            "multipart/form-data" => multer::parse_boundary(value)
                .map(|boundary| Self::Form { boundary })
                .map_err(|_| ApiError::bad_request("the content type multipart/form-data has no boundary")),
            other => Err(ApiError::unsupported_media_type(format!(
                "'{other}' is not read here: send a picture as image/* or application/octet-stream, a form as \
                 multipart/form-data with the part 'image', or application/json with {{\"image\": \"<base64>\"}}"
            ))),
        }
    }
}

/// The picture in a body.
///
/// # Errors
/// When there is none, or it is wrapped in what is not read here.
pub(super) async fn picture(headers: &HeaderMap, body: Bytes, cpu: &Cpu) -> Result<Bytes, ApiError> {
    let kind = Kind::of(headers)?;
    if body.is_empty() {
        return Err(ApiError::bad_request("the body is empty: send one picture"));
    }
    match kind {
        Kind::Raw => Ok(body),
        Kind::Form { boundary } => from_form(body, boundary).await,
        // Megabytes of base64 are work, and work is not done on the threads that talk to clients.
        Kind::Json => cpu.run(move || from_json(&body)).await?,
    }
}

fn from_json(body: &[u8]) -> Result<Bytes, ApiError> {
    let Json { image } = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is not {{\"image\": \"<base64>\"}}: {error}")))?;
    from_base64(&image)
}

/// The file in base64, bare or as a `data:` URL.
///
/// # Errors
/// When it is neither, or empty.
pub(super) fn from_base64(image: &str) -> Result<Bytes, ApiError> {
    let text = match image.strip_prefix("data:") {
        None => image,
        Some(url) => match url.split_once(',') {
            Some((kind, data)) if kind.ends_with(";base64") => data,
            _ => return Err(ApiError::bad_request("the data: URL in 'image' is not 'data:<type>;base64,<base64>'")),
        },
    };
    let text: Cow<str> = if text.contains(|c: char| c.is_ascii_whitespace()) {
        text.split_ascii_whitespace().collect::<String>().into()
    } else {
        text.into()
    };
    let bytes = BASE64
        .decode(text.as_bytes())
        .map_err(|error| ApiError::bad_request(format!("'image' is not base64: {error}")))?;
    if bytes.is_empty() {
        return Err(ApiError::bad_request("'image' is empty: send one picture"));
    }
    Ok(bytes.into())
}

async fn from_form(body: Bytes, boundary: String) -> Result<Bytes, ApiError> {
    let malformed = |error: multer::Error| ApiError::bad_request(format!("the form is malformed: {error}"));
    let mut form = multer::Multipart::new(stream::iter([Ok::<_, Infallible>(body)]), boundary);
    let mut picture = None;
    while let Some(part) = form.next_field().await.map_err(malformed)? {
        if !part.name().is_some_and(|name| PARTS.contains(&name)) {
            continue;
        }
        if picture.is_some() {
            return Err(ApiError::bad_request("the form has more than one picture: send one"));
        }
        picture = Some(part.bytes().await.map_err(malformed)?);
    }
    match picture {
        None => Err(ApiError::bad_request("the form has no part 'image' (or 'file')")),
        Some(bytes) if bytes.is_empty() => Err(ApiError::bad_request("the part with the picture is empty")),
        Some(bytes) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::http::HeaderValue;

    use super::*;
    use crate::api::error::Code;

    fn kind(content_type: &'static str) -> Result<Kind, ApiError> {
        Kind::of(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]))
    }

    #[test]
    fn the_content_type_says_how_the_picture_is_wrapped() {
        assert_eq!(Kind::of(&HeaderMap::new()).unwrap(), Kind::Raw);
        assert_eq!(kind("image/jpeg").unwrap(), Kind::Raw);
        assert_eq!(kind("IMAGE/PNG; q=1").unwrap(), Kind::Raw);
        assert_eq!(kind("application/json; charset=utf-8").unwrap(), Kind::Json);
        assert_eq!(kind("multipart/form-data; boundary=x").unwrap(), Kind::Form { boundary: "x".into() });
        assert_eq!(kind("multipart/form-data").unwrap_err().code(), Code::BadRequest);
        assert_eq!(kind("text/plain").unwrap_err().code(), Code::UnsupportedMediaType);
    }

    #[test]
    fn base64_is_read_in_every_usual_spelling() {
        for image in ["AAEC/w==", "AAEC/w", "data:image/png;base64,AAEC/w==", "AAEC\\n/w==\\n", "data:;base64,AAEC/w"] {
            let bytes = from_json(format!(r#"{{"image": "{image}"}}"#).as_bytes()).unwrap();
            assert_eq!(bytes.as_ref(), [0, 1, 2, 255], "{image}");
        }
    }

    #[test]
    fn json_that_holds_no_picture_is_a_bad_request() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"image": 1}"#,
            r#"{"image": ""}"#,
            r#"{"image": "*"}"#,
            r#"{"image": "data:image/png,AAEC"}"#,
            r#"{"image": "AAEC", "images": []}"#,
        ] {
            assert_eq!(from_json(body.as_bytes()).unwrap_err().code(), Code::BadRequest, "{body}");
        }
    }
}
