//! One stream to one node, from Hello to its end.
//!
//! Owner of the stream's two halves and of the clock of its liveness: `probe` is due when
//! something should have been answered and nothing was heard, `lost` when the probe was
//! not answered either.

use std::sync::Arc;
use std::time::Duration;

use carillon_proto::v1;
use carillon_proto::v1::chat_client::ChatClient;
use carillon_proto::v1::client_frame::Frame as ClientFrame;
use carillon_proto::v1::server_frame::Frame as ServerFrame;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::caller::{ANSWER_BYTES_MAX, describe};
use crate::endpoints::Endpoints;
use crate::error::{ClientError, Verdict, verdict};

/// The most sends in flight on one stream, as the protocol has it.
pub const SENDS_IN_FLIGHT_MAX: usize = 256;
/// Frames handed to the stream and not yet on the wire: all sends, and some for
/// heartbeats and cursors.
const OUTBOUND_FRAMES_MAX: usize = SENDS_IN_FLIGHT_MAX + 16;
/// An unanswered node is asked for a sign of life after this time …
const PROBE_AFTER: Duration = Duration::from_secs(1);
/// … and given up after this.
const LOST_AFTER: Duration = Duration::from_secs(4);
/// When the server names no heartbeat interval.
const HEARTBEAT_INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
/// The shortest heartbeat interval that is honoured.
const HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Who connects.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) user: String,
    pub(crate) device: String,
    pub(crate) platform: String,
}

/// An open stream.
pub(crate) struct Connection {
    /// Which endpoint, in `Endpoints`.
    pub(crate) index: usize,
    pub(crate) endpoint: String,
    pub(crate) welcome: v1::Welcome,
    pub(crate) opened_at: Instant,
    outbound: mpsc::Sender<v1::ClientFrame>,
    inbound: Streaming<v1::ServerFrame>,
    said_at: Instant,
    /// Since when an answer of any kind has been expected; `None`: none is.
    awaiting_since: Option<Instant>,
    probed: bool,
    nonce: u64,
}

/// Connects to the endpoint `index` and says Hello.
pub(crate) async fn open(
    endpoints: Arc<Endpoints>,
    index: usize,
    identity: Arc<Identity>,
    cursor: Option<u64>,
    open_timeout: Duration,
) -> Result<Connection, ClientError> {
    let endpoint = endpoints.name(index).to_owned();
    let hello = v1::Hello {
        user_id: identity.user.clone(),
        device_id: identity.device.clone(),
        platform: identity.platform.clone(),
        inbox_cursor: cursor,
    };
    let (outbound, frames) = mpsc::channel(OUTBOUND_FRAMES_MAX);
    outbound
        .try_send(client_frame(ClientFrame::Hello(hello)))
        .expect("an empty queue takes the first frame");
    let mut chat =
        ChatClient::new(endpoints.channel(index)).max_decoding_message_size(ANSWER_BYTES_MAX);
    let mut request = Request::new(ReceiverStream::new(frames));
    if let Some(authorization) = endpoints.credentials().authorization()? {
        request
            .metadata_mut()
            .insert("authorization", authorization);
    }
    let opening = async {
        let mut inbound = chat.connect(request).await?.into_inner();
        let first = inbound.message().await?;
        Ok::<_, Status>((inbound, first.and_then(|frame| frame.frame)))
    };
    let (inbound, first) = match timeout(open_timeout, opening).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(status)) => return Err(stream_error("connect", &endpoint, &status)),
        Err(_) => {
            return Err(ClientError::Timeout {
                what: "connect",
                after: open_timeout,
            });
        }
    };
    let welcome = match first {
        Some(ServerFrame::Welcome(welcome)) => welcome,
        Some(ServerFrame::Kick(kick)) => return Err(kicked_at_once(&endpoint, kick)),
        other => {
            return Err(unavailable(
                "connect",
                &endpoint,
                match other {
                    Some(_) => "the first frame was not a welcome",
                    None => "the node ended the stream before its welcome",
                },
            ));
        }
    };
    let now = Instant::now();
    Ok(Connection {
        index,
        endpoint,
        welcome,
        opened_at: now,
        outbound,
        inbound,
        said_at: now,
        awaiting_since: None,
        probed: false,
        nonce: 0,
    })
}

impl Connection {
    /// The next frame, or why there is none. Cancel-safe.
    pub(crate) async fn next_frame(&mut self) -> Result<ServerFrame, ClientError> {
        loop {
            match self.inbound.message().await {
                Ok(Some(v1::ServerFrame { frame: Some(frame) })) => return Ok(frame),
                // A frame kind of a newer server.
                Ok(Some(_)) => {}
                Ok(None) => return Err(self.lost_error("the node ended the stream")),
                Err(status) => return Err(self.status_error(&status)),
            }
        }
    }

    /// Something was heard; `more_expected` says whether answers are still due.
    pub(crate) fn heard(&mut self, more_expected: bool) {
        self.awaiting_since = more_expected.then(Instant::now);
        self.probed = false;
    }

    /// Hands a frame to the stream; false when it has no room or is gone.
    pub(crate) fn say(&mut self, frame: ClientFrame) -> bool {
        let answered = matches!(frame, ClientFrame::Send(_) | ClientFrame::Heartbeat(_));
        if self.outbound.try_send(client_frame(frame)).is_err() {
            return false;
        }
        self.said_at = Instant::now();
        if answered {
            self.awaiting_since.get_or_insert(self.said_at);
        }
        true
    }

    /// Does what is due by `now`: a heartbeat, a probe, or giving up.
    pub(crate) fn keep_alive(&mut self, now: Instant) -> Result<(), ClientError> {
        if self.awaiting_since.is_some_and(|at| now >= at + LOST_AFTER) {
            return Err(self.lost_error("the node does not answer"));
        }
        let probe = !self.probed
            && self
                .awaiting_since
                .is_some_and(|at| now >= at + PROBE_AFTER);
        if probe || now >= self.said_at + self.heartbeat_interval() {
            self.probed |= probe;
            self.nonce += 1;
            let nonce = self.nonce;
            if !self.say(ClientFrame::Heartbeat(v1::Heartbeat { nonce })) {
                // The queue is full, so nothing leaves: give up when that lasts.
                self.said_at = now;
                self.awaiting_since.get_or_insert(now);
            }
        }
        Ok(())
    }

    /// When `keep_alive` is due next.
    pub(crate) fn next_wake(&self) -> Instant {
        let heartbeat = self.said_at + self.heartbeat_interval();
        match self.awaiting_since {
            Some(at) if self.probed => heartbeat.min(at + LOST_AFTER),
            Some(at) => heartbeat.min(at + PROBE_AFTER),
            None => heartbeat,
        }
    }

    /// Sends in flight that the server allows.
    pub(crate) fn sends_in_flight_max(&self) -> usize {
        let allowed = self.welcome.limits.map_or(0, |l| l.sends_in_flight_max);
        match usize::try_from(allowed) {
            Ok(1..=SENDS_IN_FLIGHT_MAX) => allowed as usize,
            _ => SENDS_IN_FLIGHT_MAX,
        }
    }

    /// Entries of one Sync page that the server allows.
    pub(crate) fn page_entries_max(&self) -> u32 {
        const PROTOCOL_MAX: u32 = 500;
        match self.welcome.limits.map_or(0, |l| l.page_entries_max) {
            allowed @ 1..=PROTOCOL_MAX => allowed,
            _ => PROTOCOL_MAX,
        }
    }

    /// Says that nothing more will be sent, and waits until the server has heard it.
    pub(crate) async fn finish(self, limit: Duration) {
        let Self {
            outbound,
            mut inbound,
            ..
        } = self;
        drop(outbound);
        let ended = timeout(limit, async {
            while let Ok(Some(_)) = inbound.message().await {}
        });
        if ended.await.is_err() {
            tracing::debug!("the node did not end the stream in time");
        }
    }

    /// The connection counts as broken.
    pub(crate) fn lost_error(&self, message: &str) -> ClientError {
        ClientError::ConnectionLost {
            endpoint: self.endpoint.clone(),
            message: message.to_owned(),
        }
    }

    fn status_error(&self, status: &Status) -> ClientError {
        match verdict(status) {
            Verdict::Final => ClientError::from_status(status),
            Verdict::Retry => self.lost_error(&describe(status)),
        }
    }

    fn heartbeat_interval(&self) -> Duration {
        match self.welcome.heartbeat_interval_ms {
            0 => HEARTBEAT_INTERVAL_DEFAULT,
            ms => Duration::from_millis(ms.into()).max(HEARTBEAT_INTERVAL_MIN),
        }
    }
}

fn client_frame(frame: ClientFrame) -> v1::ClientFrame {
    v1::ClientFrame { frame: Some(frame) }
}

fn stream_error(what: &'static str, endpoint: &str, status: &Status) -> ClientError {
    match verdict(status) {
        Verdict::Final => ClientError::from_status(status),
        Verdict::Retry => unavailable(what, endpoint, &describe(status)),
    }
}

fn unavailable(what: &'static str, endpoint: &str, message: &str) -> ClientError {
    ClientError::Unavailable {
        what,
        endpoint: endpoint.to_owned(),
        message: message.to_owned(),
    }
}

fn kicked_at_once(endpoint: &str, kick: v1::Kick) -> ClientError {
    match kick.reason() {
        v1::kick::Reason::ProtocolError => ClientError::Protocol(kick.message),
        v1::kick::Reason::Replaced => ClientError::Replaced,
        _ => unavailable("connect", endpoint, &kick.message),
    }
}
