//! Encoders: networks that learn many yes-or-no attributes of a face at once, for what they know of faces before their last layer.
//!
//! Attributes come from columns of a set ([`data`]); [`train`] learns them, [`model`] writes what came out for serving, and
//! [`vectors::extract`](crate::vectors::extract) makes embeddings with it.

pub mod config;
pub mod data;
pub mod model;
pub mod train;
