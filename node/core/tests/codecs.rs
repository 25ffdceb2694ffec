//! Everything that is written reads back as it was, and no bytes whatever make a decoder
//! panic.

use bytes::{Bytes, BytesMut};
use carillon_core::command::{
    DeliverEntry, encode_ack_cursor, encode_advance_outbox, encode_batch, encode_deliver,
    encode_send, pushed_bytes,
};
use carillon_core::map::{
    Actor, ClusterVersion, ConfigVersion, JoinToken, LogPosition, MetaCommand, MetaRefusal,
    MetaReply, MetaState, MoveId, MoveReason, NodeInfo, Policy, PolicyChange, ShardDescriptor,
    ShardMap, Standing, apply_meta, initial_map,
};
use carillon_core::merging::{MergeId, MergeMark};
use carillon_core::placement::Zone;
use carillon_core::records::*;
use carillon_core::reply::ConversationSummary;
use carillon_core::*;
use proptest::prelude::*;

fn any_user() -> impl Strategy<Value = UserId> {
    "[A-Za-z0-9._@+=-]{1,64}".prop_map(|id| UserId::copied(&id).expect("a valid id"))
}

fn any_client_message_id() -> impl Strategy<Value = ClientMessageId> {
    "[A-Za-z0-9._@+=-]{1,64}".prop_map(|id| ClientMessageId::copied(&id).expect("a valid id"))
}

fn any_conversation() -> impl Strategy<Value = ConversationId> {
    let group =
        "[A-Za-z0-9._@+=-]{1,64}".prop_map(|id| ConversationId::copied(&id).expect("a valid id"));
    let direct = (any_user(), any_user())
        .prop_filter_map("two users", |(a, b)| ConversationId::direct(&a, &b).ok());
    prop_oneof![group, direct]
}

fn any_users() -> impl Strategy<Value = Vec<UserId>> {
    prop::collection::vec(any_user(), 0..6)
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn any_name() -> impl Strategy<Value = ConversationName> {
    "\\PC{0,40}".prop_map(|name| ConversationName::parse(name).expect("a valid name"))
}

fn any_request() -> impl Strategy<Value = RequestId> {
    "[a-z]{1,64}".prop_map(|id| RequestId::copied(&id).expect("a valid id"))
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        (
            any_conversation(),
            any_user(),
            any_client_message_id(),
            any_bytes()
        )
            .prop_map(
                |(conversation, sender, client_message_id, content)| Command::Send {
                    conversation,
                    sender,
                    client_message_id,
                    content,
                }
            ),
        (
            any_conversation(),
            any_name(),
            any_user(),
            any_users(),
            any_request()
        )
            .prop_map(|(conversation, name, creator, members, request_id)| {
                Command::CreateGroup {
                    conversation,
                    name,
                    creator,
                    members,
                    request_id,
                }
            }),
        (any_conversation(), any_user(), any_users(), any::<bool>()).prop_map(
            |(conversation, actor, members, add)| if add {
                Command::AddMembers {
                    conversation,
                    actor,
                    members,
                }
            } else {
                Command::RemoveMembers {
                    conversation,
                    actor,
                    members,
                }
            }
        ),
        prop::collection::vec((any_conversation(), any::<u64>().prop_map(Seq)), 0..5)
            .prop_map(|items| Command::AdvanceOutbox { items }),
        (
            (
                any_conversation(),
                any::<u64>(),
                any::<i64>(),
                any_user(),
                any::<bool>()
            ),
            any_users(),
            any_users(),
        )
            .prop_map(
                |((conversation, seq, at, sender, countable), users, leaving)| {
                    Command::Deliver {
                        conversation,
                        seq: Seq(seq),
                        at: TimestampMs(at),
                        sender,
                        countable,
                        users,
                        leaving,
                    }
                }
            ),
        (
            any_user(),
            any_conversation(),
            any::<u64>(),
            any::<Option<u64>>()
        )
            .prop_map(
                |(user, conversation, seq, verified_end)| Command::MarkRead {
                    user,
                    conversation,
                    seq: Seq(seq),
                    verified_end: verified_end.map(Seq),
                }
            ),
        (any_user(), "[a-z]{1,64}", any::<u64>()).prop_map(|(user, device, inbox_seq)| {
            Command::AckCursor {
                user,
                device: DeviceId::copied(&device).expect("a valid id"),
                inbox_seq: InboxSeq(inbox_seq),
            }
        }),
        any::<u64>().prop_map(|nonce| Command::Checksum { nonce }),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(|filler| Command::Probe {
            filler: filler.into()
        }),
        (any::<u64>(), any::<u32>(), 0..SLOTS, 0..SLOTS).prop_map(|(id, shard, one, other)| {
            let merge_id = MergeId(id);
            match shard % 3 {
                0 => Command::Freeze { merge_id },
                1 => Command::Thaw { merge_id },
                _ => Command::Absorb {
                    merge_id,
                    shard: ShardId(shard),
                    slots: SlotRange {
                        first: Slot(one.min(other)),
                        last: Slot(one.max(other)),
                    },
                },
            }
        }),
    ]
}

fn any_summary() -> impl Strategy<Value = ConversationSummary> {
    (
        any_conversation(),
        any_name(),
        prop::option::of(any_user()),
        any::<i64>(),
        any::<u64>(),
        any::<u32>(),
    )
        .prop_map(
            |(conversation, name, creator, at, last_seq, member_count)| ConversationSummary {
                kind: if conversation.is_direct() {
                    ConversationKind::Direct
                } else {
                    ConversationKind::Group
                },
                conversation,
                name,
                creator,
                created_at: TimestampMs(at),
                last_seq: Seq(last_seq),
                member_count,
            },
        )
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let refusal = prop_oneof![
        Just(Refusal::ConversationNotFound),
        Just(Refusal::NotAMember),
        Just(Refusal::ConversationExists),
        Just(Refusal::NotOwner),
        any::<(u32, u32)>().prop_map(|(max, actual)| Refusal::MembersLimit { max, actual }),
        Just(Refusal::DirectFixed),
        any::<u64>().prop_map(|end| Refusal::SeqBeyondEnd { end: Seq(end) }),
        Just(Refusal::NotDeliveredYet),
    ];
    prop_oneof![
        any::<(u64, u64, i64, bool)>().prop_map(|(seq, message_id, at, duplicate)| Reply::Sent {
            seq: Seq(seq),
            message_id: MessageId(message_id),
            at: TimestampMs(at),
            duplicate,
        }),
        (any_summary(), any::<bool>())
            .prop_map(|(summary, existed)| Reply::Created { summary, existed }),
        (any_users(), any_summary())
            .prop_map(|(changed, summary)| Reply::Members { changed, summary }),
        any::<(u64, u32)>().prop_map(|(read_seq, unread)| Reply::Read {
            read_seq: Seq(read_seq),
            unread,
        }),
        Just(Reply::Done),
        Just(Reply::Delivered),
        Just(Reply::Moved),
        Just(Reply::Frozen),
        refusal.prop_map(Reply::Refused),
    ]
}

fn round_trip<R: Record + PartialEq + std::fmt::Debug>(record: &R) -> Result<(), TestCaseError> {
    let bytes = record.encoded();
    prop_assert_eq!(&R::decode(&bytes).expect("it decodes"), record);
    prop_assert_eq!(&R::decode_slice(&bytes).expect("it decodes"), record);
    for end in 0..bytes.len() {
        prop_assert!(R::decode_slice(&bytes[..end]).is_err(), "cut at {}", end);
    }
    Ok(())
}

proptest! {
    #[test]
    fn commands_round_trip(command in any_command()) {
        let bytes = command.encoded();
        prop_assert_eq!(&Command::decode(&bytes).expect("it decodes"), &command);
        for end in 0..bytes.len() {
            prop_assert!(Command::decode(&bytes.slice(..end)).is_err(), "cut at {}", end);
        }
    }

    #[test]
    fn direct_encoders_write_the_same(command in any_command()) {
        let mut out = BytesMut::new();
        match &command {
            Command::Send { conversation, sender, client_message_id, content } => {
                encode_send(&mut out, conversation, sender, client_message_id, content);
            }
            Command::Deliver { conversation, seq, at, sender, countable, users, leaving } => {
                let entry = DeliverEntry {
                    conversation, seq: *seq, at: *at, sender, countable: *countable,
                };
                encode_deliver(&mut out, &entry, users.iter(), leaving.iter());
            }
            Command::AdvanceOutbox { items } => {
                encode_advance_outbox(&mut out, items.iter().map(|(id, upto)| (id, *upto)));
            }
            Command::AckCursor { user, device, inbox_seq } => {
                encode_ack_cursor(&mut out, user, device, *inbox_seq);
            }
            _ => return Ok(()),
        }
        prop_assert_eq!(out.freeze(), command.encoded());
    }

    #[test]
    fn batches_round_trip(at: i64, commands in prop::collection::vec(any_command(), 0..20)) {
        let encoded: Vec<Bytes> = commands.iter().map(Command::encoded).collect();
        let batch = encode_batch(TimestampMs(at), &encoded);
        let size: usize = encoded.iter().map(|command| pushed_bytes(command.len())).sum();
        prop_assert_eq!(batch.len(), command::BATCH_HEADER_BYTES + size);
        let reader = BatchReader::new(batch.clone()).expect("a batch");
        prop_assert_eq!(reader.at(), TimestampMs(at));
        let decoded: Result<Vec<_>, _> = reader.collect();
        prop_assert_eq!(decoded, Ok(commands));
        // A batch that was cut is found to be, at the header or at one of its commands.
        for end in 0..batch.len() {
            let decoded = BatchReader::new(batch.slice(..end))
                .and_then(|reader| reader.collect::<Result<Vec<_>, _>>());
            prop_assert!(decoded.is_err(), "cut at {}", end);
        }
    }

    #[test]
    fn replies_round_trip(reply in any_reply()) {
        let bytes = reply.encoded();
        prop_assert_eq!(&Reply::decode(&bytes).expect("it decodes"), &reply);
        for end in 0..bytes.len() {
            prop_assert!(Reply::decode(&bytes.slice(..end)).is_err(), "cut at {}", end);
        }
    }

    #[test]
    fn conversation_records_round_trip(
        summary in any_summary(),
        request_id in prop::option::of(any_request()),
        numbers: [u64; 5],
        at: i64,
        left: Option<u64>,
        earlier in prop::collection::vec(any::<(u64, u64)>(), 0..8),
    ) {
        round_trip(&ConversationInfo {
            kind: summary.kind,
            name: summary.name,
            creator: summary.creator,
            created_at: summary.created_at,
            request_id,
        })?;
        round_trip(&ConversationHead {
            last_seq: Seq(numbers[0]),
            last_at: TimestampMs(at),
            last_message_id: MessageId(numbers[1]),
            member_count: summary.member_count,
            dedup_pruned_seq: Seq(numbers[2]),
        })?;
        let stay = |(joined, left)| Stay { joined: Seq(joined), left: Seq(left) };
        round_trip(&MemberRecord {
            role: if numbers[0].is_multiple_of(2) { Role::Member } else { Role::Owner },
            joined_seq: Seq(numbers[3]),
            left_seq: left.map(Seq),
            earlier: earlier.into_iter().map(stay).collect(),
        })?;
        round_trip(&DedupRecord {
            seq: Seq(numbers[0]),
            message_id: MessageId(numbers[1]),
            at: TimestampMs(at),
        })?;
        round_trip(&OutboxRecord { delivered_upto: Seq(numbers[4]) })?;
        let mark = MergeMark {
            frozen_by: left.map(MergeId),
            seen: MergeId(numbers[0]),
            absorbed: MergeId(numbers[1]),
        };
        let mut bytes = BytesMut::new();
        mark.write(&mut bytes);
        let mut reader = carillon_core::codec::Reader::borrowed("mark", &bytes);
        prop_assert_eq!(MergeMark::read(&mut reader), Ok(mark));
        prop_assert_eq!(reader.remaining(), 0);
        let counter = (numbers[0] % 1024) as u16;
        round_trip(&ShardClock { last_ms: TimestampMs(at), counter })?;
    }

    #[test]
    fn message_and_inbox_records_round_trip(
        sender in any_user(),
        client_message_id in prop::option::of(any_client_message_id()),
        conversation in any_conversation(),
        content in any_bytes(),
        numbers: [u64; 6],
        unread: u32,
        at: i64,
        flags: [bool; 3],
        on_level: bool,
    ) {
        round_trip(&MessageRecord {
            message_id: MessageId(numbers[0]),
            sender,
            client_message_id,
            at: TimestampMs(at),
            countable: flags[0],
            content,
        })?;
        round_trip(&CursorRecord { inbox_seq: InboxSeq(numbers[0]) })?;
        let skips = if on_level {
            [InboxSeq(numbers[3]), InboxSeq(numbers[4])]
        } else {
            Skips::default()
        };
        round_trip(&InboxRecord {
            conversation,
            seq: Seq(numbers[0]),
            sender_is_self: flags[0],
            countable: flags[1],
            previous: InboxSeq(numbers[1]),
            counted: numbers[2],
            skips,
        })?;
        round_trip(&Row {
            last_delivered: Seq(numbers[0]),
            last_inbox_seq: InboxSeq(numbers[1]),
            unread,
            read_seq: Seq(numbers[2]),
            last_at: TimestampMs(at),
            left: flags[2],
            delivered: numbers[4],
            counted: numbers[5],
            skips,
        })?;
    }

    /// Bytes of which some are likely to be a version, a tag or a length.
    #[test]
    fn no_bytes_make_a_decoder_panic(
        bytes in prop::collection::vec(prop_oneof![0u8..12, any::<u8>()], 0..80),
    ) {
        let shared = Bytes::from(bytes.clone());
        let _ = Command::decode(&shared);
        let _ = Reply::decode(&shared);
        let version = |version: u8| Bytes::from([&[version][..], &bytes].concat());
        for versioned in [shared.clone(), version(1), version(2)] {
            if let Ok(batch) = BatchReader::new(versioned.clone()) {
                let _ = batch.collect::<Vec<_>>();
            }
            let _ = Reply::decode(&versioned);
            let _ = ConversationInfo::decode(&versioned);
            let _ = ConversationHead::decode(&versioned);
            let _ = MemberRecord::decode(&versioned);
            let _ = MessageRecord::decode(&versioned);
            let _ = DedupRecord::decode(&versioned);
            let _ = OutboxRecord::decode(&versioned);
            let _ = InboxRecord::decode(&versioned);
            let _ = Row::decode(&versioned);
            let _ = CursorRecord::decode(&versioned);
            let _ = ShardClock::decode(&versioned);
            let _ = ShardMap::decode(&versioned);
            let _ = MetaState::decode(&versioned);
            let _ = MetaCommand::decode(&versioned);
            let _ = MetaReply::decode(&versioned);
        }
        let _ = keys::parse_message(&bytes);
        let _ = keys::parse_inbox(&bytes);
        let _ = keys::parse_member(&bytes);
        let _ = keys::parse_row(&bytes);
        let _ = keys::parse_outbox(&bytes);
    }

    /// One flipped byte of a batch is an error or other commands, never a panic.
    #[test]
    fn a_flipped_byte_does_not_panic(
        commands in prop::collection::vec(any_command(), 1..5),
        at: prop::sample::Index,
        flip in 1u8..,
    ) {
        let encoded: Vec<Bytes> = commands.iter().map(Command::encoded).collect();
        let mut batch = encode_batch(TimestampMs(7), &encoded).to_vec();
        let at = at.index(batch.len());
        batch[at] ^= flip;
        if let Ok(batch) = BatchReader::new(Bytes::from(batch)) {
            let _ = batch.collect::<Vec<_>>();
        }
    }

    #[test]
    fn parsed_conversation_ids_are_canonical(text in "(direct:)?[a-c]{0,2}:?[a-c]{0,2}") {
        if let Ok(id) = ConversationId::copied(&text) {
            match id.direct_pair() {
                Some((a, b)) => {
                    prop_assert!(a < b);
                    prop_assert_eq!(ConversationId::direct(&b, &a), Ok(id));
                }
                None => prop_assert!(!text.contains(':')),
            }
        }
    }
}

#[test]
fn decoded_commands_share_the_batch() {
    let command = Command::Send {
        conversation: ConversationId::copied("team").expect("a valid id"),
        sender: UserId::copied("alice").expect("a valid id"),
        client_message_id: ClientMessageId::copied("m1").expect("a valid id"),
        content: Bytes::from_static(b"content"),
    };
    let batch = encode_batch(TimestampMs(1), &[command.encoded()]);
    let memory = batch.as_ptr_range();
    let mut reader = BatchReader::new(batch.clone()).expect("a batch");
    let Some(Ok(Command::Send {
        conversation,
        content,
        ..
    })) = reader.next()
    else {
        panic!("the command does not decode");
    };
    assert!(memory.contains(&content.as_ptr()));
    assert!(memory.contains(&conversation.as_bytes().as_ptr()));
}

#[test]
fn map_values_round_trip() {
    let node = |id: u64| NodeInfo {
        node_id: NodeId(id),
        identity: format!("identity-{id}"),
        client_address: format!("node-{id}:7000"),
        peer_address: format!("node-{id}:8000"),
        zone: Zone(format!("zone-{}", id % 3)),
        weight: 100,
        capacity_bytes: 1 << 40,
    };
    let token = || JoinToken("secret".to_owned());
    let at = TimestampMs(1_700_000_000_000);
    let placed = |shards| {
        let nodes = [node(1), node(2), node(3)];
        initial_map(&nodes, shards, 3).expect("a map").shards
    };
    let create =
        |shards: Vec<ShardDescriptor>, replication_factor, nodes| MetaCommand::CreateCluster {
            cluster_id: "c1".to_owned(),
            cluster_name: "demo ♪".to_owned(),
            join_token: token(),
            replication_factor,
            nodes,
            shards,
            version: ClusterVersion::MAX,
            at,
        };
    let join = |id, token| MetaCommand::JoinNode {
        node: node(id),
        token,
        at,
    };
    let start = |shard_id, from, to, epoch| MetaCommand::StartMove {
        shard_id: ShardId(shard_id),
        to,
        from,
        preferred_leader: NodeId(4),
        reason: MoveReason::Asked,
        epoch: Epoch(epoch),
        at,
    };
    let config = ConfigVersion {
        term: 3,
        leader: ReplicaId(5),
        index: 9,
    };
    let drain = |id, standing| MetaCommand::SetStanding {
        node_id: NodeId(id),
        standing,
        forced: false,
        at,
    };
    let recover = |shard_id, survivor| MetaCommand::RecoverShard {
        shard_id: ShardId(shard_id),
        survivor: ReplicaId(survivor),
        last: LogPosition {
            term: 3,
            leader: ReplicaId(7),
            index: 1 << 40,
        },
        at,
    };
    let three = || vec![node(1), node(2), node(3)];
    let move_id = MoveId(1);
    let commands = [
        MetaCommand::UpdateNode { node: node(1) },
        create(vec![], 3, three()),
        create(placed(1), 3, vec![node(1)]),
        create(placed(1), 1, three()),
        create(placed(1), 3, vec![]),
        create(placed(1), 3, vec![node(1), node(1), node(2)]),
        create(placed(1), 3, (0..2000).map(node).collect()),
        create(placed(16), 3, three()),
        create(placed(16), 3, three()),
        MetaCommand::UpdateNode { node: node(9) },
        MetaCommand::UpdateNode { node: node(3) },
        join(7, JoinToken::default()),
        join(7, token()),
        join(7, token()),
        start(1, Some(NodeId(1)), Some(NodeId(4)), 1),
        start(1, Some(NodeId(1)), Some(NodeId(4)), 2),
        start(1, None, Some(NodeId(4)), 3),
        MetaCommand::SwitchMove { move_id, config },
        MetaCommand::CancelMove { move_id },
        MetaCommand::RewindMove { move_id, config },
        MetaCommand::CancelMove { move_id },
        MetaCommand::EndCancelledMove { move_id, at },
        MetaCommand::FinishMove { move_id, at },
        MetaCommand::FinishMove {
            move_id: MoveId(2),
            at,
        },
        MetaCommand::SetPreferredLeaders {
            leaders: vec![(ShardId(1), NodeId(2)), (ShardId(2), NodeId(3))],
        },
        MetaCommand::SetPolicy {
            change: PolicyChange {
                moves_max: Some(0),
                ..PolicyChange::default()
            },
            at,
        },
        MetaCommand::SetPolicy {
            change: Policy {
                balance: false,
                leader_zone: Zone("zone-1".to_owned()),
                ..Policy::default()
            }
            .into(),
            at,
        },
        MetaCommand::RotateJoinToken {
            token: JoinToken("other".to_owned()),
            at,
        },
        drain(1, Standing::DRAINING_FOR_REMOVAL),
        drain(2, Standing::DRAINING_FOR_REMOVAL),
        drain(2, Standing::DRAINING_FOR_RESTART),
        drain(3, Standing::Lost),
        drain(4, Standing::Cordoned),
        recover(1, 1),
        recover(9, 1),
        drain(1, Standing::Lost),
        MetaCommand::SetStanding {
            node_id: NodeId(1),
            standing: Standing::Lost,
            forced: true,
            at,
        },
        recover(2, 1),
        MetaCommand::By {
            by: Actor("ann".to_owned()),
            command: Box::new(recover(2, 5)),
        },
        recover(2, 4),
        start(2, None, Some(NodeId(4)), 9),
        MetaCommand::FinishRecovery {
            shard_id: ShardId(2),
            replica_id: ReplicaId(50),
            at,
        },
        MetaCommand::By {
            by: Actor("a".repeat(200)),
            command: Box::new(recover(3, 8)),
        },
        MetaCommand::ForgetNode {
            node_id: NodeId(1),
            at,
        },
    ];
    let mut state = MetaState::default();
    let mut replies = vec![MetaReply::Refused(MetaRefusal::ClusterExists {
        cluster_id: "c0".to_owned(),
    })];
    for command in commands {
        assert_eq!(
            MetaCommand::decode(&command.encode()).as_ref(),
            Ok(&command)
        );
        replies.push(apply_meta(&mut state, command));
        assert_eq!(MetaState::decode(&state.encode()).as_ref(), Ok(&state));
        assert_eq!(
            ShardMap::decode(&state.map.encode()).as_ref(),
            Ok(&state.map)
        );
    }
    for reply in replies {
        assert_eq!(MetaReply::decode(&reply.encode()).as_ref(), Ok(&reply));
        let reply = Reply::Meta(reply);
        assert_eq!(Reply::decode(&reply.encoded()).as_ref(), Ok(&reply));
    }
}
