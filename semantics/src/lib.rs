//! When two requests mean the same. Pure: bytes and values in, a decision out.

pub mod cacheable;
pub mod fingerprint;
pub mod normal_form;
