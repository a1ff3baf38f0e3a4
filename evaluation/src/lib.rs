//! Labelled face sets and the figures measured on them: reading a set from a folder or a zip, scoring
//! predictions and found faces against its labels, and the report. The server, the command line and training use the same code.

pub mod archive;
pub mod comparison;
pub mod corrections;
pub mod dataset;
pub mod detection;
pub mod filter;
pub mod groups;
pub mod html;
pub mod manifest;
pub mod metrics;
pub mod predictions;
pub mod report;
pub mod requirement;
pub mod worst;

pub use dataset::{Dataset, DatasetError, Options, ReadError};
pub use filter::Filter;
pub use manifest::{Labels, Row};
