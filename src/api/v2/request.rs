//! A request for inference: JSON, or JSON with tensors in binary after it, or one tensor and nothing else.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::compression::Coding;
use super::face_pipeline;
use super::tensor::Datatype;
use crate::api::error::ApiError;
use crate::api::upload;
use crate::engine::Tensor;

/// How many bytes of the unpacked body are JSON; what follows is binary. Without it, all are.
pub(super) const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// What a request may ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of an unpacked body.
    pub(super) body: usize,
    /// Pictures.
    pub(super) pictures: usize,
    /// Rows of a tensor.
    pub(super) rows: usize,
}

/// What the model reads.
#[derive(Clone, Debug)]
pub(super) enum Reads {
    /// Pictures, each a file.
    Pictures,
    /// Rows of a tensor.
    Rows(Tensor),
}

/// A request, understood.
#[derive(Debug)]
pub(super) struct Call {
    /// To be repeated in the answer.
    pub(super) id: Option<String>,
    pub(super) input: Input,
    /// The outputs asked for; `None` is all of them.
    pub(super) outputs: Option<Vec<Wanted>>,
    /// Whether outputs are wanted in binary that do not say otherwise.
    pub(super) binary: bool,
    /// After that time the answer is worth nothing.
    pub(super) timeout: Option<Duration>,
    /// Parameters that are the model's own.
    pub(super) parameters: Map<String, Value>,
}

/// What the model is asked about.
#[derive(Debug, PartialEq)]
pub(super) enum Input {
    /// Files of pictures.
    Pictures(Vec<Bytes>),
    /// So many rows of a tensor.
    Rows(usize, Vec<f32>),
}

/// An output that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    /// In binary, or in JSON; `None` is what the request says for all.
    pub(super) binary: Option<bool>,
    /// The most probable so many classes instead of the numbers.
    pub(super) classes: Option<usize>,
}

/// A request for inference.
#[derive(Deserialize, ToSchema)]
#[schema(as = InferenceRequest, example = json!({
    "id": "42",
    "parameters": {"detect": "false"},
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1],
        "data": ["data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"]}],
    "outputs": [{"name": "image_index"}, {"name": "box"}, {"name": "age"}]
}))]
pub(super) struct InferenceRequest<'a> {
    /// Repeated in the answer.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    id: Option<String>,
    /// `binary_data_output` (all outputs in binary), `timeout` (in microseconds; after it the answer is worth nothing), and for
    /// `face-pipeline` the query of `/v1/predict`.
    #[serde(default)]
    #[schema(value_type = Object)]
    parameters: Parameters,
    /// The tensors that the model reads.
    #[serde(borrow)]
    inputs: Vec<InputTensor<'a>>,
    /// The tensors that are to be answered; without it, all.
    #[serde(default, deserialize_with = "present")]
    #[schema(nullable = false)]
    outputs: Option<Vec<OutputWish>>,
}

#[derive(Default, Deserialize)]
struct Parameters {
    #[serde(default)]
    binary_data_output: bool,
    /// In microseconds.
    timeout: Option<u64>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// A tensor that the model reads.
#[derive(Deserialize, ToSchema)]
#[schema(as = InferenceInput)]
struct InputTensor<'a> {
    /// Its name.
    name: Cow<'a, str>,
    /// Its dimensions, the batch first.
    shape: Vec<u64>,
    /// Type of its elements.
    datatype: Cow<'a, str>,
    /// `binary_data_size`: the elements are so many bytes after the JSON.
    #[serde(default)]
    #[schema(value_type = Object)]
    parameters: InputParameters,
    /// The elements, row-major, flat or nested; files in base64, bare or as `data:` URLs.
    #[serde(borrow, default)]
    #[schema(value_type = Vec<Value>)]
    data: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct InputParameters {
    binary_data_size: Option<u64>,
    shared_memory_region: Option<Value>,
}

/// A tensor that is to be answered.
#[derive(Deserialize, ToSchema)]
#[schema(as = InferenceOutputWish)]
struct OutputWish {
    /// Its name.
    name: String,
    /// `binary_data`: in binary or not; `classification`: the most probable so many classes, each as `value:index:label`, instead of the
    /// numbers.
    #[serde(default)]
    #[schema(value_type = Object)]
    parameters: OutputParameters,
}

#[derive(Default, Deserialize)]
struct OutputParameters {
    binary_data: Option<bool>,
    classification: Option<usize>,
    shared_memory_region: Option<Value>,
}

/// A field that may be left away, and is no `null`.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Reads a body.
///
/// # Errors
/// When it is packed in an unknown way or broken, too large, or not what the model reads.
pub(super) fn read(headers: &HeaderMap, body: &Bytes, reads: &Reads, limits: Limits) -> Result<Call, ApiError> {
    let unpacked = match Coding::of(headers)? {
        Some(coding) => coding.unpacked(body, limits.body)?,
        None => body.clone(),
    };
    match header_length(headers)? {
        Some(0) => reads.raw(unpacked),
        Some(length) if length > unpacked.len() => Err(ApiError::bad_request(format!(
            "the header '{HEADER_LENGTH}' says {length}, but the body has {} bytes",
            unpacked.len()
        ))),
        Some(length) => parse(&unpacked[..length], &unpacked.slice(length..), reads, limits),
        None => parse(&unpacked, &Bytes::new(), reads, limits),
    }
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|value| value.parse().ok());
    length.map(Some).ok_or_else(|| ApiError::bad_request(format!("the header '{HEADER_LENGTH}' is no number of bytes")))
}

fn parse(json: &[u8], binary: &Bytes, reads: &Reads, limits: Limits) -> Result<Call, ApiError> {
    let request: InferenceRequest = serde_json::from_slice(json)
        .map_err(|error| ApiError::bad_request(format!("the body is no inference request: {error}")))?;
    let InferenceRequest { id, parameters, inputs, outputs } = request;
    let Parameters { binary_data_output, timeout, others } = parameters;
    let input = match inputs.as_slice() {
        [input] if input.name == reads.name() => reads.input(input, binary, limits)?,
        _ => {
            let found: Vec<String> = inputs.iter().take(10).map(|input| format!("'{}'", input.name)).collect();
            return Err(ApiError::bad_request(format!(
                "the model reads one input, '{}', but the request has [{}]",
                reads.name(),
                found.join(", ")
            )));
        }
    };
    let outputs = outputs.map(|wishes| wishes.into_iter().map(Wanted::new).collect()).transpose()?;
    Ok(Call {
        id,
        input,
        outputs,
        binary: binary_data_output,
        timeout: timeout.map(Duration::from_micros),
        parameters: others.into_iter().filter(|(name, _)| !is_for_schedulers(name)).collect(),
    })
}

/// Whether a parameter is one of those by which Triton's clients speak to its schedulers, and which mean nothing here.
fn is_for_schedulers(name: &str) -> bool {
    matches!(name, "sequence_id" | "sequence_start" | "sequence_end" | "priority" | "headers")
        || name.starts_with("triton_")
}

fn no_shared_memory() -> ApiError {
    ApiError::bad_request("shared memory is not supported: send and ask for the tensors themselves")
}

impl Wanted {
    fn new(OutputWish { name, parameters }: OutputWish) -> Result<Self, ApiError> {
        let OutputParameters { binary_data, classification, shared_memory_region } = parameters;
        if shared_memory_region.is_some() {
            return Err(no_shared_memory());
        }
        Ok(Self { name, binary: binary_data, classes: classification })
    }
}

impl Reads {
    fn name(&self) -> &str {
        match self {
            Self::Pictures => face_pipeline::INPUT,
            Self::Rows(tensor) => &tensor.name,
        }
    }

    const fn datatype(&self) -> Datatype {
        match self {
            Self::Pictures => Datatype::Bytes,
            Self::Rows(_) => Datatype::Fp32,
        }
    }

    /// What the shape of the input must be, for people.
    fn shape(&self) -> String {
        match self {
            Self::Pictures => "[n] or [n, 1]".to_owned(),
            Self::Rows(tensor) => {
                let sides: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
                format!("[n, {}]", sides.join(", "))
            }
        }
    }

    /// A body that is the one row of the only input. All outputs are wanted in binary then.
    fn raw(&self, body: Bytes) -> Result<Call, ApiError> {
        let input = match self {
            Self::Pictures => Input::Pictures(vec![body]),
            Self::Rows(tensor) => Input::Rows(1, floats(&body, tensor.row_len()).map_err(|error| self.about(&error))?),
        };
        Ok(Call { id: None, input, outputs: None, binary: true, timeout: None, parameters: Map::new() })
    }

    fn about(&self, error: &str) -> ApiError {
        ApiError::bad_request(format!("input '{}': {error}", self.name()))
    }

    fn input(&self, input: &InputTensor<'_>, binary: &Bytes, limits: Limits) -> Result<Input, ApiError> {
        let InputTensor { shape, datatype, parameters, data, .. } = input;
        if parameters.shared_memory_region.is_some() {
            return Err(no_shared_memory());
        }
        let rows = match (self, shape.as_slice()) {
            (Self::Pictures, [rows] | [rows, 1]) => Some(*rows),
            (Self::Rows(tensor), [rows, row @ ..]) => {
                let fits = row.iter().copied().eq(tensor.shape.iter().map(|side| *side as u64));
                fits.then_some(*rows)
            }
            _ => None,
        };
        let rows = match rows {
            Some(rows) if *datatype == self.datatype().name() => rows,
            _ => {
                let (expected, shape_wanted) = (self.datatype().name(), self.shape());
                return Err(self.about(&format!("it must be {expected} {shape_wanted}, not {datatype} {shape:?}")));
            }
        };
        let (most, what, setting) = match self {
            Self::Pictures => (limits.pictures, "pictures", "--max-pictures, --max-requests"),
            Self::Rows(_) => (limits.rows, "rows", "--max-queue"),
        };
        let rows = usize::try_from(rows).ok().filter(|rows| *rows <= most).ok_or_else(|| {
            ApiError::too_large(format!("{rows} {what} are more than the {most} that a request may have ({setting})"))
        })?;
        let elements = match (parameters.binary_data_size, data) {
            (Some(size), None) if size == binary.len() as u64 => match self {
                Self::Pictures => byte_strings(binary, rows).map(Input::Pictures),
                Self::Rows(tensor) => floats(binary, rows * tensor.row_len()).map(|floats| Input::Rows(rows, floats)),
            },
            (Some(size), None) => {
                Err(format!("'binary_data_size' is {size}, but {} bytes follow the JSON", binary.len()))
            }
            (None, Some(_)) if !binary.is_empty() => {
                Err(format!("{} bytes follow the JSON, and no input has a 'binary_data_size'", binary.len()))
            }
            (None, Some(data)) => match self {
                Self::Pictures => return pictures(data, rows).map_err(|error| error.about("input 'image'")),
                Self::Rows(tensor) => numbers(data, rows * tensor.row_len()).map(|numbers| Input::Rows(rows, numbers)),
            },
            (Some(_), Some(_)) => Err("it has both 'data' and a 'binary_data_size'".to_owned()),
            (None, None) => Err("it has neither 'data' nor a 'binary_data_size'".to_owned()),
        };
        elements.map_err(|error| self.about(&error))
    }
}

/// Little-endian floats, exactly so many.
fn floats(bytes: &[u8], count: usize) -> Result<Vec<f32>, String> {
    let (floats, rest) = bytes.as_chunks();
    if floats.len() != count || !rest.is_empty() {
        return Err(format!("it has {} bytes instead of {}", bytes.len(), 4 * count));
    }
    Ok(floats.iter().copied().map(f32::from_le_bytes).collect())
}

/// Byte strings with their lengths before them, exactly so many. They share the memory of the body.
fn byte_strings(bytes: &Bytes, count: usize) -> Result<Vec<Bytes>, String> {
    let mut strings = Vec::with_capacity(count);
    let mut rest = bytes.clone();
    while strings.len() < count {
        let Some(length) = rest.first_chunk().copied().map(u32::from_le_bytes) else {
            return Err(format!("it ends after {} of {count} elements", strings.len()));
        };
        let rest_len = rest.len() - 4;
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= rest_len)
            .ok_or_else(|| format!("element {} is {length} bytes long, and {rest_len} are left", strings.len()))?;
        let mut string = rest.split_off(4);
        rest = string.split_off(length);
        strings.push(string);
    }
    if rest.is_empty() { Ok(strings) } else { Err(format!("{} bytes are left after {count} elements", rest.len())) }
}

/// Numbers in JSON, exactly so many.
fn numbers(json: &RawValue, count: usize) -> Result<Vec<f32>, String> {
    list(json, count, |number| match number {
        Element::Number(number) => Ok(number),
        Element::Text(_) => Err("a number is expected, not text"),
    })
}

/// Files in base64, exactly so many.
fn pictures(json: &RawValue, count: usize) -> Result<Input, ApiError> {
    let texts = list(json, count, |element| match element {
        Element::Text(text) => Ok(text),
        Element::Number(_) => Err("text is expected, not a number"),
    });
    let decoded = |(index, text): (usize, Cow<str>)| {
        upload::from_base64(&text).map_err(|error| error.about(format_args!("element {index}")))
    };
    texts
        .map_err(ApiError::bad_request)?
        .into_iter()
        .enumerate()
        .map(decoded)
        .collect::<Result<_, _>>()
        .map(Input::Pictures)
}

/// An element of a tensor in JSON.
enum Element<'de> {
    Number(f32),
    Text(Cow<'de, str>),
}

/// Flattens a list, nested or not, of exactly so many elements.
fn list<'de, T>(
    json: &'de RawValue,
    count: usize,
    element: impl Fn(Element<'de>) -> Result<T, &'static str>,
) -> Result<Vec<T>, String> {
    // An element takes two bytes at least, with its comma.
    let mut into = Vec::with_capacity(count.min(json.get().len() / 2));
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    let flatten = Flatten { into: &mut into, most: count, element: &element, inside: false };
    flatten.deserialize(&mut deserializer).map_err(|error| format!("'data': {error}"))?;
    if into.len() == count { Ok(into) } else { Err(format!("it has {} elements instead of {count}", into.len())) }
}

/// Reads nested lists into one, without keeping anything else.
struct Flatten<'v, T, F> {
    into: &'v mut Vec<T>,
    most: usize,
    element: &'v F,
    /// Whether this is inside a list.
    inside: bool,
}

impl<'de, T, F: Fn(Element<'de>) -> Result<T, &'static str>> Flatten<'_, T, F> {
    fn push<E: serde::de::Error>(self, element: Element<'de>) -> Result<(), E> {
        if !self.inside {
            return Err(E::custom("it is no list"));
        }
        if self.into.len() == self.most {
            return Err(E::custom(format_args!("it has more than {} elements", self.most)));
        }
        self.into.push((self.element)(element).map_err(E::custom)?);
        Ok(())
    }
}

impl<'de, T, F: Fn(Element<'de>) -> Result<T, &'static str>> DeserializeSeed<'de> for Flatten<'_, T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T, F: Fn(Element<'de>) -> Result<T, &'static str>> Visitor<'de> for Flatten<'_, T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of elements")
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<(), E> {
        self.push(Element::Number(number as f32))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.push(Element::Number(number as f32))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<(), E> {
        self.push(Element::Number(number as f32))
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<(), E> {
        self.push(Element::Text(text.into()))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.push(Element::Text(text.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { into, most, element, .. } = self;
        while list.next_element_seed(Flatten { into, most, element, inside: true })?.is_some() {}
        Ok(())
    }
}
