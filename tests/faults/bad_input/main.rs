//! What no client of ours would send: broken ids, broken messages, garbage, connections
//! that stop in the middle or never begin. Each gets a clear error, memory stays bounded,
//! and the service goes on for everybody else.

mod bytes_on_ports;
mod connections;
mod messages;
mod peers;
mod raw;
mod well;
