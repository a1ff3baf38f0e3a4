//! The pictures of a form, read as they arrive: none is held longer than somebody works on it, and what belongs to no picture
//! is not held at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, TryStreamExt, stream};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use multer::{Field, Multipart};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

use super::error::ApiError;
use super::upload::PARTS;
use crate::app::App;

/// Room in a form for what is around its pictures: the heads of its parts, and parts that are none of ours.
const AROUND: usize = 1 << 20;

/// Most bytes between two pieces of parts, more than the head of any part has. The parser keeps them until it knows what they
/// are.
const UNPARSED: usize = 4 << 20;

/// A picture that has arrived.
pub(super) struct Upload {
    /// Its bytes, or why there are none.
    pub(super) bytes: Result<Bytes, ApiError>,
    /// It was admitted; as long as it is held, its bytes are counted.
    pub(super) admitted: Option<OwnedSemaphorePermit>,
}

impl Upload {
    /// Admits a picture that is there already, if there is room for one.
    pub(super) fn admit(bytes: Result<Bytes, ApiError>, app: &App) -> Self {
        match Arc::clone(&app.admission).try_acquire_owned() {
            Ok(permit) => Self { bytes, admitted: Some(permit) },
            Err(_) => Self { bytes: bytes.and(Err(ApiError::overloaded())), admitted: None },
        }
    }
}

/// The parser was given more than [`UNPARSED`] bytes that it could make nothing of.
#[derive(Debug, thiserror::Error)]
#[error("the head of a part is too large")]
struct HeadTooLarge;

/// A form whose parts are read one after the other.
struct Form {
    parts: Multipart<'static>,
    /// Bytes that the parser has got since it gave the last piece of a part.
    unparsed: Arc<AtomicUsize>,
    app: Arc<App>,
    deadline: Instant,
    count: usize,
}

/// The pictures of a form, in their order. An error ends them: the form itself is broken, too long or too slow.
pub(super) fn pictures(
    body: Body,
    boundary: String,
    app: Arc<App>,
    deadline: Instant,
) -> impl Stream<Item = Result<Upload, ApiError>> {
    let http = &app.settings.http;
    let limit = http.max_body().saturating_mul(http.max_pictures).saturating_add(AROUND);
    let unparsed = Arc::new(AtomicUsize::new(0));
    let counted = {
        let unparsed = Arc::clone(&unparsed);
        Limited::new(body, limit).into_data_stream().and_then(move |data| {
            let held = unparsed.fetch_add(data.len(), Ordering::Relaxed) + data.len();
            std::future::ready(if held <= UNPARSED { Ok(data) } else { Err(HeadTooLarge.into()) })
        })
    };
    let form = Form { parts: Multipart::new(counted, boundary), unparsed, app, deadline, count: 0 };
    stream::try_unfold(form, |mut form| async move { Ok(form.next().await?.map(|upload| (upload, form))) })
}

impl Form {
    /// The next picture, which must come within the time for a body and before the deadline.
    async fn next(&mut self) -> Result<Option<Upload>, ApiError> {
        let limit = self.app.settings.http.body_timeout;
        let (slow, deadline) = (Instant::now() + *limit, self.deadline);
        timeout_at(slow.min(deadline).into(), self.read()).await.unwrap_or_else(|_| {
            Err(if deadline <= slow {
                ApiError::deadline()
            } else {
                ApiError::timeout(format!("a picture of the form was not there after {limit} (--body-timeout)"))
            })
        })
    }

    async fn read(&mut self) -> Result<Option<Upload>, ApiError> {
        while let Some(part) = self.part().await? {
            if !part.name().is_some_and(|name| PARTS.contains(&name)) {
                self.skip(part).await?;
                continue;
            }
            let most = self.app.settings.http.max_pictures;
            if self.count == most {
                return Err(too_many(most));
            }
            self.count += 1;
            let mut upload = Upload::admit(Ok(Bytes::new()), &self.app);
            if upload.bytes.is_ok() {
                upload.bytes = self.collect(part).await?;
            } else {
                self.skip(part).await?;
            }
            return Ok(Some(upload));
        }
        if self.count == 0 {
            return Err(ApiError::bad_request("the form has no part 'image' (or 'file')"));
        }
        Ok(None)
    }

    async fn part(&mut self) -> Result<Option<Field<'static>>, ApiError> {
        let part = self.parts.next_field().await.map_err(|error| self.broken(&error))?;
        self.unparsed.store(0, Ordering::Relaxed);
        Ok(part)
    }

    async fn piece(&self, part: &mut Field<'static>) -> Result<Option<Bytes>, ApiError> {
        let piece = part.chunk().await.map_err(|error| self.broken(&error))?;
        self.unparsed.store(0, Ordering::Relaxed);
        Ok(piece)
    }

    /// The picture in a part, or why it is refused.
    async fn collect(&self, mut part: Field<'static>) -> Result<Result<Bytes, ApiError>, ApiError> {
        let http = &self.app.settings.http;
        let mut bytes = BytesMut::new();
        while let Some(piece) = self.piece(&mut part).await? {
            if bytes.len() + piece.len() > http.max_body() {
                drop(bytes);
                self.skip(part).await?;
                let most = http.max_body.display().si();
                return Ok(Err(ApiError::too_large(format!(
                    "the picture is larger than the {most} allowed (--max-body)"
                ))));
            }
            bytes.extend_from_slice(&piece);
        }
        if bytes.is_empty() {
            return Ok(Err(ApiError::bad_request("the part with the picture is empty")));
        }
        Ok(Ok(bytes.freeze()))
    }

    async fn skip(&self, mut part: Field<'static>) -> Result<(), ApiError> {
        while self.piece(&mut part).await?.is_some() {}
        Ok(())
    }

    /// What is wrong with the form.
    fn broken(&self, error: &multer::Error) -> ApiError {
        let multer::Error::StreamReadFailed(cause) = error else {
            return ApiError::bad_request(format!("the form is malformed: {error}"));
        };
        if cause.is::<LengthLimitError>() {
            let http = &self.app.settings.http;
            return ApiError::too_large(format!(
                "the form is larger than {} pictures of {} are (--max-pictures, --max-body)",
                http.max_pictures,
                http.max_body.display().si()
            ));
        }
        match cause.downcast_ref::<HeadTooLarge>() {
            Some(error) => ApiError::bad_request(format!("the form is malformed: {error}")),
            None => ApiError::bad_request(format!("the body broke off: {cause}")),
        }
    }
}

/// More pictures than a batch may have.
pub(super) fn too_many(most: usize) -> ApiError {
    ApiError::too_large(format!("the batch has more than the {most} pictures allowed (--max-pictures)"))
}
