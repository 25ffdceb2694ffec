//! The placement solver: what must hold for any input, what must hold when something
//! happens to a cluster, how far from the best it is, and named cases.
//!
//! On failure proptest prints the smallest case and its seed.

mod cases;
mod cluster;
mod events;
mod first;
mod hard;
mod optimum;
mod random;
