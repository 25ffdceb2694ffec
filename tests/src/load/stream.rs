//! One open Connect stream of the load, on a connection of its own.

use std::time::Duration;

use carillon_proto::v1::{self, client_frame, server_frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::calls::is_transient;
use crate::access::Target;

/// Frames that wait for the connection.
const OUTBOUND_FRAMES_MAX: usize = 512;
/// From the start of a connection to Welcome.
const WELCOME_LIMIT: Duration = Duration::from_secs(3);

/// Why a stream could not be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The node is away or not ready: try another one.
    Transient(String),
    /// The node answered something that the protocol does not allow.
    Protocol(String),
}

/// A stream after Welcome.
pub(super) struct Open {
    outbound: mpsc::Sender<v1::ClientFrame>,
    pub inbound: Streaming<v1::ServerFrame>,
}

impl Open {
    /// Connects and says hello.
    pub async fn connect(
        target: &Target,
        hello: v1::Hello,
    ) -> Result<(Self, v1::Welcome), OpenError> {
        match tokio::time::timeout(WELCOME_LIMIT, Self::try_connect(target, hello)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(OpenError::Transient(format!(
                "no Welcome within {WELCOME_LIMIT:?}"
            ))),
        }
    }

    async fn try_connect(
        target: &Target,
        hello: v1::Hello,
    ) -> Result<(Self, v1::Welcome), OpenError> {
        let mut chat = target
            .connect()
            .await
            .map_err(|error| OpenError::Transient(error.to_string()))?;
        let (outbound, frames) = mpsc::channel(OUTBOUND_FRAMES_MAX);
        let hello = client_frame::Frame::Hello(hello);
        outbound
            .try_send(v1::ClientFrame { frame: Some(hello) })
            .map_err(|error| OpenError::Protocol(error.to_string()))?;
        let answer = chat.connect(ReceiverStream::new(frames)).await;
        let mut inbound = answer.map_err(failed)?.into_inner();
        let first = inbound.message().await.map_err(failed)?;
        match first.and_then(|frame| frame.frame) {
            Some(server_frame::Frame::Welcome(welcome)) => {
                Ok((Self { outbound, inbound }, welcome))
            }
            Some(server_frame::Frame::Kick(kick))
                if kick.reason() == v1::kick::Reason::Draining =>
            {
                Err(OpenError::Transient("the node is draining".to_owned()))
            }
            None => Err(OpenError::Transient("the stream ended at once".to_owned())),
            Some(other) => Err(OpenError::Protocol(format!(
                "not welcomed but answered with {other:?}"
            ))),
        }
    }

    /// Queues a frame; false when the queue is full or the connection gone.
    pub fn push(&self, frame: client_frame::Frame) -> bool {
        let frame = v1::ClientFrame { frame: Some(frame) };
        self.outbound.try_send(frame).is_ok()
    }
}

fn failed(status: tonic::Status) -> OpenError {
    if is_transient(status.code()) {
        OpenError::Transient(status.to_string())
    } else {
        OpenError::Protocol(status.to_string())
    }
}
