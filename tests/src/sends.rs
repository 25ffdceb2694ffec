//! How sending went for the devices of a load, from what they saw.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use crate::history::{At, DeviceHistory, Event};

/// Of all messages that were acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sends {
    /// How many these are.
    pub acknowledged: usize,
    /// Those that needed a second try.
    pub tried_twice: usize,
    /// Those that needed more.
    pub tried_more: usize,
    /// From the first try to the acknowledgement, the shortest first.
    latencies: Vec<Duration>,
}

impl Sends {
    /// Of these devices, as far as they sent at `from` or later.
    pub fn of(devices: &[DeviceHistory], from: At) -> Self {
        let mut sends = Self::default();
        for device in devices {
            let mut open = HashMap::new();
            for record in &device.records {
                match &record.event {
                    Event::SendStarted {
                        client_message_id, ..
                    } => {
                        let (_, tries) = open.entry(client_message_id).or_insert((record.at, 0));
                        *tries += 1;
                    }
                    Event::SendAcked {
                        client_message_id, ..
                    } => {
                        if let Some((started, tries)) = open.remove(client_message_id)
                            && started >= from
                        {
                            sends.acknowledged(started, record.at, tries);
                        }
                    }
                    _ => {}
                }
            }
        }
        sends.latencies.sort_unstable();
        sends
    }

    fn acknowledged(&mut self, started: At, at: At, tries: u32) {
        self.acknowledged += 1;
        self.tried_twice += usize::from(tries == 2);
        self.tried_more += usize::from(tries > 2);
        let latency = Duration::from_micros(at.0 - started.0);
        self.latencies.push(latency);
    }

    /// The latency that so many of a thousand stay below.
    pub fn per_mille(&self, share: usize) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let index = (self.latencies.len() * share / 1_000).min(last);
        self.latencies.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Display for Sends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sends, {} of them tried twice and {} more often; p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
            self.acknowledged,
            self.tried_twice,
            self.tried_more,
            self.per_mille(500),
            self.per_mille(990),
            self.per_mille(999),
            self.per_mille(1_000),
        )
    }
}
