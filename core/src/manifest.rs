//! The manifest of a model: what it is, what it reads, how its outputs are decoded, where
//! it comes from and what was measured. It is JSON, embedded in the ONNX file under
//! [`METADATA_KEY`] and lying beside it as [`MANIFEST_FILE`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::decode::AgePoint;
use crate::detection::{Decoder, STRIDES};
use crate::geometry::Template;
use crate::task::{AgeGroup, Task};

/// Name of the network's file in the folder of a model's version.
pub const MODEL_FILE: &str = "model.onnx";

/// Name of the manifest beside it.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Key of the manifest in the ONNX file's `metadata_props`.
pub const METADATA_KEY: &str = "facewise.manifest";

/// Version of the manifest's own format.
pub const SCHEMA: u32 = 1;

/// A detector's input is a multiple of its coarsest cells.
const LARGEST_STRIDE: u32 = STRIDES[STRIDES.len() - 1];

/// Everything that a server must know to use a network, and people want to know about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format, [`SCHEMA`].
    pub schema: u32,
    /// Name of the model: lower-case letters, digits, `-`, `_` and `.`; its folder has the same.
    pub name: String,
    /// Version of the model; its folder has the same.
    pub version: String,
    /// What kind of network it is.
    pub kind: Kind,
    /// One sentence for people.
    #[serde(default)]
    pub description: String,
    /// The tensor that the network reads.
    pub input: Input,
    /// The distributions that it answers; a detector has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<Head>,
    /// How a detector's tensors are read; only for detectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<Decoder>,
    /// A detector's tensors in the order of [`Decoder::outputs`], where the network names them otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
    /// Where the weights come from.
    #[serde(default)]
    pub provenance: Provenance,
    /// What was measured with this file.
    #[serde(default)]
    pub metrics: Vec<Measurement>,
}

/// What a network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A crop of one face in, distributions over its attributes out.
    Attributes,
    /// A whole picture in, the faces in it out.
    Detector,
    /// An embedding of one face in, as another network makes it, distributions over its attributes out.
    Embeddings,
}

impl Kind {
    /// The word for it in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attributes => "attributes",
            Self::Detector => "detector",
            Self::Embeddings => "embeddings",
        }
    }
}

/// The input tensor.
///
/// Of pictures it is float32 `[batch, 3, size, size]`: planes in the order of `colour` of `(value / 255 − mean) / sd`. Of embeddings it
/// is float32 `[batch, features]`, and nothing but `name` and `features` is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Input {
    /// Name of the tensor.
    pub name: String,
    /// Numbers of an embedding; what follows is of pictures only, and means nothing then.
    pub features: Option<u32>,
    /// Side of the square in pixels; of a detector that takes several, the usual one.
    pub size: u32,
    /// Order of the colour planes.
    pub colour: Colour,
    /// Mean per plane, in shares of full intensity.
    pub mean: [f32; 3],
    /// Standard deviation per plane, in shares of full intensity.
    pub sd: [f32; 3],
    /// Where eyes and mouth lie on the square; only for attributes. A detector's square lies around the whole picture
    /// ([`Similarity::around`](crate::geometry::Similarity::around)).
    pub template: Option<Template>,
}

/// An input as JSON has it: with `features`, or with what is of pictures.
#[derive(Serialize, Deserialize)]
#[serde(rename = "Input", deny_unknown_fields)]
struct Fields {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    features: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    colour: Option<Colour>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mean: Option<[f32; 3]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sd: Option<[f32; 3]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    template: Option<Template>,
}

impl TryFrom<Fields> for Input {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        match fields {
            Fields { name, features, size: None, colour: None, mean: None, sd: None, template: None }
                if features.is_some() =>
            {
                Ok(Self { name, features, size: 0, colour: Colour::Rgb, mean: [0.0; 3], sd: [1.0; 3], template: None })
            }
            Fields { features: Some(_), .. } => {
                Err("field `input.features`: an input with it has `name` besides, and nothing else".into())
            }
            Fields { name, features: None, size, colour, mean, sd, template } => {
                let missing = |field| format!("missing field `{field}`");
                Ok(Self {
                    name,
                    features: None,
                    size: size.ok_or_else(|| missing("size"))?,
                    colour: colour.ok_or_else(|| missing("colour"))?,
                    mean: mean.ok_or_else(|| missing("mean"))?,
                    sd: sd.ok_or_else(|| missing("sd"))?,
                    template,
                })
            }
        }
    }
}

impl From<Input> for Fields {
    fn from(Input { name, features, size, colour, mean, sd, template }: Input) -> Self {
        match features {
            Some(_) => Self { name, features, size: None, colour: None, mean: None, sd: None, template: None },
            None => Self {
                name,
                features,
                size: Some(size),
                colour: Some(colour),
                mean: Some(mean),
                sd: Some(sd),
                template,
            },
        }
    }
}

/// Order of the colour planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red, as `OpenCV` has them; only for detectors.
    Bgr,
}

/// One answer of the network, a float32 tensor `[batch, classes]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The question it answers.
    pub task: Task,
    /// Name of the tensor.
    pub output: String,
    /// What its numbers are.
    #[serde(default)]
    pub values: Values,
    /// Labels in tensor order; empty for ages in years, and [`AgeGroup::NAMES`] for a network of embeddings that knows ages
    /// as groups only.
    #[serde(default)]
    pub labels: Vec<String>,
    /// How years are read from the posterior; only for ages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<AgePoint>,
    /// Name of a second tensor `[batch, classes]` of a network that answers each embedding several times with random dropout (Gal &
    /// Ghahramani 2016): the share of the answers that each class was the most probable in. Only for embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub votes: Option<String>,
}

impl Head {
    /// Number of classes: the length of a row of its tensor.
    pub fn classes(&self) -> usize {
        if self.has_age_groups() { AgeGroup::NAMES.len() } else { self.task.classes() }
    }

    /// Whether it answers the age as one of eight groups, and no years.
    pub fn has_age_groups(&self) -> bool {
        self.task == Task::Age && !self.labels.is_empty()
    }
}

/// What the numbers of an output are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    /// Probabilities that sum to 1.
    #[default]
    Probabilities,
    /// Logits: a softmax makes them probabilities.
    Logits,
}

/// Where the weights come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provenance {
    /// Commit of the training code.
    pub commit: String,
    /// Names of the sets trained on.
    pub data: Vec<String>,
    /// Seed of the run.
    pub seed: u64,
    /// Name of the training configuration.
    pub recipe: String,
    /// Passes over the training data.
    pub epochs: u32,
    /// Trainable parameters.
    pub parameters: u64,
    /// Multiply-adds for one face.
    pub multiply_adds: u64,
}

/// Figures measured with this file on one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// Name of the set.
    pub data: String,
    /// Filter that chose the rows, as in `split=test`.
    #[serde(rename = "where")]
    pub filter: String,
    /// What the network was shown: crops by the manifest's `keypoints`, by the `detector`'s, or the centred `square`; of a detector, each
    /// `photograph` or a `mosaic` of several.
    pub crop: String,
    /// Labelled rows scored.
    pub n: u64,
    /// Figures by name, as in `age.mae`.
    pub values: BTreeMap<String, f64>,
}

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the right shape.
    #[error("not a manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// A field holds what it must not.
    #[error("field `{field}`: {reason}")]
    Field {
        /// The field's path.
        field: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

impl Manifest {
    /// Reads and validates a manifest.
    ///
    /// # Errors
    /// When it is not JSON, a field is missing, unknown or of the wrong type, or a value is not allowed.
    pub fn from_json(json: &str) -> Result<Self, ManifestError> {
        let manifest: Self = serde_json::from_str(json)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// The manifest as indented JSON with a final newline, the same bytes for the same manifest.
    ///
    /// # Panics
    /// Never: the type holds nothing that JSON cannot.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("plain data with string keys");
        json.push('\n');
        json
    }

    /// The head that answers a task.
    pub fn head(&self, task: Task) -> Option<&Head> {
        self.heads.iter().find(|head| head.task == task)
    }

    fn validate(&self) -> Result<(), ManifestError> {
        if self.schema != SCHEMA {
            return wrong("schema", format!("{} is not supported, this build reads {SCHEMA}", self.schema));
        }
        for (field, word) in [("name", &self.name), ("version", &self.version)] {
            if !is_name(word) {
                return wrong(
                    field,
                    format!(
                        "'{word}' is not a name: 1 to 64 of a-z, 0-9, '-', '_' and '.', starting with a letter or digit"
                    ),
                );
            }
        }
        if self.input.name.is_empty() {
            return wrong("input.name", "is empty".into());
        }
        match self.kind {
            Kind::Attributes => self.validate_pixels().and_then(|()| self.validate_attributes()),
            Kind::Detector => self.validate_pixels().and_then(|()| self.validate_detector()),
            Kind::Embeddings => self.validate_embeddings(),
        }
    }

    fn validate_pixels(&self) -> Result<(), ManifestError> {
        if self.input.features.is_some() {
            return wrong("input.features", "are for embeddings only".into());
        }
        if !(8..=2048).contains(&self.input.size) {
            return wrong("input.size", format!("{} is not between 8 and 2048 pixels", self.input.size));
        }
        if !self.input.mean.iter().all(|mean| mean.is_finite()) {
            return wrong("input.mean", "is not finite".into());
        }
        if !self.input.sd.iter().all(|sd| sd.is_normal() && *sd > 0.0) {
            return wrong("input.sd", "must be positive".into());
        }
        Ok(())
    }

    fn validate_embeddings(&self) -> Result<(), ManifestError> {
        let Some(features) = self.input.features else {
            return wrong("input.features", "is missing: embeddings need it".into());
        };
        if !(1..=65_536).contains(&features) {
            return wrong("input.features", format!("{features} is not between 1 and 65536 numbers"));
        }
        self.validate_heads()
    }

    fn validate_detector(&self) -> Result<(), ManifestError> {
        let Some(decoder) = self.decoder else {
            return wrong("decoder", "is missing: a detector needs one".into());
        };
        if !self.input.size.is_multiple_of(LARGEST_STRIDE) {
            return wrong("input.size", format!("{} is no multiple of {LARGEST_STRIDE}", self.input.size));
        }
        if self.input.template.is_some() {
            return wrong("input.template", "is for attributes only".into());
        }
        if !self.heads.is_empty() {
            return wrong("heads", "are for attributes only".into());
        }
        let tensors = decoder.outputs(self.input.size).len();
        if !self.outputs.is_empty() && self.outputs.len() != tensors {
            return wrong("outputs", format!("names {} tensors, the decoder reads {tensors}", self.outputs.len()));
        }
        Ok(())
    }

    fn validate_attributes(&self) -> Result<(), ManifestError> {
        let Some(Template { right_eye, left_eye, mouth }) = self.input.template else {
            return wrong("input.template", "is missing: attributes need one".into());
        };
        if ![right_eye, left_eye, mouth].iter().all(|p| p.x.is_finite() && p.y.is_finite()) || right_eye == left_eye {
            return wrong("input.template", "the eyes must be two finite points".into());
        }
        if self.input.colour != Colour::Rgb {
            return wrong("input.colour", "must be rgb for attributes".into());
        }
        self.validate_heads()
    }

    fn validate_heads(&self) -> Result<(), ManifestError> {
        if self.decoder.is_some() {
            return wrong("decoder", "is for detectors only".into());
        }
        if !self.outputs.is_empty() {
            return wrong("outputs", "are for detectors only: others name theirs in `heads`".into());
        }
        if self.heads.is_empty() {
            return wrong("heads", "is empty".into());
        }
        for (index, head) in self.heads.iter().enumerate() {
            let field = |name: &str| format!("heads[{index}].{name}");
            if self.heads[..index].iter().any(|other| other.task == head.task) {
                return wrong(&field("task"), format!("'{}' has two heads", head.task));
            }
            if head.output.is_empty() || self.heads[..index].iter().any(|other| other.output == head.output) {
                return wrong(&field("output"), format!("'{}' is empty or used twice", head.output));
            }
            let as_groups = self.kind == Kind::Embeddings && head.task == Task::Age && head.labels == AgeGroup::NAMES;
            if head.labels != head.task.labels() && !as_groups {
                return wrong(&field("labels"), format!("must be {:?} in this order", head.task.labels()));
            }
            if head.point.is_some() && (head.task != Task::Age || as_groups) {
                return wrong(&field("point"), "is for ages in years only".into());
            }
            if head.votes.is_some() && self.kind != Kind::Embeddings {
                return wrong(&field("votes"), "is for embeddings only".into());
            }
            if head.votes.as_deref().is_some_and(|votes| votes.is_empty() || votes == head.output) {
                return wrong(&field("votes"), "is empty, or the name of the head's other tensor".into());
            }
        }
        Ok(())
    }
}

fn wrong<T>(field: &str, reason: String) -> Result<T, ManifestError> {
    Err(ManifestError::Field { field: field.to_owned(), reason })
}

/// Whether a word can name a model or a version, and so a folder.
pub fn is_name(word: &str) -> bool {
    let mut bytes = word.bytes();
    word.len() <= 64
        && bytes.next().is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit())
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"{
        "schema": 1, "name": "face-attributes", "version": "1", "kind": "attributes",
        "input": {"name": "pixels", "size": 64, "colour": "rgb", "mean": [0.5, 0.5, 0.5], "sd": [0.5, 0.5, 0.5],
                  "template": {"right_eye": [0.3, 0.37], "left_eye": [0.7, 0.37], "mouth": [0.5, 0.77]}},
        "heads": [{"task": "age", "output": "age", "point": "median"},
                  {"task": "smile", "output": "smile", "labels": ["neutral", "smiling"]}]
    }"#;

    #[test]
    fn json_round_trips() {
        let manifest = Manifest::from_json(MINIMAL).expect("valid");
        assert_eq!(Manifest::from_json(&manifest.to_json()).expect("still valid"), manifest);
        assert_eq!(manifest.head(Task::Smile).expect("has it").output, "smile");
        assert!(manifest.head(Task::Emotion).is_none());
    }

    const DETECTOR: &str = r#"{
        "schema": 1, "name": "face-detector", "version": "1", "kind": "detector",
        "input": {"name": "pixels", "size": 320, "colour": "bgr", "mean": [0, 0, 0], "sd": [1, 1, 1]},
        "decoder": "scrfd"
    }"#;

    #[test]
    fn a_detector_has_a_decoder_instead_of_heads() {
        let manifest = Manifest::from_json(DETECTOR).expect("valid");
        assert_eq!((manifest.kind, manifest.decoder), (Kind::Detector, Some(Decoder::Scrfd)));
        assert_eq!(Manifest::from_json(&manifest.to_json()).expect("still valid"), manifest);
        for (from, to, message) in [
            (r#""decoder": "scrfd""#, r#""outputs": []"#, "field `decoder`: is missing"),
            (r#""decoder": "scrfd""#, r#""decoder": "ssd""#, "unknown variant `ssd`"),
            (r#""size": 320"#, r#""size": 300"#, "field `input.size`: 300 is no multiple of 32"),
            (
                r#""decoder": "scrfd""#,
                r#""decoder": "scrfd", "outputs": ["448"]"#,
                "names 1 tensors, the decoder reads 9",
            ),
            (
                r#""decoder": "scrfd""#,
                r#""decoder": "scrfd", "heads": [{"task": "age", "output": "age"}]"#,
                "field `heads`",
            ),
            (r#""kind": "detector""#, r#""kind": "attributes""#, "field `input.template`: is missing"),
        ] {
            let json = DETECTOR.replacen(from, to, 1);
            assert_ne!(json, DETECTOR, "the case changes the manifest");
            let error = Manifest::from_json(&json).expect_err(to).to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    const EMBEDDINGS: &str = r#"{
        "schema": 1, "name": "resmlp", "version": "1", "kind": "embeddings",
        "input": {"name": "embedding", "features": 512},
        "heads": [{"task": "age", "output": "age", "values": "logits",
                   "labels": ["0-2", "4-6", "8-12", "15-20", "25-32", "38-43", "48-53", "60-100"]},
                  {"task": "gender", "output": "gender", "labels": ["female", "male"]}]
    }"#;

    #[test]
    fn embeddings_have_features_instead_of_pixels() {
        let manifest = Manifest::from_json(EMBEDDINGS).expect("valid");
        assert_eq!((manifest.kind, manifest.input.features), (Kind::Embeddings, Some(512)));
        assert_eq!(Manifest::from_json(&manifest.to_json()).expect("still valid"), manifest);
        assert!(!manifest.to_json().contains("colour"), "{}", manifest.to_json());
        let classes: Vec<usize> = manifest.heads.iter().map(Head::classes).collect();
        assert_eq!(classes, [8, 2]);
        let years = EMBEDDINGS.replace(
            r#""labels": ["0-2", "4-6", "8-12", "15-20", "25-32", "38-43", "48-53", "60-100"]"#,
            r#""point": "mean""#,
        );
        assert_eq!(Manifest::from_json(&years).expect("valid").heads[0].classes(), 101);
        for (from, to, message) in [
            (r#", "features": 512"#, "", "missing field `size`"),
            (r#""features": 512"#, r#""features": 0"#, "field `input.features`: 0 is not between"),
            (r#""features": 512"#, r#""features": 512, "size": 64"#, "and nothing else"),
            (r#""features": 512"#, r#""features": 512, "width": 64"#, "unknown field `width`"),
            (r#""kind": "embeddings""#, r#""kind": "attributes""#, "field `input.features`: are for embeddings only"),
            (r#""0-2", "#, "", "field `heads[0].labels`"),
            (r#""values": "logits""#, r#""point": "mean""#, "field `heads[0].point`"),
            (r#""values": "logits""#, r#""votes": "age""#, "field `heads[0].votes`: is empty, or the name"),
            (r#""kind": "embeddings""#, r#""kind": "embeddings", "decoder": "yunet""#, "field `decoder`"),
        ] {
            let json = EMBEDDINGS.replacen(from, to, 1);
            assert_ne!(json, EMBEDDINGS, "the case changes the manifest");
            let error = Manifest::from_json(&json).expect_err(to).to_string();
            assert!(error.contains(message), "{error}");
        }
        let groups = MINIMAL.replacen(
            r#""point": "median""#,
            r#""labels": ["0-2", "4-6", "8-12", "15-20", "25-32", "38-43", "48-53", "60-100"]"#,
            1,
        );
        let error = Manifest::from_json(&groups).expect_err("pictures know years").to_string();
        assert!(error.contains("field `heads[0].labels`"), "{error}");
    }

    #[test]
    fn each_wrong_field_is_named() {
        for (from, to, message) in [
            (r#""schema": 1"#, r#""schema": 2"#, "field `schema`"),
            (r#""name": "face-attributes""#, r#""name": "../etc""#, "field `name`"),
            (r#""point": "median""#, r#""votes": "v""#, "field `heads[0].votes`: is for embeddings only"),
            (r#""name": "face-attributes""#, r#""name": "Big""#, "field `name`"),
            (r#""version": "1""#, r#""version": """#, "field `version`"),
            (r#""kind": "attributes""#, r#""kind": "poetry""#, "unknown variant `poetry`"),
            (r#""size": 64"#, r#""size": 0"#, "field `input.size`"),
            (r#""sd": [0.5, 0.5, 0.5]"#, r#""sd": [0.5, 0.0, 0.5]"#, "field `input.sd`"),
            (r#""left_eye": [0.7, 0.37]"#, r#""left_eye": [0.3, 0.37]"#, "field `input.template`"),
            (r#""task": "smile""#, r#""task": "age""#, "field `heads[1].task`"),
            (r#""output": "smile""#, r#""output": "age""#, "field `heads[1].output`"),
            (r#"["neutral", "smiling"]"#, r#"["smiling", "neutral"]"#, "field `heads[1].labels`"),
            (r#""colour": "rgb""#, r#""colour": "rgb", "color": 1"#, "unknown field `color`"),
            (r#""colour": "rgb""#, r#""colour": "bgr""#, "field `input.colour`"),
            (r#""kind": "attributes""#, r#""kind": "attributes", "decoder": "yunet""#, "field `decoder`"),
        ] {
            let json = MINIMAL.replacen(from, to, 1);
            assert_ne!(json, MINIMAL, "the case changes the manifest");
            let error = Manifest::from_json(&json).expect_err(to).to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
