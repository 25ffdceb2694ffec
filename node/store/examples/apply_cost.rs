//! What a send and a delivery cost from the decoded command to the committed batch.
//!
//! `cargo run --release -p carillon-store --example apply_cost -- [seconds] [memtable MiB]`
//!
//! One shard, groups of ten members out of 4,096 users, 128-byte messages, a batch of 50
//! commands per commit as a busy node has them; memtables of the default size. Printed for each
//! second, so that flushes and compactions show.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use carillon_core::apply::{Context, apply};
use carillon_core::command::{self, BatchReader, Command, DeliverEntry};
use carillon_core::ids::{
    ClientMessageId, ConversationId, ConversationName, Seq, ShardId, SlotRange, TimestampMs, UserId,
};
use carillon_core::reply::Reply;
use carillon_store::{ShardStore, Store, StoreOptions};

const USERS: usize = 4096;
const GROUPS: usize = 1000;
const MEMBERS: usize = 10;
const BATCH_COMMANDS: usize = 50;
const CONTENT_BYTES: usize = 128;
const START_MS: i64 = 1_800_000_000_000;
const DEFAULT_SECONDS: u64 = 10;

struct Group {
    id: ConversationId,
    members: Vec<UserId>,
    seq: Seq,
}

struct Bench {
    shard: ShardStore,
    at: TimestampMs,
    entry: u64,
    commands: u64,
}

impl Bench {
    /// Applies one batch as the raft layer would: decode, apply, commit.
    fn apply(&mut self, commands: &[Bytes]) -> Vec<Reply> {
        self.entry += 1;
        let bytes = command::encode_batch(self.at, commands);
        let reader = BatchReader::new(bytes).expect("just encoded");
        let mut clock = self.shard.clock();
        let id = self.shard.id();
        let mut batch = self.shard.begin();
        let mut context = Context::new(id, SlotRange::ALL, reader.at(), &mut clock);
        let replies: Vec<_> = reader
            .map(|command| {
                let command = command.expect("just encoded");
                apply(&mut batch, &mut context, command).reply
            })
            .collect();
        self.commands += replies.len() as u64;
        batch
            .commit(&self.entry.to_be_bytes(), clock)
            .expect("the store takes a batch");
        replies
    }
}

fn encoded(write: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    write(&mut out);
    out.freeze()
}

fn groups(bench: &mut Bench) -> Vec<Group> {
    let users: Vec<UserId> = (0..USERS)
        .map(|n| UserId::parse(format!("user-{n}")).expect("a valid id"))
        .collect();
    let mut groups: Vec<Group> = (0..GROUPS)
        .map(|n| Group {
            id: ConversationId::parse(format!("group-{n}")).expect("a valid id"),
            members: (0..MEMBERS)
                .map(|m| users[(n * 37 + m * 409) % USERS].clone())
                .collect(),
            seq: Seq(1),
        })
        .collect();
    for group in &mut groups {
        let create = Command::CreateGroup {
            conversation: group.id.clone(),
            name: ConversationName::parse("a group").expect("a valid name"),
            creator: group.members[0].clone(),
            members: group.members[1..].to_vec(),
            request_id: "request".parse().expect("a valid id"),
        };
        bench.apply(&[create.encoded()]);
    }
    groups
}

fn argument(position: usize) -> Option<u64> {
    let argument = std::env::args().nth(position)?;
    Some(argument.parse().expect("a number"))
}

/// Processor time of this thread so far: the machine may be busy with other things.
fn busy() -> Duration {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a Linux machine");
    let nanoseconds = times.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("its first number is nanoseconds"))
}

fn main() {
    let seconds = argument(1).unwrap_or(DEFAULT_SECONDS);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut options = StoreOptions::new(dir.path().join("state"));
    if let Some(mebibytes) = argument(2) {
        options.memtable_bytes = mebibytes as usize * 1024 * 1024;
    }
    let store = Store::open(&options).expect("a new store");
    let mut bench = Bench {
        shard: store
            .shard(ShardId(0), SlotRange::ALL)
            .expect("a new shard"),
        at: TimestampMs(START_MS),
        entry: 0,
        commands: 0,
    };
    let mut groups = groups(&mut bench);
    let content = Bytes::from(vec![7; CONTENT_BYTES]);
    let (mut sends, mut deliveries) = (0_u64, 0_u64);
    let mut next = 0;
    println!("    µs/send  µs/delivery  per second  of a core");
    for second in 0..seconds {
        let mut in_sends = Duration::ZERO;
        let mut in_deliveries = Duration::ZERO;
        let (sends_before, deliveries_before) = (sends, deliveries);
        let (busy_before, start) = (busy(), Instant::now());
        while in_sends + in_deliveries < Duration::from_secs(1) {
            bench.at.0 += 5;
            let batch: Vec<usize> = (0..BATCH_COMMANDS)
                .map(|n| (next + n * 17) % GROUPS)
                .collect();
            next += 1;
            let commands: Vec<Bytes> = batch
                .iter()
                .map(|&at| {
                    sends += 1;
                    let id = ClientMessageId::parse(format!("message-{sends}")).expect("valid");
                    let group = &groups[at];
                    let sender = &group.members[sends as usize % MEMBERS];
                    encoded(|out| command::encode_send(out, &group.id, sender, &id, &content))
                })
                .collect();
            let start = Instant::now();
            let replies = bench.apply(&commands);
            in_sends += start.elapsed();
            for (&at, reply) in batch.iter().zip(&replies) {
                let Reply::Sent { seq, .. } = reply else {
                    panic!("a send is refused: {reply:?}");
                };
                groups[at].seq = *seq;
            }

            let commands: Vec<Bytes> = batch
                .iter()
                .map(|&at| {
                    let group = &groups[at];
                    let entry = DeliverEntry {
                        conversation: &group.id,
                        seq: group.seq,
                        at: bench.at,
                        sender: &group.members[0],
                        countable: true,
                    };
                    deliveries += MEMBERS as u64;
                    encoded(|out| {
                        command::encode_deliver(out, &entry, group.members.iter(), [].iter());
                    })
                })
                .collect();
            let start = Instant::now();
            bench.apply(&commands);
            in_deliveries += start.elapsed();

            let outbox = encoded(|out| {
                let items: Vec<_> = batch
                    .iter()
                    .map(|&at| (&groups[at].id, groups[at].seq))
                    .collect();
                command::encode_advance_outbox(out, items.into_iter());
            });
            bench.apply(&[outbox]);
        }
        // The share of the wall clock that this thread had a processor.
        let share = (busy() - busy_before).as_secs_f64() / start.elapsed().as_secs_f64();
        let cost = |time: Duration, count: u64| time.as_secs_f64() * share * 1e6 / count as f64;
        println!(
            "{second:3} {:8.2} {:12.2} {:8.0} {share:6.2}",
            cost(in_sends, sends - sends_before),
            cost(in_deliveries, deliveries - deliveries_before),
            (deliveries - deliveries_before) as f64 / in_deliveries.as_secs_f64(),
        );
    }
    println!("{:?}", store.stats());
    println!("{:?}", bench.shard.cache_stats());
}
