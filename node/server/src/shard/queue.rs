//! Commands that wait to be proposed in one shard, and who is waiting for them.
//!
//! Owner of the state: the replica's mutex around it. A command is taken only for the
//! [`Lead`] in which its sender believes this replica, and is proposed only in that lead: so
//! a command that comes back undone is never overtaken by a later one.
//!
//! While the shard is frozen the queue is held: what waits stays, in its order, and only what a
//! frozen shard does as well goes through.
//!
//! Invariant: the newest lead that is known never decreases; no lead that has ended is led
//! again; an item is answered exactly once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use carillon_core::command::{passes_frozen, pushed_bytes, stands_alone};
use carillon_raft::Link;

use super::lead::Lead;
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
    /// Proposed only in this lead.
    pub lead: Lead,
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// This replica does not lead in that lead.
    NotLeader,
    /// Too many are waiting.
    Full,
}

/// How far a replica is with leading.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leading {
    /// The newest lead that this replica knows, its own or another's.
    pub lead: Lead,
    /// Whether it is its own.
    pub leads: bool,
    /// Whether it also has applied everything committed before.
    pub ready: bool,
}

/// The queue of one replica.
#[derive(Default)]
pub struct Queue {
    waiting: VecDeque<Proposal>,
    leading: Leading,
    /// The shard is frozen.
    held: bool,
    /// Of those that wait, how many a frozen shard does as well.
    passing: usize,
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
        if let Err(problem) = self.admits(proposal.lead, 1, waiting_max) {
            return Err((proposal, problem));
        }
        self.passing += usize::from(passes_frozen(&proposal.command));
        self.waiting.push_back(proposal);
        Ok(())
    }

    /// Whether `count` proposals for `lead` would be taken.
    pub fn admits(&self, lead: Lead, count: usize, waiting_max: usize) -> Result<(), NotTaken> {
        let leading = self.leading;
        // A lead that is newer than what this replica has seen: it will hear of it soon.
        let fits = match lead {
            Lead::ANY => leading.leads,
            _ => lead > leading.lead || (lead == leading.lead && leading.leads),
        };
        if !fits {
            return Err(NotTaken::NotLeader);
        }
        if self.waiting.len() + count > waiting_max {
            return Err(NotTaken::Full);
        }
        Ok(())
    }

    /// Notes who leads as Raft says, `now` being the first lead of that; returns what can not
    /// be proposed any more.
    pub fn lead(&mut self, now: Lead, leads: bool, ready: bool) -> Vec<Proposal> {
        let known = self.leading;
        let lead = match (known.leads, leads) {
            // Nothing new, but it may have begun anew meanwhile.
            (true, true) if now.is_of_the_leader_of(known.lead) => known.lead,
            // What was given back when it ended is not to be overtaken now that it leads again.
            (false, true) if now.is_of_the_leader_of(known.lead) => known.lead.next(),
            _ => now.max(known.lead),
        };
        self.leading = Leading { lead, leads, ready };
        self.give_back_stale()
    }

    /// Something of a lead is given back: nothing more of it is taken, and what waits is given
    /// back too. Nothing happens when the lead is over.
    pub fn end_lead(&mut self, lead: Lead) -> Vec<Proposal> {
        if self.leading.lead != lead || !self.leading.leads {
            return Vec::new();
        }
        self.leading.lead = lead.next();
        self.give_back_stale()
    }

    fn give_back_stale(&mut self) -> Vec<Proposal> {
        let leading = self.leading;
        let stale = |proposal: &Proposal| {
            if leading.leads {
                proposal.lead != Lead::ANY && proposal.lead < leading.lead
            } else {
                proposal.lead <= leading.lead
            }
        };
        if !self.waiting.iter().any(stale) {
            return Vec::new();
        }
        let (gone, kept) = self.waiting.drain(..).partition::<Vec<_>, _>(stale);
        self.waiting = kept.into();
        self.count_passing();
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

    /// Notes whether the shard is frozen.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// True when an entry can be made now.
    pub fn proposable(&self, entries_in_flight_max: usize) -> bool {
        self.leading.ready
            && self.entries_in_flight < entries_in_flight_max
            && self.next().is_some()
    }

    /// Where the first is that can be proposed now.
    fn next(&self) -> Option<usize> {
        let due = |proposal: &Proposal| proposal.lead <= self.leading.lead;
        if !self.held {
            return self.waiting.front().is_some_and(due).then_some(0);
        }
        if self.passing == 0 {
            return None;
        }
        let mut waiting = self.waiting.iter();
        waiting.position(|proposal| due(proposal) && passes_frozen(&proposal.command))
    }

    /// Takes the commands of one entry off the front, within a size. While it is held, those
    /// of the front stay.
    pub fn take(&mut self, bytes_max: usize) -> Vec<Proposal> {
        if self.held {
            let next = self.next().and_then(|index| self.waiting.remove(index));
            self.passing -= usize::from(next.is_some());
            return next.into_iter().collect();
        }
        let (mut bytes, mut count) = (0, 0);
        for proposal in &self.waiting {
            bytes += pushed_bytes(proposal.command.len());
            let alone = stands_alone(&proposal.command);
            // One command that is larger than an entry should be goes alone.
            if proposal.lead > self.leading.lead || (count > 0 && (alone || bytes > bytes_max)) {
                break;
            }
            count += 1;
            if alone {
                break;
            }
        }
        let taken: Vec<Proposal> = self.waiting.drain(..count).collect();
        self.count_passing();
        taken
    }

    /// After some that may pass were taken out.
    fn count_passing(&mut self) {
        if self.passing > 0 {
            let waiting = self.waiting.iter();
            let passing = waiting.filter(|proposal| passes_frozen(&proposal.command));
            self.passing = passing.count();
        }
    }

    /// Everything that waits: the replica stops.
    pub fn drain(&mut self) -> Vec<Proposal> {
        self.leading = Leading {
            lead: Lead::NEVER,
            leads: false,
            ready: false,
        };
        self.passing = 0;
        self.waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_core::ids::ReplicaId;

    const ME: ReplicaId = ReplicaId(7);

    /// The first lead of this replica in a term; any in term 0.
    fn lead(term: u64) -> Lead {
        match term {
            0 => Lead::ANY,
            term => Lead::first(term, Some(ME)),
        }
    }

    fn proposal(term: u64, bytes: usize) -> Proposal {
        Proposal {
            command: Bytes::from(vec![0; bytes]),
            origin: Origin::Nobody,
            lead: lead(term),
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
            queue.lead(lead(known), leads, leads);
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
        queue.lead(lead(3), true, true);
        for term in [3, 0, 4] {
            assert!(queue.push(proposal(term, 1), 10).is_ok());
        }
        let gone = queue.lead(lead(4), true, true);
        assert_eq!(
            gone.iter()
                .map(|proposal| proposal.lead.term())
                .collect::<Vec<_>>(),
            [3]
        );
        let gone = queue.lead(lead(5), false, false);
        assert_eq!(
            gone.iter()
                .map(|proposal| proposal.lead.term())
                .collect::<Vec<_>>(),
            [0, 4]
        );
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_lead_that_gave_something_back_is_over_also_within_its_term() {
        let mut queue = Queue::default();
        queue.lead(lead(3), true, true);
        let first = queue.leading().lead;
        assert!(queue.push(proposal(3, 1), 10).is_ok());
        assert!(queue.push(proposal(3, 1), 10).is_ok());
        assert_eq!(queue.take(1).len(), 1);
        // The entry comes back: so does what waits, and what is on its way is not taken.
        assert_eq!(queue.end_lead(first).len(), 1);
        assert!(queue.push(proposal(3, 1), 10).is_err());
        assert!(queue.end_lead(first).is_empty(), "it is over already");
        let again = Proposal {
            lead: queue.leading().lead,
            ..proposal(3, 1)
        };
        assert!(queue.push(again, 10).is_ok());
        assert!(queue.proposable(1));
        // News of the same leadership change nothing.
        assert!(queue.lead(lead(3), true, true).is_empty());
        assert_eq!((queue.leading().lead, queue.len()), (first.next(), 1));
        // It leads no more, and then again, in the same term.
        assert_eq!(queue.lead(Lead::first(3, None), false, false).len(), 1);
        assert!(queue.lead(lead(3), true, true).is_empty());
        let ended = Proposal {
            lead: first.next(),
            ..proposal(3, 1)
        };
        assert!(queue.push(ended, 10).is_err());
        queue.lead(lead(4), true, true);
        assert_eq!(queue.leading().lead, lead(4));
    }

    #[test]
    fn what_is_meant_for_a_lead_to_come_waits_for_it() {
        let mut queue = Queue::default();
        // It stands for the term; others know that it has won before it does.
        queue.lead(Lead::first(3, None), false, false);
        assert!(queue.push(proposal(3, 1), 10).is_ok());
        assert!(!queue.proposable(1));
        assert!(queue.lead(lead(3), true, true).is_empty());
        assert!(queue.proposable(1));
        // Another one with a larger id may win the same term.
        let later = Lead::first(3, Some(ReplicaId(8)));
        assert_eq!(queue.lead(later, false, false).len(), 1);
        assert!(queue.push(proposal(3, 1), 10).is_err());
    }

    #[test]
    fn entries_are_bounded_in_bytes_but_never_empty() {
        let mut queue = Queue::default();
        queue.lead(lead(1), true, true);
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
        queue.lead(lead(1), true, true);
        let checksum = || Proposal {
            command: carillon_core::Command::Checksum { nonce: u64::MAX }.encoded(),
            origin: Origin::Nobody,
            lead: lead(1),
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
    fn a_held_queue_lets_only_what_thaws_through_and_keeps_the_order() {
        let mut queue = Queue::default();
        queue.lead(lead(1), true, true);
        let thaw = |term| Proposal {
            command: carillon_core::Command::Thaw {
                merge_id: carillon_core::merging::MergeId(5),
            }
            .encoded(),
            ..proposal(term, 1)
        };
        queue.hold(true);
        for bytes in [10, 11] {
            assert!(queue.push(proposal(1, bytes), 10).is_ok());
        }
        assert!(!queue.proposable(1));
        assert!(queue.take(1_000).is_empty());
        assert!(queue.push(thaw(1), 10).is_ok());
        assert!(queue.push(proposal(1, 12), 10).is_ok());
        assert!(queue.push(thaw(0), 10).is_ok());
        for _ in 0..2 {
            assert!(queue.proposable(1));
            let taken = queue.take(1_000);
            assert_eq!(taken.len(), 1);
            assert!(passes_frozen(&taken[0].command));
        }
        assert!(!queue.proposable(1));
        // One whose lead is over is not let through.
        assert!(queue.push(thaw(1), 10).is_ok());
        assert_eq!(queue.end_lead(lead(1)).len(), 4);
        assert!(!queue.proposable(1));
        let lead = queue.leading().lead;
        for bytes in [10, 11, 12] {
            let again = Proposal {
                lead,
                ..proposal(1, bytes)
            };
            assert!(queue.push(again, 3).is_ok(), "it takes as much as ever");
        }
        assert!(matches!(
            queue.push(proposal(0, 1), 3),
            Err((_, NotTaken::Full))
        ));
        assert!(!queue.proposable(1));
        queue.hold(false);
        assert!(queue.proposable(1));
        let sizes: Vec<usize> = queue
            .take(1_000)
            .iter()
            .map(|one| one.command.len())
            .collect();
        assert_eq!(sizes, [10, 11, 12]);
    }

    #[test]
    fn a_new_leader_of_a_frozen_shard_holds_at_once() {
        let mut queue = Queue::default();
        queue.hold(true);
        assert!(queue.push(proposal(3, 1), 10).is_ok());
        assert!(queue.lead(lead(3), true, true).is_empty());
        assert!(!queue.proposable(1));
        // What it holds goes back when another one leads.
        assert_eq!(queue.lead(Lead::first(4, None), false, false).len(), 1);
        queue.lead(lead(5), true, true);
        assert!(queue.push(proposal(5, 1), 10).is_ok());
        queue.hold(false);
        assert!(queue.proposable(1));
    }

    #[test]
    fn refuses_over_the_limit() {
        let mut queue = Queue::default();
        queue.lead(lead(1), true, true);
        assert!(queue.push(proposal(1, 1), 1).is_ok());
        let (_, problem) = queue.push(proposal(1, 1), 1).expect_err("full");
        assert_eq!(problem, NotTaken::Full);
    }
}
