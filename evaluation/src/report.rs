//! The report of an evaluation, under the names of the HTTP contract.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::groups::GroupedMetrics;
use crate::metrics::TaskMetrics;
use crate::worst::WorstErrors;

/// What was measured, on what, with which model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The set and the rows chosen from it.
    pub dataset: DatasetSummary,
    /// The model that answered.
    pub model: ModelSummary,
    /// Where the face in each picture came from.
    pub detect: Geometry,
    /// When the evaluation ended: RFC 3339, UTC.
    pub created: String,
    /// The figures.
    pub tasks: TaskMetrics,
    /// The figures of groups, by the column that makes them.
    #[serde(default)]
    pub groups: BTreeMap<String, GroupedMetrics>,
    /// The rows that were answered worst.
    #[serde(default, skip_serializing_if = "WorstErrors::is_empty")]
    pub worst: WorstErrors,
    /// The speed.
    pub throughput: Throughput,
}

/// Where the face in a picture came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Geometry {
    /// The manifest's keypoints; rows without them go through [`Self::Crop`].
    Manifest,
    /// The best face that the detector finds; where it finds none or there is no detector, the centred square.
    Crop,
    /// The centred square of the picture.
    #[serde(rename = "false")]
    Square,
}

/// The set and the rows chosen from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetSummary {
    /// Name of the set.
    pub name: String,
    /// Rows chosen, skipped ones included.
    pub rows: u64,
    /// The filter that chose them, where there was one.
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Only the first so many of those, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Rows that count nowhere because their picture is unreadable.
    pub skipped: Vec<Skipped>,
}

/// A row that counts nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its picture.
    pub path: String,
    /// What is wrong with the picture.
    pub reason: String,
}

/// The model that answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of its file, in hexadecimal.
    pub sha256: String,
}

/// The speed of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// Pictures per second of wall time, reading and decoding included.
    pub images_per_second: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let report = Report {
            dataset: DatasetSummary {
                name: "utkface".into(),
                rows: 2334,
                filter: Some("split=test".into()),
                limit: None,
                skipped: vec![Skipped { path: "x.jpg".into(), reason: "the picture is empty".into() }],
            },
            model: ModelSummary { name: "face-attributes".into(), version: "1".into(), sha256: "00".into() },
            detect: Geometry::Manifest,
            created: "2026-11-20T10:00:00Z".into(),
            tasks: TaskMetrics::default(),
            groups: BTreeMap::new(),
            worst: WorstErrors::default(),
            throughput: Throughput { images_per_second: 310.0 },
        };
        let json = serde_json::to_value(&report).expect("a report is JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "dataset": {
                    "name": "utkface", "rows": 2334, "where": "split=test",
                    "skipped": [{"path": "x.jpg", "reason": "the picture is empty"}],
                },
                "model": {"name": "face-attributes", "version": "1", "sha256": "00"},
                "detect": "manifest", "created": "2026-11-20T10:00:00Z", "tasks": {}, "groups": {},
                "throughput": {"images_per_second": 310.0},
            })
        );
        assert_eq!(serde_json::from_value::<Report>(json).expect("and back"), report);
        assert_eq!(serde_json::to_value(Geometry::Square).expect("a word"), "false");
    }
}
