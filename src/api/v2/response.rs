//! The answer to a request for inference: JSON, with the tensors that are wanted in binary after it.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, VARY};
use axum::http::{HeaderValue, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::compression::Coding;
use super::request::{HEADER_LENGTH, Wanted};
use super::tensor::{Datatype, Elements, Output, TensorMetadata};
use crate::api::error::ApiError;

/// An answer to inference.
#[derive(Serialize, ToSchema)]
pub(super) struct InferenceResponse {
    /// That of the request, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "42")]
    pub(super) id: Option<String>,
    /// The model.
    #[schema(example = "face-pipeline")]
    pub(super) model_name: String,
    /// Its version.
    #[schema(example = "1")]
    pub(super) model_version: String,
    /// Of `face-pipeline`: `model` and `detector`, the networks that answered, each as `name/version`.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object, required = false)]
    pub(super) parameters: Map<String, Value>,
    /// The tensors, in the order asked for.
    pub(super) outputs: Vec<OutputTensor>,
}

/// A tensor that the model answered.
#[derive(Serialize, ToSchema)]
#[schema(as = InferenceOutput)]
pub(super) struct OutputTensor {
    /// Its name.
    #[schema(value_type = String, example = "age")]
    name: Cow<'static, str>,
    /// Type of its elements.
    datatype: Datatype,
    /// Its dimensions.
    #[schema(example = json!([1]))]
    shape: Vec<usize>,
    /// `binary_data_size`: the elements are so many bytes after the JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object, required = false)]
    parameters: Option<OutputParameters>,
    /// The elements, flat and row-major; a number that is not finite is `null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Value>, required = false, example = json!([31.4]))]
    data: Option<Elements>,
    /// The elements where they are wanted in binary.
    #[serde(skip)]
    binary: Option<Elements>,
}

#[derive(Serialize)]
struct OutputParameters {
    binary_data_size: usize,
}

/// The outputs that a model is asked for: each that is wanted, with its place among all that there are.
///
/// # Errors
/// When there is none of that name, it is asked for twice, or no number has classes.
pub(super) fn choose(wanted: Option<Vec<Wanted>>, known: &[TensorMetadata]) -> Result<Vec<(usize, Wanted)>, ApiError> {
    let Some(wanted) = wanted else {
        let all = known.iter().map(|tensor| Wanted { name: tensor.name.to_string(), binary: None, classes: None });
        return Ok(all.enumerate().collect());
    };
    let mut chosen: Vec<(usize, Wanted)> = Vec::new();
    for wanted in wanted {
        let Some(place) = known.iter().position(|tensor| tensor.name == wanted.name) else {
            let names: Vec<String> = known.iter().map(|tensor| format!("'{}'", tensor.name)).collect();
            return Err(ApiError::bad_request(format!(
                "there is no output '{}'; there are {}",
                wanted.name,
                names.join(", ")
            )));
        };
        if chosen.iter().any(|(other, _)| *other == place) {
            return Err(ApiError::bad_request(format!("the output '{}' is asked for twice", wanted.name)));
        }
        if wanted.classes.is_some() && known[place].datatype != Datatype::Fp32 {
            return Err(ApiError::bad_request(format!("the output '{}' has no classes", wanted.name)));
        }
        chosen.push((place, wanted));
    }
    Ok(chosen)
}

impl OutputTensor {
    /// A tensor as it is wanted.
    pub(super) fn new(output: Output, wanted: &Wanted, binary: bool) -> Self {
        let Output { name, shape, elements, .. } = match wanted.classes {
            Some(classes) => classified(output, classes),
            None => output,
        };
        let datatype = elements.datatype();
        if wanted.binary.unwrap_or(binary) {
            let parameters = Some(OutputParameters { binary_data_size: elements.byte_len() });
            Self { name, datatype, shape, parameters, data: None, binary: Some(elements) }
        } else {
            Self { name, datatype, shape, parameters: None, data: Some(elements), binary: None }
        }
    }
}

/// The highest so many numbers of each row, as `value:index` or `value:index:label`, the highest first.
fn classified(output: Output, classes: usize) -> Output {
    let Elements::Fp32(numbers) = &output.elements else { return output };
    let rows = output.shape.first().copied().unwrap_or_default();
    let length = numbers.len().checked_div(rows).unwrap_or_default();
    let most = classes.min(length);
    let mut words = Vec::with_capacity(rows * most);
    for row in numbers.chunks_exact(length.max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        words.extend(order.into_iter().take(most).map(|index| match output.labels.get(index) {
            Some(label) => Cow::from(format!("{}:{index}:{label}", row[index])),
            None => Cow::from(format!("{}:{index}", row[index])),
        }));
    }
    Output { shape: vec![rows, most], elements: Elements::Text(words), ..output }
}

impl InferenceResponse {
    /// The whole answer, packed if the client reads that.
    ///
    /// # Errors
    /// Never: the answer holds nothing that JSON cannot.
    pub(super) fn write(mut self, accepted: Option<Coding>) -> Result<Response<Body>, ApiError> {
        let binary: Vec<Elements> = self.outputs.iter_mut().filter_map(|output| output.binary.take()).collect();
        let mut body = serde_json::to_vec(&self).map_err(|error| ApiError::internal(&error))?;
        let header_length = body.len();
        body.reserve(binary.iter().map(Elements::byte_len).sum());
        for elements in &binary {
            elements.write_to(&mut body);
        }

        let packed = accepted.and_then(|coding| coding.packed(&body).map(|packed| (coding, packed)));
        let (coding, body) = match packed {
            Some((coding, packed)) => (Some(coding), packed),
            None => (None, body),
        };
        let mut response = Response::new(Body::from(body));
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        if let Some(coding) = coding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        }
        if binary.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(HEADER_LENGTH, HeaderValue::from(header_length));
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::api::error::Code;

    fn output() -> Output {
        Output {
            name: "smile".into(),
            shape: vec![2, 2],
            elements: Elements::Fp32(vec![0.25, 0.75, 0.5, 0.5]),
            labels: &["neutral", "smiling"],
        }
    }

    #[test]
    fn classes_are_the_highest_first_and_ties_in_their_order() {
        let words = |classes, labels| {
            let Output { shape, elements, .. } = classified(Output { labels, ..output() }, classes);
            let Elements::Text(words) = elements else { panic!("text") };
            (shape, words.join(" "))
        };
        let labels: &[&str] = &["neutral", "smiling"];
        assert_eq!(words(1, labels), (vec![2, 1], "0.75:1:smiling 0.5:0:neutral".into()));
        assert_eq!(words(9, &[]), (vec![2, 2], "0.75:1 0.25:0 0.5:0 0.5:1".into()));
        assert_eq!(words(0, labels), (vec![2, 0], String::new()));
        let none = Output { shape: vec![0, 2], elements: Elements::Fp32(Vec::new()), ..output() };
        assert_eq!(classified(none, 1).shape, [0, 0]);
    }

    fn wish(name: &str, classes: Option<usize>) -> Wanted {
        Wanted { name: name.into(), binary: None, classes }
    }

    #[test]
    fn outputs_come_in_the_order_asked_for_and_unknown_ones_are_refused() {
        let known = [TensorMetadata::new("a", Datatype::Fp32, &[2]), TensorMetadata::new("b", Datatype::Bytes, &[])];
        let places = |wanted: Option<Vec<Wanted>>| -> Result<Vec<usize>, ApiError> {
            Ok(choose(wanted, &known)?.into_iter().map(|(place, _)| place).collect())
        };
        assert_eq!(places(None).unwrap(), [0, 1]);
        assert_eq!(places(Some(vec![wish("b", None), wish("a", Some(1))])).unwrap(), [1, 0]);
        assert_eq!(places(Some(Vec::new())).unwrap(), [0; 0]);
        for (wanted, message) in [
            (vec![wish("c", None)], "no output 'c'; there are 'a', 'b'"),
            (vec![wish("a", None), wish("a", None)], "twice"),
            (vec![wish("b", Some(1))], "no classes"),
        ] {
            let error = places(Some(wanted)).unwrap_err();
            assert!(error.code() == Code::BadRequest && error.detail().contains(message), "{error:?}");
        }
    }
}
