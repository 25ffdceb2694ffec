//! Commands that wait to be proposed in one shard, and who is waiting for them.
//!
//! Owner of the state: the replica's mutex around it. A command is taken only for the
//! term in which its sender believes that this replica leads, and is proposed only in
//! that term: so a command that comes back undone can never overtake a later one.
//!
//! Invariant: `terms` of the items never decrease from front to back by more than what
//! leadership changes reject; an item is answered exactly once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use carillon_core::command::{pushed_bytes, stands_alone};
use carillon_raft::Link;

use super::probe::Probe;
use crate::fanout::DeliverBatch;

/// Who gets the answer to a command.
pub enum Origin {
    /// An operation of this node's router.
    Lane {
        /// Its number in the shard's lane.
        sequence: u64,
    },
    /// An operation of another node's router.
    Relay {
        /// The link to answer on.
        link: Arc<Link>,
        /// Its number there.
        correlation: u64,
    },
    /// One of a batch of deliveries.
    Deliver {
        /// The batch, answered when all of it is applied.
        batch: Arc<DeliverBatch>,
        /// The encoded `v1.Message`, for those who are online.
        message: Bytes,
    },
    /// A measurement.
    Probe {
        /// Which.
        probe: Arc<Probe>,
        /// When it was proposed.
        proposed: Instant,
    },
    /// Nobody.
    Nobody,
}

/// A command that waits.
pub struct Proposal {
    /// The encoded core command.
    pub command: Bytes,
    /// Who gets the answer.
    pub origin: Origin,
    /// Proposed only in this term; 0: in any.
    pub term: u64,
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// This replica does not lead in that term.
    NotLeader,
    /// Too many are waiting.
    Full,
}

/// How far a replica is with leading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leading {
    /// The newest term that this replica knows.
    pub term: u64,
    /// Whether it leads in it.
    pub leads: bool,
    /// Whether it also has applied everything committed before.
    pub ready: bool,
}

/// The queue of one replica.
#[derive(Default)]
pub struct Queue {
    waiting: VecDeque<Proposal>,
    leading: Leading,
    /// Entries proposed and not applied.
    pub entries_in_flight: usize,
}

impl Queue {
    /// Takes a proposal, or says why not.
    pub fn push(
        &mut self,
        proposal: Proposal,
        waiting_max: usize,
    ) -> Result<(), (Proposal, NotTaken)> {
        if let Err(problem) = self.admits(proposal.term, 1, waiting_max) {
            return Err((proposal, problem));
        }
        self.waiting.push_back(proposal);
        Ok(())
    }

    /// Whether `count` proposals for `term` would be taken.
    pub fn admits(&self, term: u64, count: usize, waiting_max: usize) -> Result<(), NotTaken> {
        let leading = self.leading;
        // A term that is newer than what this replica has seen: it will hear of it soon.
        let fits = match term {
            0 => leading.leads,
            _ => term > leading.term || (term == leading.term && leading.leads),
        };
        if !fits {
            return Err(NotTaken::NotLeader);
        }
        if self.waiting.len() + count > waiting_max {
            return Err(NotTaken::Full);
        }
        Ok(())
    }

    /// Notes a change of leadership; returns what can not be proposed any more.
    pub fn lead(&mut self, leading: Leading) -> Vec<Proposal> {
        self.leading = leading;
        let stale = |proposal: &Proposal| {
            if leading.leads {
                proposal.term != 0 && proposal.term < leading.term
            } else {
                proposal.term <= leading.term
            }
        };
        if !self.waiting.iter().any(stale) {
            return Vec::new();
        }
        let (gone, kept) = self.waiting.drain(..).partition::<Vec<_>, _>(stale);
        self.waiting = kept.into();
        gone
    }

    /// How far this replica is with leading.
    pub fn leading(&self) -> Leading {
        self.leading
    }

    /// Whether this replica leads and has applied everything committed before.
    pub fn is_ready(&self) -> bool {
        self.leading.ready
    }

    /// Commands that wait.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True when an entry can be made now.
    pub fn proposable(&self, entries_in_flight_max: usize) -> bool {
        self.leading.ready
            && self.entries_in_flight < entries_in_flight_max
            && self
                .waiting
                .front()
                .is_some_and(|proposal| proposal.term <= self.leading.term)
    }

    /// Takes the commands of one entry off the front, within a size.
    pub fn take(&mut self, bytes_max: usize) -> Vec<Proposal> {
        let (mut bytes, mut count) = (0, 0);
        for proposal in &self.waiting {
            bytes += pushed_bytes(proposal.command.len());
            let alone = stands_alone(&proposal.command);
            // One command that is larger than an entry should be goes alone.
            if proposal.term > self.leading.term || (count > 0 && (alone || bytes > bytes_max)) {
                break;
            }
            count += 1;
            if alone {
                break;
            }
        }
        self.waiting.drain(..count).collect()
    }

    /// Everything that waits: the replica stops.
    pub fn drain(&mut self) -> Vec<Proposal> {
        self.leading = Leading {
            term: u64::MAX,
            leads: false,
            ready: false,
        };
        self.waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(term: u64, bytes: usize) -> Proposal {
        Proposal {
            command: Bytes::from(vec![0; bytes]),
            origin: Origin::Nobody,
            term,
        }
    }

    fn leading(term: u64, leads: bool) -> Leading {
        Leading {
            term,
            leads,
            ready: leads,
        }
    }

    #[test]
    fn takes_only_for_the_term_it_leads_or_a_newer_one() {
        // (known term, leads, asked term, taken)
        for (known, leads, asked, taken) in [
            (3, true, 3, true),
            (3, true, 2, false),
            (3, true, 4, true),
            (3, true, 0, true),
            (3, false, 3, false),
            (3, false, 4, true),
            (3, false, 0, false),
        ] {
            let mut queue = Queue::default();
            queue.lead(leading(known, leads));
            let result = queue.push(proposal(asked, 1), 10);
            assert_eq!(
                result.is_ok(),
                taken,
                "known {known} leads {leads} asked {asked}"
            );
        }
    }

    #[test]
    fn gives_back_what_a_new_term_makes_stale() {
        let mut queue = Queue::default();
        queue.lead(leading(3, true));
        for term in [3, 0, 4] {
            assert!(queue.push(proposal(term, 1), 10).is_ok());
        }
        let gone = queue.lead(leading(4, true));
        assert_eq!(
            gone.iter()
                .map(|proposal| proposal.term)
                .collect::<Vec<_>>(),
            [3]
        );
        let gone = queue.lead(leading(5, false));
        assert_eq!(
            gone.iter()
                .map(|proposal| proposal.term)
                .collect::<Vec<_>>(),
            [0, 4]
        );
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn entries_are_bounded_in_bytes_but_never_empty() {
        let mut queue = Queue::default();
        queue.lead(leading(1, true));
        for bytes in [100, 10, 10, 10] {
            assert!(queue.push(proposal(1, bytes), 10).is_ok());
        }
        assert_eq!(queue.take(30).len(), 1, "the large one alone");
        assert_eq!(queue.take(30).len(), 2);
        assert_eq!(queue.take(30).len(), 1);
    }

    #[test]
    fn a_checksum_has_an_entry_of_its_own() {
        let mut queue = Queue::default();
        queue.lead(leading(1, true));
        let checksum = || Proposal {
            command: carillon_core::Command::Checksum { nonce: u64::MAX }.encoded(),
            origin: Origin::Nobody,
            term: 1,
        };
        for proposal in [proposal(1, 1), checksum(), checksum(), proposal(1, 1)] {
            assert!(queue.push(proposal, 10).is_ok());
        }
        let mut sizes = Vec::new();
        while queue.len() > 0 {
            sizes.push(queue.take(1_000).len());
        }
        assert_eq!(sizes, [1, 1, 1, 1]);
    }

    #[test]
    fn refuses_over_the_limit() {
        let mut queue = Queue::default();
        queue.lead(leading(1, true));
        assert!(queue.push(proposal(1, 1), 1).is_ok());
        let (_, problem) = queue.push(proposal(1, 1), 1).expect_err("full");
        assert_eq!(problem, NotTaken::Full);
    }
}
