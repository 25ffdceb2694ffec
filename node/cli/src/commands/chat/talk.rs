//! The loop of a chat: what is typed, what comes, what is shown.

use std::collections::HashMap;
use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context;
use carillon_client::proto as v1;
use carillon_client::{
    Client, ClientError, ClientMessageId, ConversationId, Event, Range, Sending, Sent, text,
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::commands::chat::rooms::{Arrival, Rooms};
use crate::commands::chat::slash::{self, Line};
use crate::commands::chat::terminal::{Lines, Screen, Typed};
use crate::commands::chat::view::View;
use crate::commands::group::{all_members, role};
use crate::commands::messages::conversation_table;
use crate::output::Paint;
use crate::present;

/// Messages shown when a conversation is entered.
const HISTORY_MESSAGES: u32 = 20;
/// Conversations that `/list` shows.
const LIST_CONVERSATIONS: u32 = 50;
/// A message that is not acknowledged by then is mentioned.
const SLOW_SEND: Duration = Duration::from_secs(2);
/// News from one other conversation are told at most this often.
const ELSEWHERE_INTERVAL: Duration = Duration::from_secs(5);
/// How long leaving waits for what was said last.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// A message on its way, with the name that it goes by.
type OnItsWay = BoxFuture<'static, (ClientMessageId, Result<Sent, ClientError>)>;

/// See the module.
pub struct Talk {
    client: Client,
    screen: Screen,
    view: View,
    rooms: Rooms,
    sends: FuturesUnordered<OnItsWay>,
    /// Messages typed here, until their own copy has come back through the inbox.
    said_here: HashSet<String>,
    /// Messages on their way: since when, and whether that was mentioned.
    waiting: HashMap<ClientMessageId, (Instant, bool)>,
    told_elsewhere: HashMap<String, Instant>,
    reads: watch::Sender<Option<(ConversationId, u64)>>,
    reader: JoinHandle<()>,
    connected: bool,
    /// False until the first catch-up is done: until then news are not told one by one.
    live: bool,
}

enum Go {
    On,
    Leave,
}

impl Talk {
    pub fn new(client: Client, screen: Screen) -> Self {
        let (reads, queue) = watch::channel(None);
        let reader = tokio::spawn(mark_reads(client.clone(), queue));
        Self {
            view: View::new(client.user(), Paint::for_stdout()),
            rooms: Rooms::new(client.user()),
            client,
            screen,
            sends: FuturesUnordered::new(),
            said_here: HashSet::new(),
            waiting: HashMap::new(),
            told_elsewhere: HashMap::new(),
            reads,
            reader,
            connected: false,
            live: false,
        }
    }

    /// Talks until the user leaves or the session is over.
    pub async fn run(
        &mut self,
        mut lines: Lines,
        start: Option<ConversationId>,
    ) -> anyhow::Result<()> {
        let mut events = self.client.events().context("events were taken before")?;
        self.begin(start).await?;
        lines.ready(self.prompt()).await;
        // When the session is over, somebody at a prompt still has to leave by it.
        let mut listening = true;
        loop {
            let slow = self.next_slow();
            // All arms are cancel-safe: queues and a timer.
            let go = tokio::select! {
                typed = lines.next() => {
                    let go = self.typed(typed).await?;
                    if matches!(go, Go::On) {
                        lines.ready(self.prompt()).await;
                    }
                    go
                }
                event = events.next(), if listening => match event {
                    Some(event) => self.event(event)?,
                    None if self.screen.interactive() => {
                        listening = false;
                        Go::On
                    }
                    None => Go::Leave,
                },
                Some((id, outcome)) = self.sends.next() => {
                    self.answered(&id, outcome)?;
                    Go::On
                }
                () = sleep_until(slow.unwrap_or_else(Instant::now)), if slow.is_some() => {
                    self.mention_slow()?;
                    Go::On
                }
            };
            if matches!(go, Go::Leave) {
                return self.leave().await;
            }
        }
    }

    async fn begin(&mut self, start: Option<ConversationId>) -> anyhow::Result<()> {
        let list = self
            .client
            .list_conversations(LIST_CONVERSATIONS, "")
            .await
            .context("could not list your conversations")?;
        self.rooms.listed(&list.conversations);
        match start {
            Some(id) => self.enter(id.as_str()).await,
            None if list.conversations.is_empty() => self
                .screen
                .show("You have no conversations yet. /with USER begins one; /help shows more."),
            None => {
                self.show_list(&list.conversations)?;
                self.screen
                    .show(&self.view.notice("/switch N goes to one, /help shows more"))
            }
        }
    }

    fn prompt(&self) -> String {
        match self.rooms.current() {
            Some(id) => format!("{}> ", self.rooms.title(id)),
            None => "> ".to_owned(),
        }
    }

    async fn typed(&mut self, typed: Typed) -> anyhow::Result<Go> {
        let line = match typed {
            Typed::Line(line) => line,
            Typed::End => return Ok(Go::Leave),
            Typed::Failed(why) => {
                self.screen.show(&self.view.bad(&why))?;
                return Ok(Go::On);
            }
        };
        let outcome = match slash::parse(&line) {
            Line::Blank => Ok(()),
            Line::Quit => return Ok(Go::Leave),
            Line::Say(said) => self.say(&line, said).await,
            other => self.command(other).await,
        };
        if let Err(error) = outcome {
            if crate::failure::is_closed_pipe(&error) {
                return Err(error);
            }
            let text = format!("{error:#}");
            self.screen
                .show(&self.view.bad(&present::printable(&text)))?;
        }
        Ok(Go::On)
    }

    async fn command(&mut self, command: Line) -> anyhow::Result<()> {
        match command {
            Line::List => {
                let list = self
                    .client
                    .list_conversations(LIST_CONVERSATIONS, "")
                    .await
                    .context("could not list your conversations")?;
                self.rooms.listed(&list.conversations);
                self.show_list(&list.conversations)
            }
            Line::Switch(wanted) => match self.rooms.find(&wanted) {
                Some(id) => self.enter(&id).await,
                // Perhaps it is an id that the list does not show.
                None => self.enter(&wanted).await,
            },
            Line::With(user) => {
                let id = ConversationId::direct(self.client.user(), &user);
                self.enter(id.as_str()).await
            }
            Line::New { name, members } => {
                let members: Vec<&str> = members.iter().map(String::as_str).collect();
                let group = self
                    .client
                    .create_group(None, &name, &members)
                    .await
                    .context("could not create the group")?;
                self.rooms.enter(&group.conversation_id, &group.name);
                self.enter(&group.conversation_id).await
            }
            Line::Add(members) => {
                let id = self.here()?;
                let members: Vec<&str> = members.iter().map(String::as_str).collect();
                let added = self
                    .client
                    .add_members(&id, &members)
                    .await
                    .context("could not add them")?;
                if added.added_ids.is_empty() {
                    self.screen
                        .show(&self.view.notice("they are members already"))?;
                }
                Ok(())
            }
            Line::Members => self.members().await,
            Line::History(count) => self.earlier(count).await,
            Line::Read => {
                let id = self.here()?;
                let read = self
                    .client
                    .mark_read(&id, self.rooms.get(&id).map_or(0, |room| room.shown_seq))
                    .await
                    .context("could not mark it as read")?;
                self.rooms.read(&id);
                let text = format!(
                    "read up to number {}, {} unread",
                    read.read_seq, read.unread
                );
                self.screen.show(&self.view.notice(&text))
            }
            Line::Help => self.screen.show(slash::HELP),
            Line::Wrong(why) => self.screen.show(&self.view.warning(&why)),
            Line::Blank | Line::Say(_) | Line::Quit => Ok(()),
        }
    }

    fn here(&self) -> anyhow::Result<String> {
        self.rooms
            .current()
            .map(str::to_owned)
            .context("you are in no conversation; /with USER or /switch N goes to one")
    }

    fn show_list(&mut self, list: &[v1::ConversationSummary]) -> anyhow::Result<()> {
        let table = conversation_table(list, self.client.user());
        let lines: Vec<String> = table.lines().map(|l| l.trim_end().to_owned()).collect();
        self.screen.show(&lines.join("\n"))
    }

    /// Goes to a conversation and shows its newest messages.
    async fn enter(&mut self, id: &str) -> anyhow::Result<()> {
        let is_direct = ConversationId::from(id)
            .direct_peer(self.client.user())
            .is_some();
        let name = if is_direct {
            String::new()
        } else {
            let conversation = self.client.get_conversation(id).await;
            conversation
                .with_context(|| format!("could not go to {id}"))?
                .name
        };
        let page = match self
            .client
            .get_messages(id, Range::newest(HISTORY_MESSAGES))
            .await
        {
            Ok(page) => page,
            // A direct conversation begins with its first message.
            Err(ClientError::ConversationNotFound(_)) if is_direct => {
                v1::GetMessagesResponse::default()
            }
            Err(error) => return Err(error).with_context(|| format!("could not read {id}")),
        };
        self.rooms.enter(id, &name);
        let title = self.rooms.title(id);
        self.screen.show(&self.view.heading(&title, id))?;
        if page.messages.is_empty() {
            self.screen
                .show(&self.view.notice("nothing was said here yet"))?;
        }
        for message in page.messages.iter().rev() {
            self.rooms.shown(id, message.seq);
            self.screen.show(&self.view.message(message))?;
        }
        self.read_up_to_shown();
        Ok(())
    }

    /// Shows messages from before those that are shown.
    async fn earlier(&mut self, count: u32) -> anyhow::Result<()> {
        let id = self.here()?;
        let first = self.rooms.get(&id).map_or(0, |room| room.first_seq);
        if first == 1 {
            return self.screen.show(&self.view.notice("that is the beginning"));
        }
        let range = Range {
            from_seq: first.saturating_sub(1),
            ..Range::newest(count)
        };
        let mut page = self
            .client
            .get_messages(&id, range)
            .await
            .with_context(|| format!("could not read {id}"))?;
        page.messages.reverse();
        if page.messages.is_empty() {
            return self
                .screen
                .show(&self.view.notice("there is nothing before"));
        }
        for message in &page.messages {
            self.rooms.shown(&id, message.seq);
        }
        self.screen.show(&self.view.earlier(&page.messages))
    }

    async fn members(&mut self) -> anyhow::Result<()> {
        let id = self.here()?;
        let list = all_members(self.client.api(), &id)
            .await
            .context("could not list the members")?;
        let names: Vec<String> = list
            .iter()
            .map(|member| {
                let name = self.view.paint.name(&present::printable(&member.user_id));
                match member.role() {
                    v1::MemberRole::Member => name,
                    other => format!("{name} ({})", role(other)),
                }
            })
            .collect();
        self.screen.show(&names.join(", "))
    }

    async fn say(&mut self, line: &str, said: String) -> anyhow::Result<()> {
        let here = self.here()?;
        let id = ClientMessageId::random();
        let sending: Sending = self
            .client
            .start_send(&here, id.clone(), text(said.clone()))
            .await
            .context("not sent")?;
        if self.screen.take_back(&self.prompt(), line.trim_end()) {
            let echo = v1::Message {
                conversation_id: here,
                sender_id: self.client.user().to_owned(),
                sent_at_ms: now_ms(),
                content: Some(text(said)),
                ..Default::default()
            };
            self.screen.show(&self.view.message(&echo))?;
        }
        self.said_here.insert(id.as_str().to_owned());
        self.waiting.insert(id.clone(), (Instant::now(), false));
        self.sends
            .push(sending.map(move |outcome| (id, outcome)).boxed());
        Ok(())
    }

    fn answered(
        &mut self,
        id: &ClientMessageId,
        outcome: Result<Sent, ClientError>,
    ) -> anyhow::Result<()> {
        let mentioned = self.waiting.remove(id).is_some_and(|(_, told)| told);
        match outcome {
            Ok(sent) if mentioned => {
                let text = format!("✓ stored as number {}", sent.seq);
                self.screen.show(&self.view.good(&text))
            }
            Ok(_) => Ok(()),
            Err(error) => {
                self.said_here.remove(id.as_str());
                let text = present::printable(&format!("not sent: {error}"));
                self.screen.show(&self.view.bad(&text))
            }
        }
    }

    fn next_slow(&self) -> Option<Instant> {
        let unmentioned = self.waiting.values().filter(|(_, told)| !told);
        unmentioned.map(|(since, _)| *since + SLOW_SEND).min()
    }

    fn mention_slow(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut slow = 0;
        for (since, told) in self.waiting.values_mut() {
            if !*told && *since + SLOW_SEND <= now {
                *told = true;
                slow += 1;
            }
        }
        if slow == 0 {
            return Ok(());
        }
        let what = if slow == 1 { "message" } else { "messages" };
        let text = format!("… {slow} {what} not stored yet, still trying");
        self.screen.show(&self.view.warning(&text))
    }

    fn event(&mut self, event: Event) -> anyhow::Result<Go> {
        match event {
            Event::Message(entry) => self.arrived(entry)?,
            Event::Connected { endpoint, .. } => {
                let text = if self.live {
                    self.view.good(&format!("✓ connected to {endpoint}"))
                } else {
                    self.view.notice(&format!("connected to {endpoint}"))
                };
                self.screen.show(&text)?;
                self.connected = true;
            }
            Event::CaughtUp => self.live = true,
            Event::Disconnected {
                error,
                reconnecting: true,
            } => {
                if self.connected {
                    let text = present::printable(&format!("✗ {error}; reconnecting"));
                    self.screen.show(&self.view.warning(&text))?;
                }
                self.connected = false;
            }
            Event::Disconnected { error, .. } => {
                let text = present::printable(&format!("✗ the chat is over: {error}"));
                self.screen.show(&self.view.bad(&text))?;
                if self.screen.interactive() {
                    self.screen.show(&self.view.notice("Ctrl-D leaves"))?;
                }
            }
            _ => {}
        }
        Ok(Go::On)
    }

    fn arrived(&mut self, entry: v1::InboxEntry) -> anyhow::Result<()> {
        let Some(message) = entry.message else {
            return Ok(());
        };
        let from_here = message.sender_id == self.client.user()
            && self.said_here.remove(&message.client_message_id);
        match self.rooms.arrived(&message, entry.unread) {
            Arrival::Show => {
                if !from_here {
                    self.screen.show(&self.view.message(&message))?;
                }
                self.read_up_to_shown();
                Ok(())
            }
            Arrival::Elsewhere(unread) if self.live => self.tell(&message, unread),
            Arrival::Elsewhere(_) | Arrival::Nothing => Ok(()),
        }
    }

    fn tell(&mut self, message: &v1::Message, unread: u32) -> anyhow::Result<()> {
        let now = Instant::now();
        let id = &message.conversation_id;
        let told = self.told_elsewhere.get(id);
        if told.is_some_and(|at| now < *at + ELSEWHERE_INTERVAL) {
            return Ok(());
        }
        self.told_elsewhere.insert(id.clone(), now);
        let title = self.rooms.title(id);
        self.screen
            .show(&self.view.elsewhere(&title, unread, message))
    }

    fn read_up_to_shown(&mut self) {
        let Some(id) = self.rooms.current().map(str::to_owned) else {
            return;
        };
        let seq = self.rooms.get(&id).map_or(0, |room| room.shown_seq);
        self.rooms.read(&id);
        if seq > 0 {
            self.reads.send_replace(Some((id.as_str().into(), seq)));
        }
    }

    /// Waits for what was said last, and for the read position.
    async fn leave(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + LEAVE_LIMIT;
        while let Ok(Some((id, outcome))) =
            tokio::time::timeout_at(deadline, self.sends.next()).await
        {
            self.answered(&id, outcome)?;
        }
        if !self.sends.is_empty() {
            let text = format!("{} messages may not be stored", self.sends.len());
            self.screen.show(&self.view.bad(&text))?;
        }
        // Closing the queue lets the reader finish what it has.
        self.reads = watch::channel(None).0;
        let _ = timeout(LEAVE_LIMIT, &mut self.reader).await;
        Ok(())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Tells the server what was read: the newest position, one call at a time.
async fn mark_reads(client: Client, mut reads: watch::Receiver<Option<(ConversationId, u64)>>) {
    while reads.changed().await.is_ok() {
        let newest = reads.borrow_and_update().clone();
        if let Some((conversation, seq)) = newest
            && let Err(error) = client.mark_read(conversation, seq).await
        {
            // The next message shown marks it again.
            tracing::debug!(%error, "could not mark as read");
        }
    }
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0))
}
