//! Reading a request's body, within its limits of size and time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Frame, SizeHint};
use tokio::runtime::Handle;

use super::error::ApiError;
use crate::app::App;
use crate::config::Http;

/// How much of a body is read only to be thrown away.
const DISCARDED_BYTES: usize = 64 << 20;

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
        return Err(too_large());
    }

    let (head, body) = request.into_parts();
    match tokio::time::timeout(settings.body_timeout(), Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok((head, collected.to_bytes())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(ApiError::bad_request(format!("the body broke off: {error}"))),
        Err(_) => {
            Err(ApiError::timeout(format!("the body was not there after {} (--body-timeout)", settings.body_timeout)))
        }
    }
}

/// Has the body of a request read to its end, within bounds, also where its answer is known before: a connection that is closed
/// while the client still sends takes the answer away from it.
pub(super) async fn lingering(State(app): State<Arc<App>>, request: Request) -> Request {
    let limit = app.settings.http.body_timeout();
    // A client that asked first whether to send has sent nothing until somebody reads.
    let unsent = request.headers().contains_key(EXPECT);
    let runtime = Handle::current();
    request.map(|body| if body.is_end_stream() { body } else { Body::new(Lingering { body, unsent, limit, runtime }) })
}

/// A body whose rest is thrown away in the background when nobody wants it any more.
struct Lingering {
    body: Body,
    unsent: bool,
    /// How long that may take.
    limit: Duration,
    runtime: Handle,
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.unsent = false;
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if !self.unsent && !self.body.is_end_stream() {
            self.runtime.spawn(tokio::time::timeout(self.limit, discard(std::mem::take(&mut self.body))));
        }
    }
}

/// Throws the rest of a body away.
async fn discard(mut body: Body) {
    let mut left = DISCARDED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            break;
        }
    }
}
