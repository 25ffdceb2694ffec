//! Versions: data of earlier releases, and nodes of different versions in one cluster.

mod contents;
mod fixtures;
mod versions;
