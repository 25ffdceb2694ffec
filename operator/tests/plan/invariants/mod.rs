//! What must hold at every moment, one promise a file.

pub mod convergence;
pub mod data;
pub mod deletion;
pub mod membership;
pub mod quorum;
