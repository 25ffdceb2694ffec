//! The stream of append requests from a leader to one follower, pipelined over a link.
//!
//! A stream owns the requests in flight. It runs without a task: openraft polls it, and each poll
//! yields what was answered, then encodes what openraft wants to send. Answers are yielded in the
//! order of the requests, whatever the order in which they arrive.
//!
//! Commit hold: openraft sends a request without entries for every advance of the commit index.
//! One is kept back for a moment; when a request with entries follows, which carries the newer
//! commit index anyway, the held one is dropped and answered by the success of that one. Only the
//! applying of followers is delayed by it. The first request of a stream is never held, so that
//! heartbeats, which are streams of one request, are not.
//!
//! Invariants: in flight ≤ `IN_FLIGHT_MAX`, with consecutive sequence numbers; after an error or
//! a partial success nothing more is yielded.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use carillon_core::ids::ShardId;
use futures_util::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, Unreachable};
use openraft::raft::StreamAppendResult;
use tokio::time::{Instant, Sleep};

use crate::codec;
use crate::frame::FrameKind;
use crate::link::{Exchange, Link};
use crate::types::{AppendRequest, AppendResponse, LogId, TypeConfig};

/// Requests of one stream that wait for an answer.
const IN_FLIGHT_MAX: usize = 64;
/// How long a request that only carries a commit index is held.
const COMMIT_HOLD: Duration = Duration::from_millis(10);

/// First byte of every response to a request of Raft: whether the group answered.
pub(crate) const ANSWERED: u8 = 0;
/// The receiver has no such replica.
pub(crate) const UNKNOWN_REPLICA: u8 = 1;
/// The receiver's group has stopped.
pub(crate) const GROUP_STOPPED: u8 = 2;
/// The receiver could not read the request.
pub(crate) const MALFORMED: u8 = 3;
/// The receiver begins with a snapshot ([`crate::Group::require_snapshot`]).
pub(crate) const WANTS_SNAPSHOT: u8 = 4;

/// The receiver's disk is all but full ([`crate::GroupRegistry::takes_commands`]).
pub(crate) const NO_ROOM: u8 = 5;

type Error = RPCError<TypeConfig>;

pub(crate) fn unreachable(link: &Link, reason: &str) -> Error {
    RPCError::Unreachable(Unreachable::from_string(format!(
        "node {}: {reason}",
        link.peer().0
    )))
}

pub(crate) fn lost(link: &Link) -> Error {
    RPCError::Network(NetworkError::from_string(format!(
        "node {}: link lost",
        link.peer().0
    )))
}

/// The body of a response behind its code.
pub(crate) fn answered(link: &Link, mut body: Bytes) -> Result<Bytes, Error> {
    match codec::get_u8(&mut body) {
        Ok(ANSWERED) => Ok(body),
        Ok(UNKNOWN_REPLICA) => Err(unreachable(link, "has no such replica")),
        Ok(GROUP_STOPPED) => Err(unreachable(link, "the group has stopped")),
        Ok(WANTS_SNAPSHOT) => Err(unreachable(
            link,
            "begins with a snapshot, not with the log",
        )),
        Ok(NO_ROOM) => Err(unreachable(link, "its disk is all but full")),
        Ok(MALFORMED) => Err(unreachable(link, "could not read the request")),
        Ok(code) => Err(unreachable(
            link,
            &format!("answered the unknown code {code}"),
        )),
        Err(error) => Err(unreachable(link, &error.to_string())),
    }
}

struct InFlight {
    sequence: u64,
    previous: Option<LogId>,
    last: Option<LogId>,
    response: Option<AppendResponse>,
    /// It carried no entries, and may never have been sent: a later success answers it.
    held: bool,
}

pub(crate) struct AppendStream<S> {
    exchange: Exchange,
    shard: ShardId,
    /// The replica that the requests are for.
    to: u64,
    input: S,
    input_done: bool,
    done: bool,
    sequence: u64,
    in_flight: VecDeque<InFlight>,
    held: Option<(u64, AppendRequest)>,
    hold: Pin<Box<Sleep>>,
    hold_armed: bool,
}

impl<S> AppendStream<S>
where
    S: Stream<Item = AppendRequest> + Unpin + Send + 'static,
{
    pub(crate) fn new(link: &Arc<Link>, shard: ShardId, to: u64, input: S) -> AppendStream<S> {
        AppendStream {
            exchange: link.exchange(),
            shard,
            to,
            input,
            input_done: false,
            done: false,
            sequence: 0,
            in_flight: VecDeque::new(),
            held: None,
            hold: Box::pin(tokio::time::sleep_until(Instant::now())),
            hold_armed: false,
        }
    }

    fn send(&self, sequence: u64, request: &AppendRequest) -> Result<(), Error> {
        let link = self.exchange.link();
        let sent = link.send(
            FrameKind::APPEND,
            self.shard,
            self.exchange.correlation(),
            |buffer| {
                codec::put_u64(buffer, self.to);
                codec::put_append_request(buffer, sequence, request);
            },
        );
        if sent {
            Ok(())
        } else {
            Err(unreachable(link, "link is down or full"))
        }
    }

    /// What is to be yielded next of what was answered.
    fn next_answer(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, Error>> {
        loop {
            let front = self.in_flight.front()?;
            if front.response.is_none() {
                let answer = self
                    .in_flight
                    .iter()
                    .find_map(|request| request.response.as_ref())?;
                if !front.held {
                    return None;
                }
                // Success of a later request implies that of the held one. Anything else is told
                // by the later one itself, and ends the stream.
                let success = matches!(answer, AppendResponse::Success);
                match self.in_flight.front_mut() {
                    Some(front) if success => front.response = Some(AppendResponse::Success),
                    _ => drop(self.in_flight.pop_front()),
                }
                continue;
            }
            let InFlight {
                previous,
                last,
                response,
                ..
            } = self.in_flight.pop_front()?;
            let response = response?;
            if matches!(response, AppendResponse::Conflict) && previous.is_none() {
                // openraft would panic: nothing can conflict with the beginning of the log.
                self.done = true;
                return Some(Err(unreachable(
                    self.exchange.link(),
                    "conflict at the beginning of the log",
                )));
            }
            let partial =
                matches!(&response, AppendResponse::PartialSuccess(matching) if *matching != last);
            let result = response.into_stream_result(previous, last);
            self.done = partial || result.is_err();
            return Some(Ok(result));
        }
    }

    /// Stores a response that arrived.
    fn take(&mut self, body: Bytes) -> Result<(), Error> {
        let link = Arc::clone(self.exchange.link());
        let mut body = answered(&link, body)?;
        let malformed = |error: codec::CodecError| unreachable(&link, &error.to_string());
        let sequence = codec::get_u64(&mut body).map_err(malformed)?;
        let response = codec::get_append_response(&mut body).map_err(malformed)?;
        // Below the front: a held request was answered by a later one's success before its own
        // answer came.
        let place = self
            .in_flight
            .front()
            .and_then(|front| sequence.checked_sub(front.sequence));
        if let Some(place) = place {
            let waiting = usize::try_from(place)
                .ok()
                .and_then(|place| self.in_flight.get_mut(place));
            waiting
                .ok_or_else(|| unreachable(&link, "answered a request that was not sent"))?
                .response = Some(response);
        }
        Ok(())
    }

    /// Sends or holds a request.
    fn accept(&mut self, request: AppendRequest) -> Result<(), Error> {
        let sequence = self.sequence;
        self.sequence += 1;
        let previous = request.prev_log_id;
        let last = request
            .entries
            .last()
            .map(|entry| entry.log_id)
            .or(previous);
        let held = request.entries.is_empty() && sequence > 0;
        self.in_flight.push_back(InFlight {
            sequence,
            previous,
            last,
            response: None,
            held,
        });
        if held {
            self.held = Some((sequence, request));
            if !self.hold_armed {
                self.hold.as_mut().reset(Instant::now() + COMMIT_HOLD);
                self.hold_armed = true;
            }
            return Ok(());
        }
        self.held = None;
        self.send(sequence, &request)
    }

    fn send_held(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let elapsed = self.hold_armed && self.hold.as_mut().poll(cx).is_ready();
        if elapsed {
            self.hold_armed = false;
        }
        if (elapsed || self.input_done)
            && let Some((sequence, request)) = self.held.take()
        {
            return self.send(sequence, &request);
        }
        Ok(())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<StreamAppendResult<TypeConfig>, Error>>> {
        loop {
            if let Some(answer) = self.next_answer() {
                return Poll::Ready(Some(answer));
            }
            match self.exchange.poll_response(cx) {
                Poll::Ready(Ok(body)) => match self.take(body) {
                    Ok(()) => continue,
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                Poll::Ready(Err(_)) => return Poll::Ready(Some(Err(lost(self.exchange.link())))),
                Poll::Pending => {}
            }
            if !self.input_done && self.in_flight.len() < IN_FLIGHT_MAX {
                match self.input.poll_next_unpin(cx) {
                    Poll::Ready(Some(request)) => match self.accept(request) {
                        Ok(()) => continue,
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    },
                    Poll::Ready(None) => self.input_done = true,
                    Poll::Pending => {}
                }
            }
            if let Err(error) = self.send_held(cx) {
                return Poll::Ready(Some(Err(error)));
            }
            if self.input_done && self.in_flight.is_empty() {
                return Poll::Ready(None);
            }
            return Poll::Pending;
        }
    }
}

impl<S> Stream for AppendStream<S>
where
    S: Stream<Item = AppendRequest> + Unpin + Send + 'static,
{
    type Item = Result<StreamAppendResult<TypeConfig>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        let polled = self.poll(cx);
        if matches!(&polled, Poll::Ready(None | Some(Err(_)))) {
            self.done = true;
        }
        polled
    }
}
