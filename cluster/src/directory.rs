//! Who exists, who may call and what is configured.
