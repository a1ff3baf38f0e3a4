//! Reading a request's body, within its limits of size and time.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::ApiError;
use crate::config::Http;

/// How much, and for how long, a body is read only to be thrown away. Answering a client that still sends and closing
/// the connection would take the answer away from it.
const DISCARDED_BYTES: usize = 64 << 20;
const DISCARDING: Duration = Duration::from_secs(2);

/// Reads the whole body.
///
/// # Errors
/// When it is larger than allowed, comes too slowly, or breaks off.
pub(super) async fn read(request: Request, settings: &Http) -> Result<(Parts, Bytes), ApiError> {
    let limit = settings.max_body();
    let too_large = || {
        ApiError::too_large(format!(
            "the body is larger than the {} allowed (--max-body)",
            settings.max_body.display().si()
        ))
    };
    let announced =
        request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        discard(request).await;
        return Err(too_large());
    }

    let (head, mut body) = request.into_parts();
    let collected = tokio::time::timeout(settings.body_timeout(), Limited::new(&mut body, limit).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok((head, collected.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard_body(body).await;
            Err(too_large())
        }
        Ok(Err(error)) => Err(ApiError::bad_request(format!("the body broke off: {error}"))),
        Err(_) => {
            Err(ApiError::timeout(format!("the body was not there after {} (--body-timeout)", settings.body_timeout)))
        }
    }
}

/// Throws a request's body away, so that the client comes to read the answer. A client that asked first whether to send
/// it has sent nothing.
pub(super) async fn discard(request: Request) {
    if !request.headers().contains_key(EXPECT) {
        discard_body(request.into_body()).await;
    }
}

pub(super) async fn discard_body(mut body: Body) {
    let mut left = DISCARDED_BYTES;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Whatever is still to come after that is the client's own loss.
    let _ = tokio::time::timeout(DISCARDING, reading).await;
}
