//! `POST /v1/predict/embeddings`: faces of which there are embeddings, for models of that kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, Request, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::{Extension, Json};
use facewise_core::npy;
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::error::{ACCESS, ApiError, Code, WORK, responses};
use super::middleware::{Deadline, RequestId};
use super::{body, models};
use crate::answer::Description;
use crate::app::App;

/// Embeddings that are put into the model's queue at a time, which is shared with others.
const TOGETHER: usize = 256;

/// What a client may ask for besides.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Parameters {
    /// The model; it need not be named where only one reads embeddings.
    #[param(example = "resmlp")]
    model: Option<String>,
    /// Tasks to answer, with commas between; without it, all that the model answers.
    #[param(example = "gender")]
    tasks: Option<String>,
    /// Whether the probability of each year of age is answered too.
    #[serde(default)]
    #[param(default = false)]
    distributions: bool,
}

/// Embeddings as JSON.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EmbeddingsJson, example = json!({"embeddings": [[0.012, -0.034, 0.056]]}))]
pub(super) struct Embeddings {
    /// One list of numbers for each face, as many as the model reads.
    #[schema(min_items = 1)]
    embeddings: Vec<Vec<f32>>,
}

/// What is known of each face.
#[derive(Serialize, ToSchema)]
pub(super) struct Descriptions {
    /// The answer's `x-request-id`.
    #[schema(example = "01J9ZQ4T0D5N3W8V7K2M6R1XYB")]
    id: String,
    /// The model that answered.
    #[schema(example = "resmlp")]
    model: String,
    /// Its version.
    #[schema(example = "1")]
    version: String,
    /// One for each embedding, in their order.
    results: Vec<Description>,
}

/// What is answered besides.
struct Errors;

impl IntoResponses for Errors {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        responses(&[&WORK[..], &[Code::NotReady], &ACCESS].concat())
    }
}

/// Age, gender and whatever else a model tells from embeddings of faces.
///
/// The embeddings are what the model was trained on, made by another network and normalised as that one's are. They are sent
/// as JSON, as a `NumPy` file (`.npy` of float32 or float64 in C order), or as 32-bit floats one after the other, the least byte
/// first. A model that knows ages as groups only answers the group with its probability, and no years. One that
/// answers several times with random dropout tells the mean, and how much its answers differ.
#[utoipa::path(
    post, path = "/v1/predict/embeddings", tag = "predictions", security((), ("bearer" = []), ("key" = [])),
    params(
        Parameters,
        ("x-request-timeout-ms" = Option<u64>, Header, minimum = 1, maximum = 86_400_000,
            description = "Milliseconds after which an answer is worth nothing any more: 429 `deadline` then. Never more than the server's own limit.")
    ),
    request_body(
        description = "Some embeddings.",
        content((Embeddings = "application/json"), ("application/octet-stream"), ("application/x-npy"))
    ),
    responses((status = 200, description = "What is known of each face.", body = Descriptions), Errors)
)]
pub(super) async fn predict_embeddings(
    State(app): State<Arc<App>>,
    Extension(RequestId(id)): Extension<RequestId>,
    Extension(Deadline(deadline)): Extension<Deadline>,
    request: Request,
) -> Result<Json<Descriptions>, ApiError> {
    let Ok(_admitted) = app.admission.try_acquire() else { return Err(ApiError::overloaded()) };
    let (head, body) = body::read(request, &app.settings.http).await?;
    let Query(parameters) = Query::<Parameters>::try_from_uri(&head.uri)
        .map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
    let model = models::reading_embeddings(&app.repository.models(), parameters.model.as_deref())?;
    let tasks = models::tasks(parameters.tasks.as_deref(), model.model(), model.tasks())?;
    let packing = Packing::of(&head.headers)?;
    let (features, most) = (model.features(), app.settings.http.max_embeddings);
    let together = TOGETHER.min(app.settings.inference.max_queue) * features;
    let place = app.line.enter(deadline).await?;
    // Megabytes of numbers as text are work, and work is not done on the threads that talk to clients.
    let numbers = app.pipeline.cpu().run(move || packing.unpack(&body, features, most)).await??;
    let mut results = Vec::with_capacity(numbers.len() / features);
    for numbers in numbers.chunks(together) {
        for mut told in model.infer(numbers.to_vec()).await? {
            told.keep(&tasks);
            app.pipeline.count(&told.attributes);
            results.push(Description::new(&told, parameters.distributions));
        }
    }
    place.answered();
    let model = model.model();
    Ok(Json(Descriptions {
        id: id.to_string(),
        model: model.name().to_owned(),
        version: model.version().to_owned(),
        results,
    }))
}

/// How a body holds its embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Json,
    /// Floats, or a `NumPy` file, which tells itself apart.
    Bytes,
    Npy,
}

impl Packing {
    fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Self::Bytes) };
        let value = value.to_str().unwrap_or_default();
        match value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/json" => Ok(Self::Json),
            "application/octet-stream" => Ok(Self::Bytes),
            "application/x-npy" => Ok(Self::Npy),
            other => Err(ApiError::unsupported_media_type(format!(
                "'{other}' is not read here: send application/json with {{\"embeddings\": [[numbers]]}}, a .npy file as \
                 application/x-npy, or float32 numbers as application/octet-stream"
            ))),
        }
    }

    /// The numbers of all embeddings, one after the other: `most` of them at most, each with so many `features`.
    fn unpack(self, body: &[u8], features: usize, most: usize) -> Result<Vec<f32>, ApiError> {
        let numbers = match self {
            Self::Json => from_json(body, features)?,
            Self::Bytes if !body.starts_with(npy::MAGIC) => from_floats(body, features)?,
            Self::Bytes | Self::Npy => from_npy(body, features)?,
        };
        match numbers.len() / features {
            0 => Err(ApiError::bad_request("there is no embedding: send at least one")),
            count if count > most => Err(ApiError::too_large(format!(
                "{count} embeddings are more than the {most} allowed (--max-embeddings)"
            ))),
            _ => match numbers.iter().position(|number| !number.is_finite()) {
                Some(at) => {
                    Err(ApiError::bad_request(format!("a number of the embedding at {} is not finite", at / features)))
                }
                None => Ok(numbers),
            },
        }
    }
}

fn from_json(body: &[u8], features: usize) -> Result<Vec<f32>, ApiError> {
    let Embeddings { embeddings } = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is not {{\"embeddings\": [[numbers]]}}: {error}")))?;
    match embeddings.iter().enumerate().find(|(_, embedding)| embedding.len() != features) {
        Some((index, embedding)) => Err(ApiError::bad_request(format!(
            "the embedding at {index} has {} numbers; the model reads {features}",
            embedding.len()
        ))),
        None => Ok(embeddings.concat()),
    }
}

fn from_floats(body: &[u8], features: usize) -> Result<Vec<f32>, ApiError> {
    if !body.len().is_multiple_of(4 * features) {
        return Err(ApiError::bad_request(format!(
            "{} bytes are no float32 embeddings of {features} numbers, {} bytes each",
            body.len(),
            4 * features
        )));
    }
    Ok(npy::singles(body))
}

fn from_npy(body: &[u8], features: usize) -> Result<Vec<f32>, ApiError> {
    let array = npy::read(body).map_err(|error| ApiError::bad_request(error.to_string()))?;
    match array.shape.as_slice() {
        // One embedding may come without the brackets around it.
        [length] | [_, length] if *length == features => Ok(array.values),
        shape => Err(ApiError::bad_request(format!(
            "the array has the shape {shape:?}; the model reads [count, {features}]"
        ))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn unpack(packing: Packing, body: &[u8]) -> Result<Vec<f32>, (Code, String)> {
        packing.unpack(body, 2, 3).map_err(|error| (error.code(), format!("{error:?}")))
    }

    fn floats(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn npy(shape: &str, numbers: &[f32]) -> Vec<u8> {
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
        let length = (header.len() as u16).to_le_bytes();
        [npy::MAGIC, &[1, 0][..], &length, header.as_bytes(), &floats(numbers)].concat()
    }

    #[test]
    fn embeddings_are_the_same_in_every_form() {
        let numbers = vec![0.5, -1.0, 2.0, 0.25];
        assert_eq!(unpack(Packing::Json, br#"{"embeddings": [[0.5, -1], [2, 0.25]]}"#), Ok(numbers.clone()));
        assert_eq!(unpack(Packing::Bytes, &floats(&numbers)), Ok(numbers.clone()));
        for packing in [Packing::Bytes, Packing::Npy] {
            assert_eq!(unpack(packing, &npy("(2, 2)", &numbers)), Ok(numbers.clone()));
        }
        assert_eq!(unpack(Packing::Npy, &npy("(2,)", &numbers[..2])), Ok(numbers[..2].to_vec()));
    }

    #[test]
    fn what_the_model_cannot_read_is_refused() {
        use Code::{BadRequest, PayloadTooLarge};
        let of = |packing, body: &[u8]| unpack(packing, body).unwrap_err();
        for (body, code, says) in [
            ("{}", BadRequest, "missing field `embeddings`"),
            (r#"{"embeddings": []}"#, BadRequest, "there is no embedding"),
            (r#"{"embeddings": [[]]}"#, BadRequest, "at 0 has 0 numbers; the model reads 2"),
            (r#"{"embeddings": [[1, 2], [1]]}"#, BadRequest, "at 1 has 1 numbers"),
            (r#"{"embeddings": [[1, "2"]]}"#, BadRequest, "invalid type: string"),
            (r#"{"embeddings": [[1, null]]}"#, BadRequest, "invalid type: null"),
            (r#"{"embeddings": [[1, 1e60]]}"#, BadRequest, "number out of range"),
            (r#"{"embeddings": [[1, 2], [1, 2], [1, 2], [1, 2]]}"#, PayloadTooLarge, "--max-embeddings"),
        ] {
            let (found, text) = of(Packing::Json, body.as_bytes());
            assert!(found == code && text.contains(says), "{body}: {text}");
        }
        assert!(of(Packing::Bytes, &[]).1.contains("there is no embedding"));
        assert!(
            of(Packing::Bytes, &[0; 12]).1.contains("12 bytes are no float32 embeddings of 2 numbers, 8 bytes each")
        );
        assert!(of(Packing::Bytes, &floats(&[f32::NAN, 0.0])).1.contains("not finite"));
        assert!(of(Packing::Npy, &npy("(1, 3)", &[0.0; 3])).1.contains("[1, 3]; the model reads [count, 2]"));
        assert!(of(Packing::Npy, &npy("(1, 1, 2)", &[0.0; 2])).1.contains("the shape"));
        // What Python's pickle would make of an object is never looked at.
        assert!(of(Packing::Npy, b"\x80\x04\x95").1.contains("not a .npy file"));
    }
}
