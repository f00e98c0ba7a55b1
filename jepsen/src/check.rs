//! What must be true of a history and of the world it ends in. One promise a file.

pub mod durable;
pub mod money;
pub mod revoke;
