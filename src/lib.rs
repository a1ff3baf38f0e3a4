//! Face attributes over HTTP: the server, and the parts of it that the command line uses too.
//!
//! The way of a picture is [`pipeline`]; the networks run in [`engine`], which the models of [`repository`] are loaded
//! into; [`api`] speaks HTTP about it, and [`server`] starts and stops it all.

pub mod access;
pub mod answer;
pub mod api;
pub mod app;
pub mod compute;
pub mod config;
pub mod cpu;
pub mod engine;
pub mod evaluate;
pub mod jobs;
pub mod line;
pub mod pipeline;
pub mod process;
pub mod repository;
pub mod server;
mod stamp;
pub mod tasks;
pub mod telemetry;
pub mod tune;
