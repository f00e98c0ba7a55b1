//! The process: configuration, composition, what operators see, shutdown.

pub mod admin;
pub mod cli;
pub mod config;
pub mod output;
pub mod reference;
pub mod run;
pub mod signals;
pub mod simulator;
pub mod telemetry;
