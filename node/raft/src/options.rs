//! Options of a group and what they must satisfy.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy, StepDownPolicy};

/// Entries in one append request; the bytes are bounded by the log's reads.
const APPEND_ENTRIES_MAX: u64 = 300;
/// Entries in one write to the log.
const LOG_WRITE_ENTRIES_MAX: u64 = 4096;
/// Requests that wait for a group's core; above it callers wait.
const REQUESTS_WAITING_MAX: u64 = 1024;
/// Events that wait for a group's core.
const NOTIFICATIONS_WAITING_MAX: u64 = 1024;
/// Commands that wait for a group's state machine.
const MACHINE_COMMANDS_WAITING_MAX: u64 = 256;
/// Delays between tries to reach a peer that does not answer.
const UNREACHABLE_BACKOFF: &str = "50ms 100ms 200ms ..400ms";
/// How long a leader that was removed from its group still serves.
const REMOVED_LEADER_SERVES_MS: u64 = 150;
/// Keeps openraft from purging by itself: only [`crate::Group::flush_and_purge`] purges.
const AUTOMATIC_PURGE_KEEPS_ENTRIES: u64 = u64::MAX / 4;

/// Largest timeout that makes sense for an election.
const ELECTION_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// How a group keeps time. The same on all replicas of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOptions {
    /// Time between heartbeats of an idle leader. Default 150 ms.
    pub heartbeat: Duration,
    /// A follower that hears nothing for longer than the leader's lease (`election_timeout_max`)
    /// plus a random time from `election_timeout_min` to `election_timeout_max` calls an
    /// election. At least 3 heartbeats. Default 500 ms.
    pub election_timeout_min: Duration,
    /// See `election_timeout_min`, above which it is. A wide range makes failover slow, since it
    /// counts twice. Default 600 ms.
    pub election_timeout_max: Duration,
    /// How long a whole snapshot may take to be sent and installed. Default 1 hour.
    pub snapshot_timeout: Duration,
    /// How long a linearizable read waits for a majority and for being applied. Default 2 s.
    pub read_timeout: Duration,
}

impl Default for GroupOptions {
    fn default() -> GroupOptions {
        GroupOptions {
            heartbeat: Duration::from_millis(150),
            election_timeout_min: Duration::from_millis(500),
            election_timeout_max: Duration::from_millis(600),
            snapshot_timeout: Duration::from_secs(3600),
            read_timeout: Duration::from_secs(2),
        }
    }
}

/// An option that does not fit the others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("raft option {option} is {value:?}, which must be {rule}")]
pub struct InvalidOptions {
    /// The name of the field in [`GroupOptions`].
    pub option: &'static str,
    /// Its value.
    pub value: Duration,
    /// What it must satisfy, in words.
    pub rule: String,
}

impl GroupOptions {
    /// Checks every option against its limits and the others.
    ///
    /// # Errors
    /// [`InvalidOptions`] for the first one that does not fit.
    pub fn validate(&self) -> Result<(), InvalidOptions> {
        let check = |option, value: Duration, holds: bool, rule: &str| {
            if holds {
                Ok(())
            } else {
                Err(InvalidOptions {
                    option,
                    value,
                    rule: rule.to_owned(),
                })
            }
        };
        let (heartbeat, min, max) = (
            self.heartbeat,
            self.election_timeout_min,
            self.election_timeout_max,
        );
        check(
            "heartbeat",
            heartbeat,
            heartbeat >= Duration::from_millis(10),
            "at least 10ms",
        )?;
        check(
            "election_timeout_min",
            min,
            min >= heartbeat * 3,
            "at least three times heartbeat",
        )?;
        check(
            "election_timeout_max",
            max,
            max > min,
            "above election_timeout_min",
        )?;
        check(
            "election_timeout_max",
            max,
            max <= ELECTION_TIMEOUT_MAX,
            "at most 60s",
        )?;
        check(
            "snapshot_timeout",
            self.snapshot_timeout,
            self.snapshot_timeout >= max,
            "at least election_timeout_max",
        )?;
        check(
            "read_timeout",
            self.read_timeout,
            self.read_timeout >= max,
            "at least election_timeout_max",
        )
    }

    /// A heartbeat is not needed when the log was acknowledged this recently. openraft wants
    /// `heartbeat + this + a tick (heartbeat × 13/64) < election_timeout_min`.
    fn heartbeat_suppressed_for(&self) -> Duration {
        let tick = self.heartbeat * 13 / 64;
        let room = self
            .election_timeout_min
            .saturating_sub(self.heartbeat + tick + Duration::from_millis(1));
        (self.heartbeat * 2 / 3).min(room)
    }

    pub(crate) fn config(&self) -> Result<Config, openraft::ConfigError> {
        Config {
            cluster_name: "carillon".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_timeout_min),
            election_timeout_max: millis(self.election_timeout_max),
            heartbeat_min_interval: Some(millis(self.heartbeat_suppressed_for())),
            install_snapshot_timeout: millis(self.snapshot_timeout),
            max_payload_entries: APPEND_ENTRIES_MAX,
            max_append_entries: Some(LOG_WRITE_ENTRIES_MAX),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: AUTOMATIC_PURGE_KEEPS_ENTRIES,
            purge_batch_size: 1,
            api_channel_size: Some(REQUESTS_WAITING_MAX),
            notification_channel_size: Some(NOTIFICATIONS_WAITING_MAX),
            state_machine_channel_size: Some(MACHINE_COMMANDS_WAITING_MAX),
            removed_leader_step_down: StepDownPolicy::After(REMOVED_LEADER_SERVES_MS),
            enable_pre_vote: Some(true),
            // A restarted leader would trust its old vote and lease.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            backoff: UNREACHABLE_BACKOFF.to_owned(),
            ..Config::default()
        }
        .validate()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        let options = GroupOptions::default();
        options.validate().unwrap();
        let config = options.config().unwrap();
        assert_eq!(
            (config.heartbeat_interval, config.heartbeat_min_interval),
            (150, Some(100))
        );
    }

    #[test]
    fn bad_relations_are_refused() {
        let good = GroupOptions::default();
        let ms = Duration::from_millis;
        let bad = [
            (
                "heartbeat",
                GroupOptions {
                    heartbeat: ms(1),
                    ..good.clone()
                },
            ),
            (
                "election_timeout_min",
                GroupOptions {
                    election_timeout_min: ms(449),
                    ..good.clone()
                },
            ),
            (
                "election_timeout_max",
                GroupOptions {
                    election_timeout_max: ms(500),
                    ..good.clone()
                },
            ),
            (
                "election_timeout_max",
                GroupOptions {
                    election_timeout_max: ms(60_001),
                    ..good.clone()
                },
            ),
            (
                "snapshot_timeout",
                GroupOptions {
                    snapshot_timeout: ms(1),
                    ..good.clone()
                },
            ),
            (
                "read_timeout",
                GroupOptions {
                    read_timeout: ms(599),
                    ..good.clone()
                },
            ),
        ];
        for (option, options) in bad {
            assert_eq!(options.validate().unwrap_err().option, option);
        }
    }

    #[test]
    fn valid_options_make_a_valid_config() {
        for heartbeat in [10u64, 33, 100, 150, 999, 5000] {
            let options = GroupOptions {
                heartbeat: Duration::from_millis(heartbeat),
                election_timeout_min: Duration::from_millis(heartbeat * 3),
                election_timeout_max: Duration::from_millis(heartbeat * 3 + 1),
                read_timeout: Duration::from_secs(60),
                ..GroupOptions::default()
            };
            options.validate().unwrap();
            options.config().unwrap();
        }
    }
}
