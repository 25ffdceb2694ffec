//! Links: what is sent arrives, what is lost is told, limits hold, requests are answered.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use carillon_core::ids::{NodeId, ShardId};
use carillon_raft::{
    FrameKind, Group, GroupRegistry, LINK_BUFFER_BYTES_DEFAULT, Link, LinkEnd, Links, OutStream,
    PACKET_BYTES_MAX, PACKET_BYTES_TARGET, next_frame, run_link,
};
use futures_util::StreamExt;

const KIND: FrameKind = FrameKind(FrameKind::USER_FIRST);
const SHARD: ShardId = ShardId(3);

fn link() -> Arc<Link> {
    Link::new(NodeId(2), LINK_BUFFER_BYTES_DEFAULT)
}

async fn packet(stream: &mut OutStream) -> Option<Bytes> {
    tokio::time::timeout(Duration::from_secs(10), stream.next())
        .await
        .expect("nothing was sent")
}

struct NoGroups;

impl GroupRegistry for NoGroups {
    fn group(&self, _shard: ShardId) -> Option<Group> {
        None
    }

    fn takes_commands(&self, _shard: ShardId) -> bool {
        true
    }
}

#[tokio::test]
async fn frames_of_one_moment_leave_as_one_packet() {
    let link = link();
    let mut out = link.open();
    for correlation in 0..10 {
        assert!(link.send(KIND, SHARD, correlation, |body| {
            body.put_u64(correlation * 7)
        }));
    }
    let mut received = packet(&mut out).await.unwrap();
    for correlation in 0..10u64 {
        let frame = next_frame(&mut received).unwrap().unwrap();
        assert_eq!(
            (frame.kind, frame.shard, frame.correlation),
            (KIND, SHARD, correlation)
        );
        assert_eq!(frame.body.as_ref(), (correlation * 7).to_be_bytes());
    }
    assert_eq!(next_frame(&mut received), Ok(None));
    assert_eq!(link.stats().packets, 1);
    // A later frame wakes the waiting stream.
    let waiting = tokio::spawn(async move { (packet(&mut out).await, out) });
    tokio::task::yield_now().await;
    assert!(link.send(KIND, SHARD, 99, |_| ()));
    assert!(waiting.await.unwrap().0.is_some());
}

#[tokio::test]
async fn packets_are_bounded() {
    let link = link();
    let mut out = link.open();
    for correlation in 0..50 {
        assert!(link.send(KIND, SHARD, correlation, |body| body.put_bytes(1, 200_000)));
    }
    let mut frames = 0;
    while frames < 50 {
        let mut received = packet(&mut out).await.unwrap();
        assert!(
            received.len() <= PACKET_BYTES_TARGET + 250_000 && received.len() <= PACKET_BYTES_MAX
        );
        while let Some(frame) = next_frame(&mut received).unwrap() {
            assert_eq!(frame.correlation, frames);
            frames += 1;
        }
    }
}

#[tokio::test]
async fn a_full_link_refuses_whole_frames() {
    let link = Link::new(NodeId(2), 1000);
    assert!(
        !link.send(KIND, SHARD, 1, |_| ()),
        "a link that is down accepted a frame"
    );
    let mut out = link.open();
    assert!(link.send(KIND, SHARD, 1, |body| body.put_bytes(1, 900)));
    assert!(
        !link.send(KIND, SHARD, 2, |body| body.put_bytes(1, 100)),
        "over the limit"
    );
    assert!(link.send(KIND, SHARD, 3, |body| body.put_bytes(1, 20)));
    let mut received = packet(&mut out).await.unwrap();
    let first = next_frame(&mut received).unwrap().unwrap();
    let second = next_frame(&mut received).unwrap().unwrap();
    assert_eq!(
        (first.correlation, second.correlation, received.len()),
        (1, 3, 0)
    );
    assert_eq!(link.stats().refused, 1);
    assert!(
        link.send(KIND, SHARD, 4, |body| body.put_bytes(1, 900)),
        "taking a packet makes room"
    );
}

#[tokio::test]
async fn waiting_calls_are_told_of_the_loss() {
    let link = link();
    let mut state = link.watch();
    assert!(!state.borrow_and_update().up);
    let out = link.open();
    assert!(state.borrow_and_update().up && link.is_up());
    let call = {
        let link = Arc::clone(&link);
        tokio::spawn(async move { link.call(KIND, SHARD, |_| ()).await })
    };
    while link.stats().frames == 0 {
        tokio::task::yield_now().await;
    }
    // Dropping the stream is how a transport tells that the connection is gone.
    drop(out);
    let lost = tokio::time::timeout(Duration::from_secs(10), call)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!(lost.peer, NodeId(2));
    state.changed().await.unwrap();
    assert!(!state.borrow_and_update().up);
    assert!(
        link.call(KIND, SHARD, |_| ()).await.is_err(),
        "a call on a link that is down"
    );
}

#[tokio::test]
async fn a_new_connection_replaces_the_old_one() {
    let link = link();
    let mut old = link.open();
    let call = {
        let link = Arc::clone(&link);
        tokio::spawn(async move { link.call(KIND, SHARD, |_| ()).await })
    };
    while link.stats().frames == 0 {
        tokio::task::yield_now().await;
    }
    let old_epoch = old.epoch();
    let mut new = link.open();
    assert!(
        call.await.unwrap().is_err(),
        "a call outlived its connection"
    );
    assert_eq!(packet(&mut old).await, None);
    assert!(
        !link.respond(old_epoch, SHARD, 5, |_| ()),
        "a late answer reached the new connection"
    );
    link.close(old_epoch);
    drop(old);
    assert!(
        link.is_up(),
        "the end of the old connection closed the new one"
    );
    assert!(link.respond(new.epoch(), SHARD, 6, |_| ()));
    let mut received = packet(&mut new).await.unwrap();
    assert_eq!(next_frame(&mut received).unwrap().unwrap().correlation, 6);
    assert!(received.is_empty());
}

#[tokio::test]
async fn requests_for_unknown_replicas_are_answered() {
    let links = Links::new(LINK_BUFFER_BYTES_DEFAULT);
    let (here, there) = (
        links.link(NodeId(1)),
        Link::new(NodeId(9), LINK_BUFFER_BYTES_DEFAULT),
    );
    assert!(Arc::ptr_eq(&here, &links.link(NodeId(1))) && links.all().len() == 1);
    let (here_out, there_out) = (here.open(), there.open());
    let (here_epoch, there_epoch) = (here_out.epoch(), there_out.epoch());
    let (to_there, to_here) = (
        here_out.map(Ok::<_, io::Error>),
        there_out.map(Ok::<_, io::Error>),
    );
    let ends = [
        tokio::spawn(run_link(
            Arc::clone(&here),
            here_epoch,
            to_here,
            Arc::new(NoGroups),
        )),
        tokio::spawn(run_link(
            Arc::clone(&there),
            there_epoch,
            to_there,
            Arc::new(NoGroups),
        )),
    ];
    for kind in 1..=4 {
        let answer = here
            .call(FrameKind(kind), SHARD, |body| body.put_u64_le(101))
            .await
            .unwrap();
        assert_eq!(answer.as_ref(), [1], "kind {kind} of an unknown replica");
        let answer = here
            .call(FrameKind(kind), SHARD, |body| body.put_u8(1))
            .await
            .unwrap();
        assert_eq!(answer.as_ref(), [3], "kind {kind} without a replica");
    }
    there.close(there_epoch);
    for end in ends {
        assert!(matches!(end.await.unwrap(), LinkEnd::Closed));
    }
    assert!(!here.is_up());
}

#[tokio::test]
async fn a_broken_packet_ends_the_connection() {
    let link = link();
    let out = link.open();
    let broken = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from_static(&[1, 2, 3]))]);
    let end = run_link(Arc::clone(&link), out.epoch(), broken, Arc::new(NoGroups)).await;
    assert!(matches!(end, LinkEnd::Malformed(_)), "{end:?}");
    assert!(!link.is_up());
    let out = link.open();
    let failing = futures_util::stream::iter([Err::<Bytes, _>(io::Error::other("reset"))]);
    let end = run_link(Arc::clone(&link), out.epoch(), failing, Arc::new(NoGroups)).await;
    assert!(matches!(end, LinkEnd::Transport(_)), "{end:?}");
}
