//! What a line typed in a chat means.

/// A line, understood.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Nothing.
    Blank,
    /// Something to say.
    Say(String),
    List,
    /// More of what was said before: so many messages.
    History(u32),
    /// A conversation by its number in the list, its id, its name, or the other user.
    Switch(String),
    With(String),
    /// A group's name and first members.
    New {
        name: String,
        members: Vec<String>,
    },
    Add(Vec<String>),
    Members,
    Read,
    Help,
    Quit,
    /// Not understood; what to say about it.
    Wrong(String),
}

/// What `/help` says.
pub const HELP: &str = "\
/list                   your conversations
/switch N|ID|NAME       go to one of them
/with USER              talk to somebody
/new NAME USER …        create a group and go there
/add USER …             add members to this group
/members                who is here
/history [N]            N messages from before
/read                   mark all of this as read
/help                   this
/quit                   leave (so does Ctrl-D)
//text                  say “/text”";

/// Messages that `/history` adds when no number is given.
const HISTORY_DEFAULT: u32 = 20;
/// The most that it adds.
const HISTORY_MAX: u32 = 500;

/// Understands a line.
pub fn parse(line: &str) -> Line {
    let line = line.trim();
    if line.is_empty() {
        return Line::Blank;
    }
    let Some(command) = line.strip_prefix('/') else {
        return Line::Say(line.to_owned());
    };
    if command.starts_with('/') {
        return Line::Say(command.to_owned());
    }
    let mut words = command.split_whitespace();
    let name = words.next().unwrap_or_default();
    let rest: Vec<String> = words.map(str::to_owned).collect();
    match (name, rest.as_slice()) {
        ("list" | "l", []) => Line::List,
        ("history" | "h", []) => Line::History(HISTORY_DEFAULT),
        ("history" | "h", [count]) => match count.parse() {
            Ok(count @ 1..=HISTORY_MAX) => Line::History(count),
            _ => Line::Wrong(format!("/history takes a number from 1 to {HISTORY_MAX}")),
        },
        ("switch" | "s", [_, ..]) => Line::Switch(rest.join(" ")),
        ("with" | "w", [user]) => Line::With(user.clone()),
        ("new", [name, members @ ..]) => Line::New {
            name: name.clone(),
            members: members.to_vec(),
        },
        ("add", [_, ..]) => Line::Add(rest),
        ("members" | "m", []) => Line::Members,
        ("read" | "r", []) => Line::Read,
        ("help" | "?", []) => Line::Help,
        ("quit" | "q" | "exit", []) => Line::Quit,
        (
            "list" | "switch" | "with" | "new" | "add" | "members" | "read" | "help" | "quit"
            | "history",
            _,
        ) => Line::Wrong(format!("/{name} is used differently, see /help")),
        _ => Line::Wrong(format!("there is no /{name}, see /help")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn lines_mean_what_they_say() {
        let rows = [
            ("  ", Line::Blank),
            (" hello there ", Line::Say("hello there".into())),
            ("//shrug", Line::Say("/shrug".into())),
            ("/list", Line::List),
            ("/history", Line::History(HISTORY_DEFAULT)),
            ("/history 5", Line::History(5)),
            ("/switch My Team", Line::Switch("My Team".into())),
            ("/with bob", Line::With("bob".into())),
            (
                "/new team bob carol",
                Line::New {
                    name: "team".into(),
                    members: words(&["bob", "carol"]),
                },
            ),
            ("/add bob carol", Line::Add(words(&["bob", "carol"]))),
            ("/q", Line::Quit),
        ];
        for (typed, meant) in rows {
            assert_eq!(parse(typed), meant, "{typed:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_never_sent() {
        for typed in [
            "/",
            "/nope",
            "/with",
            "/with a b",
            "/history 0",
            "/quit now",
        ] {
            assert!(matches!(parse(typed), Line::Wrong(_)), "{typed:?}");
        }
    }
}
