//! Round trips of every message, and decoding of bytes that are no message.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::applied::AppliedRecord;

fn log_id() -> impl Strategy<Value = LogId> {
    (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, node_id, index)| LogId {
        leader_id: LeaderId { term, node_id },
        index,
    })
}

fn vote() -> impl Strategy<Value = Vote> {
    (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(term, node_id, committed)| {
        openraft::Vote {
            leader_id: LeaderId { term, node_id },
            committed,
        }
    })
}

fn membership() -> impl Strategy<Value = Membership> {
    let ids = btree_map(any::<u64>(), any::<u64>(), 1..8);
    (ids, 1..3usize).prop_flat_map(|(nodes, configurations)| {
        let ids: Vec<u64> = nodes.keys().copied().collect();
        let voters = vec(
            btree_set(proptest::sample::select(ids), 1..4),
            configurations,
        );
        voters.prop_map(move |voters: Vec<BTreeSet<u64>>| {
            let nodes: BTreeMap<u64, ReplicaNode> = nodes
                .iter()
                .map(|(id, node)| (*id, ReplicaNode { node: *node }))
                .collect();
            Membership::new(voters, nodes).unwrap()
        })
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let payload = prop_oneof![
        Just(EntryPayload::Blank),
        vec(any::<u8>(), 0..300).prop_map(|bytes| EntryPayload::Normal(Payload(bytes.into()))),
        membership().prop_map(EntryPayload::Membership),
    ];
    (log_id(), payload).prop_map(|(log_id, payload)| Entry { log_id, payload })
}

fn append_request() -> impl Strategy<Value = AppendRequest> {
    (
        vote(),
        proptest::option::of(log_id()),
        proptest::option::of(log_id()),
        vec(entry(), 0..6),
    )
        .prop_map(
            |(vote, prev_log_id, leader_commit, entries)| AppendRequest {
                vote,
                prev_log_id,
                entries,
                leader_commit,
            },
        )
}

fn append_response() -> impl Strategy<Value = AppendResponse> {
    prop_oneof![
        Just(AppendResponse::Success),
        Just(AppendResponse::Conflict),
        proptest::option::of(log_id()).prop_map(AppendResponse::PartialSuccess),
        vote().prop_map(AppendResponse::HigherVote),
    ]
}

/// Every proper prefix is refused, and so is anything behind the end.
fn refuses_cuts<T>(bytes: &Bytes, decode: impl Fn(&mut Bytes) -> Result<T>) {
    for length in 0..bytes.len() {
        assert!(
            decode(&mut bytes.slice(..length)).is_err(),
            "prefix of {length} bytes was accepted"
        );
    }
    let longer = [bytes.as_ref(), &[0]].concat();
    assert!(
        decode(&mut longer.into()).is_err(),
        "a byte behind the end was accepted"
    );
}

proptest! {
    #[test]
    fn append_requests_round_trip(sequence in any::<u64>(), request in append_request()) {
        let bytes = encoded(|buffer| put_append_request(buffer, sequence, &request));
        let (got_sequence, got) = get_append_request(&mut bytes.clone()).unwrap();
        prop_assert_eq!(got_sequence, sequence);
        prop_assert_eq!(got.vote, request.vote);
        prop_assert_eq!(got.prev_log_id, request.prev_log_id);
        prop_assert_eq!(got.leader_commit, request.leader_commit);
        prop_assert_eq!(got.entries, request.entries);
        refuses_cuts(&bytes, get_append_request);
    }

    #[test]
    fn append_responses_round_trip(response in append_response()) {
        let bytes = encoded(|buffer| put_append_response(buffer, &response));
        prop_assert_eq!(get_append_response(&mut bytes.clone()).unwrap(), response);
        refuses_cuts(&bytes, get_append_response);
    }

    #[test]
    fn votes_round_trip(vote in vote(), last in proptest::option::of(log_id()), flag in any::<bool>()) {
        let request = VoteRequest { vote, last_log_id: last, leadership_transfer: flag };
        let bytes = encoded(|buffer| put_vote_request(buffer, &request));
        prop_assert_eq!(get_vote_request(&mut bytes.clone()).unwrap(), request);
        refuses_cuts(&bytes, get_vote_request);

        let response = VoteResponse::new(vote, last, flag);
        let bytes = encoded(|buffer| put_vote_response(buffer, &response));
        prop_assert_eq!(get_vote_response(&mut bytes.clone()).unwrap(), response);
        refuses_cuts(&bytes, get_vote_response);
    }

    #[test]
    fn transfer_requests_round_trip(vote in vote(), to in any::<u64>(), last in proptest::option::of(log_id())) {
        let request = TransferRequest::new(vote, to, last);
        let bytes = encoded(|buffer| put_transfer_request(buffer, &request));
        prop_assert_eq!(get_transfer_request(&mut bytes.clone()).unwrap(), request);
        refuses_cuts(&bytes, get_transfer_request);
    }

    #[test]
    fn applied_records_round_trip(last in proptest::option::of(log_id()), at in log_id(), membership in membership()) {
        let record = AppliedRecord { last, membership: StoredMembership::new(Some(at), membership) };
        let bytes = record.encode();
        prop_assert_eq!(AppliedRecord::decode(bytes.clone()).unwrap(), record);
        refuses_cuts(&bytes, |bytes| AppliedRecord::decode(bytes.clone()));
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        drop(get_append_request(&mut bytes.clone()));
        drop(get_append_response(&mut bytes.clone()));
        drop(get_vote_request(&mut bytes.clone()));
        drop(get_vote_response(&mut bytes.clone()));
        drop(get_transfer_request(&mut bytes.clone()));
        drop(get_entry(&mut bytes.clone()));
        drop(get_membership(&mut bytes.clone()));
        drop(AppliedRecord::decode(bytes));
    }

    /// Starts from a good message, so that the mutation reaches deep into the decoder.
    #[test]
    fn damaged_messages_never_panic(request in append_request(), damage in vec((any::<usize>(), any::<u8>()), 1..5)) {
        let mut bytes = encoded(|buffer| put_append_request(buffer, 1, &request)).to_vec();
        for (place, value) in damage {
            let place = place % bytes.len();
            bytes[place] = value;
        }
        drop(get_append_request(&mut bytes.into()));
    }
}

#[test]
fn received_payloads_do_not_pin_their_packet() {
    let payload = Payload(Bytes::from(vec![7; 1000]));
    let log_id = LogId {
        leader_id: LeaderId {
            term: 1,
            node_id: 1,
        },
        index: 1,
    };
    let request = AppendRequest {
        vote: openraft::Vote {
            leader_id: LeaderId {
                term: 1,
                node_id: 1,
            },
            committed: true,
        },
        prev_log_id: None,
        entries: vec![Entry {
            log_id,
            payload: EntryPayload::Normal(payload),
        }],
        leader_commit: None,
    };
    let packet = encoded(|buffer| put_append_request(buffer, 1, &request));
    let range = packet.as_ptr_range();
    let (_, decoded) = get_append_request(&mut packet.clone()).unwrap();
    let EntryPayload::Normal(payload) = &decoded.entries[0].payload else {
        panic!("not a normal entry")
    };
    assert!(!range.contains(&payload.0.as_ptr()));
}

#[test]
fn a_membership_without_its_nodes_is_refused() {
    let bytes = encoded(|buffer| {
        put_count(buffer, 1);
        put_count(buffer, 1);
        put_u64(buffer, 1);
        put_count(buffer, 0);
    });
    assert_eq!(
        get_membership(&mut bytes.clone()).unwrap_err(),
        CodecError::Membership
    );
}
