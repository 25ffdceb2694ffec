//! The rules one by one, with named cases: refusals and limits, members who leave and come
//! back, the window in which sends are recognised, read positions in long inboxes, pages, shards
//! that are split and merged.

mod chat;
mod members;
mod merges;
mod pages;
mod splits;
mod timeline;
mod unread;
