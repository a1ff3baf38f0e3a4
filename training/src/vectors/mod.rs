//! Networks on vectors: on embeddings of faces, which another network made, and on attributes in a table.
//!
//! Files become [`rows`]; a [`split`] says which of them teach, which choose the best epoch and which only measure; a network learns
//! one [`target`] from them ([`train`]), is scored ([`score`]) and written for serving ([`model`]). [`study`] repeats that over seeds,
//! folds and variants of the network and compares them, [`search`] over hyper-parameters.

pub mod adience;
pub mod celeba;
pub mod config;
pub mod embeddings;
pub mod extract;
pub mod model;
pub mod rows;
pub mod score;
pub mod search;
pub mod source;
pub mod split;
pub mod study;
pub mod target;
pub mod train;
pub mod variant;
