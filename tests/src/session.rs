//! One Connect stream for tests of the protocol: every frame in the test's hands.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use carillon_proto::v1::chat_client::ChatClient;
use carillon_proto::v1::{self, client_frame, server_frame};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

use crate::rpc;

/// How long a frame that has to come may take.
pub const FRAME_LIMIT: Duration = Duration::from_secs(10);
/// Frames that wait to be written.
const OUTBOUND_FRAMES_MAX: usize = 2_000;

/// How a stream ended.
#[derive(Debug)]
pub enum End {
    /// With OK.
    Closed,
    /// With an error.
    Failed(Status),
}

/// A stream, before or after Hello.
#[derive(Debug)]
pub struct Session {
    outbound: mpsc::Sender<v1::ClientFrame>,
    inbound: Streaming<v1::ServerFrame>,
    /// Frames that were read while waiting for others.
    backlog: VecDeque<server_frame::Frame>,
    requests: u64,
}

impl Session {
    /// Opens a stream and says nothing.
    pub async fn silent(endpoint: &Endpoint) -> Result<Self> {
        let channel = endpoint.connect().await?;
        let (outbound, frames) = mpsc::channel(OUTBOUND_FRAMES_MAX);
        let mut chat = ChatClient::new(channel);
        let answer = chat.connect(ReceiverStream::new(frames));
        let answer = timeout(FRAME_LIMIT, answer)
            .await
            .context("no response headers")??;
        Ok(Self {
            outbound,
            inbound: answer.into_inner(),
            backlog: VecDeque::new(),
            requests: 0,
        })
    }

    /// Opens a stream, says hello and is welcomed.
    pub async fn open(
        address: &str,
        user: &str,
        device: &str,
        cursor: Option<u64>,
    ) -> Result<(Self, v1::Welcome)> {
        Self::open_on(&rpc::endpoint(address)?, user, device, cursor).await
    }

    /// The same with an endpoint of the caller's making.
    pub async fn open_on(
        endpoint: &Endpoint,
        user: &str,
        device: &str,
        cursor: Option<u64>,
    ) -> Result<(Self, v1::Welcome)> {
        let mut session = Self::silent(endpoint).await?;
        session
            .push(client_frame::Frame::Hello(hello(user, device, cursor)))
            .await?;
        let welcome = session
            .expect("Welcome", |frame| match frame {
                server_frame::Frame::Welcome(welcome) => Some(welcome.clone()),
                _ => None,
            })
            .await?;
        Ok((session, welcome))
    }

    /// Writes a frame.
    pub async fn push(&self, frame: client_frame::Frame) -> Result<()> {
        let frame = v1::ClientFrame { frame: Some(frame) };
        let pushed = timeout(FRAME_LIMIT, self.outbound.send(frame)).await;
        pushed
            .context("the stream takes no frames")?
            .context("the stream is closed")
    }

    /// Sends a content; returns the request's id.
    pub async fn send(
        &mut self,
        conversation: &str,
        client_message_id: &str,
        content: v1::Content,
    ) -> Result<u64> {
        self.requests += 1;
        let request_id = self.requests;
        self.push(client_frame::Frame::Send(v1::Send {
            request_id,
            conversation_id: conversation.to_owned(),
            client_message_id: client_message_id.to_owned(),
            content: Some(content),
        }))
        .await?;
        Ok(request_id)
    }

    /// Sends a text and waits until it is stored.
    pub async fn say(&mut self, conversation: &str, id: &str, body: &str) -> Result<v1::Sent> {
        let request = self.send(conversation, id, rpc::text(body)).await?;
        self.sent(request).await
    }

    /// Ends the client's side.
    pub fn close_outbound(self) -> Streaming<v1::ServerFrame> {
        self.inbound
    }

    /// The next frame, from the backlog first; an error when the stream ends.
    pub async fn next(&mut self) -> Result<server_frame::Frame> {
        if let Some(frame) = self.backlog.pop_front() {
            return Ok(frame);
        }
        self.read(Instant::now() + FRAME_LIMIT).await
    }

    async fn read(&mut self, deadline: Instant) -> Result<server_frame::Frame> {
        let frame = timeout_at(deadline, self.inbound.message()).await;
        let frame = frame.context("no frame came in time")??;
        frame
            .context("the stream ended")?
            .frame
            .context("an empty frame")
    }

    /// Waits for the first frame of a kind; keeps the others for later.
    pub async fn expect<T>(
        &mut self,
        what: &str,
        pick: impl Fn(&server_frame::Frame) -> Option<T>,
    ) -> Result<T> {
        let found = self.backlog.iter().enumerate();
        let mut found = found.filter_map(|(index, frame)| Some((index, pick(frame)?)));
        if let Some((index, picked)) = found.next() {
            self.backlog.remove(index);
            return Ok(picked);
        }
        let deadline = Instant::now() + FRAME_LIMIT;
        loop {
            let frame = self.read(deadline).await;
            let frame = frame.with_context(|| {
                format!(
                    "while waiting for {what}; before it came {:?}",
                    self.backlog
                )
            })?;
            match pick(&frame) {
                Some(picked) => return Ok(picked),
                None => self.backlog.push_back(frame),
            }
        }
    }

    /// The answer to a send that succeeds.
    pub async fn sent(&mut self, request: u64) -> Result<v1::Sent> {
        let answer = self.answer(request).await?;
        answer.map_err(|error| anyhow::anyhow!("request {request} failed: {error:?}"))
    }

    /// The answer to a send that is refused.
    pub async fn refused(&mut self, request: u64) -> Result<v1::RequestError> {
        match self.answer(request).await? {
            Ok(sent) => bail!("request {request} had to be refused, but: {sent:?}"),
            Err(error) => Ok(error),
        }
    }

    async fn answer(&mut self, request: u64) -> Result<Result<v1::Sent, v1::RequestError>> {
        self.expect("an answer", |frame| match frame {
            server_frame::Frame::Sent(sent) if sent.request_id == request => Some(Ok(*sent)),
            server_frame::Frame::Error(error) if error.request_id == request => {
                Some(Err(error.clone()))
            }
            _ => None,
        })
        .await
    }

    /// The next delivery.
    pub async fn delivery(&mut self) -> Result<v1::InboxEntry> {
        self.expect("a delivery", |frame| match frame {
            server_frame::Frame::Delivery(entry) => Some(entry.clone()),
            _ => None,
        })
        .await
    }

    /// Sends a heartbeat and waits for its echo.
    pub async fn heartbeat(&mut self, nonce: u64) -> Result<v1::HeartbeatAck> {
        self.push(client_frame::Frame::Heartbeat(v1::Heartbeat { nonce }))
            .await?;
        self.expect("a HeartbeatAck", |frame| match frame {
            server_frame::Frame::HeartbeatAck(ack) if ack.nonce == nonce => Some(*ack),
            _ => None,
        })
        .await
    }

    /// The Kick that has to come.
    pub async fn kick(&mut self) -> Result<v1::Kick> {
        self.expect("a Kick", |frame| match frame {
            server_frame::Frame::Kick(kick) => Some(kick.clone()),
            _ => None,
        })
        .await
    }

    /// Reads until the stream ends; an error when it does not within the limit.
    pub async fn end(&mut self, limit: Duration) -> Result<End> {
        let deadline = Instant::now() + limit;
        loop {
            let frame = timeout_at(deadline, self.inbound.message()).await;
            match frame.with_context(|| format!("the stream is open after {limit:?}"))? {
                Ok(Some(frame)) => self.backlog.extend(frame.frame),
                Ok(None) => return Ok(End::Closed),
                Err(status) => return Ok(End::Failed(status)),
            }
        }
    }
}

/// A Hello.
pub fn hello(user: &str, device: &str, cursor: Option<u64>) -> v1::Hello {
    v1::Hello {
        user_id: user.to_owned(),
        device_id: device.to_owned(),
        platform: "test".to_owned(),
        inbox_cursor: cursor,
    }
}
