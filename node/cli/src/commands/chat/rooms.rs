//! What a chat knows of the user's conversations. Pure; owner of what was shown.

use std::collections::HashMap;

use carillon_client::proto as v1;

use crate::present;

/// One conversation.
#[derive(Debug, Clone, Default)]
pub struct Room {
    /// As the user knows it.
    pub title: String,
    /// Messages of others that were not read.
    pub unread: u32,
    /// The last message shown here.
    pub shown_seq: u64,
    /// The first message shown here; `/history` goes on before it. 0: nothing was.
    pub first_seq: u64,
}

/// All of them.
#[derive(Debug)]
pub struct Rooms {
    user: String,
    rooms: HashMap<String, Room>,
    /// The order in which they were listed last, for `/switch N`.
    listed: Vec<String>,
    current: Option<String>,
}

/// What to do about a message that came.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Show it: it belongs to the present conversation.
    Show,
    /// Tell about it: so many are unread elsewhere.
    Elsewhere(u32),
    /// It was shown before, or is of no interest.
    Nothing,
}

impl Rooms {
    pub fn new(user: &str) -> Self {
        Self {
            user: user.to_owned(),
            rooms: HashMap::new(),
            listed: Vec::new(),
            current: None,
        }
    }

    /// The conversation that is talked in.
    pub fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// Goes to a conversation.
    pub fn enter(&mut self, id: &str, name: &str) {
        let title = present::title(id, name, &self.user);
        let room = self.rooms.entry(id.to_owned()).or_default();
        if room.title.is_empty() || !name.is_empty() {
            room.title = title;
        }
        self.current = Some(id.to_owned());
    }

    /// What the server said about the conversations, in its order.
    pub fn listed(&mut self, list: &[v1::ConversationSummary]) {
        self.listed.clear();
        for summary in list {
            let id = &summary.conversation_id;
            let room = self.rooms.entry(id.clone()).or_default();
            room.title = present::title(id, &summary.name, &self.user);
            room.unread = summary.unread;
            self.listed.push(id.clone());
        }
    }

    pub fn get(&self, id: &str) -> Option<&Room> {
        self.rooms.get(id)
    }

    /// The title, as far as it is known.
    pub fn title(&self, id: &str) -> String {
        match self.rooms.get(id) {
            Some(room) => room.title.clone(),
            None => present::title(id, "", &self.user),
        }
    }

    /// Finds a conversation by its number in the list, its id, its title.
    pub fn find(&self, wanted: &str) -> Option<String> {
        if let Ok(number) = wanted.parse::<usize>()
            && let Some(id) = number.checked_sub(1).and_then(|i| self.listed.get(i))
        {
            return Some(id.clone());
        }
        if self.rooms.contains_key(wanted) {
            return Some(wanted.to_owned());
        }
        let same = |room: &Room| room.title.eq_ignore_ascii_case(wanted);
        let mut found = self.rooms.iter().filter(|(_, room)| same(room));
        let first = found.next().map(|(id, _)| id.clone());
        // Two of that name: neither is meant for sure.
        first.filter(|_| found.next().is_none())
    }

    /// A message came in the inbox.
    pub fn arrived(&mut self, message: &v1::Message, unread: u32) -> Arrival {
        let id = &message.conversation_id;
        let is_current = self.current.as_ref() == Some(id);
        let user = &self.user;
        let room = self.rooms.entry(id.clone()).or_insert_with(|| Room {
            title: present::title(id, "", user),
            ..Room::default()
        });
        if is_current {
            if message.seq <= room.shown_seq {
                return Arrival::Nothing;
            }
            room.shown(message.seq);
            return Arrival::Show;
        }
        if message.sender_id == self.user || present::is_notice(message) {
            return Arrival::Nothing;
        }
        // Entries read by Sync carry no count.
        room.unread = if unread > 0 { unread } else { room.unread + 1 };
        Arrival::Elsewhere(room.unread)
    }

    /// A message of the present conversation was shown.
    pub fn shown(&mut self, id: &str, seq: u64) {
        if let Some(room) = self.rooms.get_mut(id) {
            room.shown(seq);
        }
    }

    /// All of a conversation is read up to what was shown.
    pub fn read(&mut self, id: &str) {
        if let Some(room) = self.rooms.get_mut(id) {
            room.unread = 0;
        }
    }
}

impl Room {
    fn shown(&mut self, seq: u64) {
        self.shown_seq = self.shown_seq.max(seq);
        if self.first_seq == 0 || seq < self.first_seq {
            self.first_seq = seq;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(conversation: &str, sender: &str, seq: u64) -> v1::Message {
        v1::Message {
            conversation_id: conversation.into(),
            sender_id: sender.into(),
            seq,
            content: Some(carillon_client::text("hi")),
            ..Default::default()
        }
    }

    #[test]
    fn messages_are_shown_once_and_only_where_they_belong() {
        let mut rooms = Rooms::new("alice");
        rooms.enter("direct:alice:bob", "");
        rooms.shown("direct:alice:bob", 4);
        let bob = |seq| message("direct:alice:bob", "bob", seq);
        assert_eq!(rooms.arrived(&bob(4), 1), Arrival::Nothing);
        assert_eq!(rooms.arrived(&bob(5), 1), Arrival::Show);
        assert_eq!(rooms.arrived(&bob(5), 1), Arrival::Nothing);
        assert_eq!(
            rooms.arrived(&message("team", "bob", 1), 7),
            Arrival::Elsewhere(7)
        );
        assert_eq!(
            rooms.arrived(&message("team", "bob", 2), 0),
            Arrival::Elsewhere(8)
        );
        assert_eq!(
            rooms.arrived(&message("team", "alice", 3), 0),
            Arrival::Nothing
        );
        assert_eq!(rooms.get("direct:alice:bob").map(|r| r.first_seq), Some(4));
    }

    #[test]
    fn conversations_are_found_by_what_people_type() {
        let mut rooms = Rooms::new("alice");
        let summary = |id: &str, name: &str| v1::ConversationSummary {
            conversation_id: id.into(),
            name: name.into(),
            unread: 2,
            ..Default::default()
        };
        rooms.listed(&[
            summary("g1", "Team"),
            summary("direct:alice:bob", ""),
            summary("g2", "Twin"),
            summary("g3", "twin"),
        ]);
        assert_eq!(rooms.find("2").as_deref(), Some("direct:alice:bob"));
        assert_eq!(rooms.find("team").as_deref(), Some("g1"));
        assert_eq!(rooms.find("bob").as_deref(), Some("direct:alice:bob"));
        assert_eq!(rooms.find("g3").as_deref(), Some("g3"));
        assert_eq!(rooms.find("twin"), None);
        assert_eq!(rooms.find("9"), None);
    }
}
