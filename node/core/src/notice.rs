//! The notices that the core itself writes into timelines, as encoded protobuf `Content`
//! (`carillon.v1`, chat.proto): who is really added or removed is known only here.
//!
//! A protobuf field is a tag (`number << 3 | 2` for everything here), a length and bytes;
//! empty strings are left out, as protobuf does.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{put_bytes, put_varint, varint_length};
use crate::ids::{ConversationName, UserId};

/// `Content.notice`.
const CONTENT_NOTICE: u8 = 3;
/// `Notice.created`, `.members_added`, `.members_removed`.
const CREATED: u8 = 1;
const MEMBERS_ADDED: u8 = 2;
const MEMBERS_REMOVED: u8 = 3;

const fn length_delimited(field: u8) -> u8 {
    field << 3 | 2
}

fn put_field(out: &mut BytesMut, field: u8, bytes: &[u8]) {
    out.put_u8(length_delimited(field));
    put_bytes(out, bytes);
}

/// Leaves the field out when it is empty.
fn put_string(out: &mut BytesMut, field: u8, text: &[u8]) {
    if !text.is_empty() {
        put_field(out, field, text);
    }
}

/// `Content { notice: Notice { <change>: <body> } }`.
fn content(change: u8, body: &[u8]) -> Bytes {
    let notice_length = 1 + varint_length(body.len() as u64) + body.len();
    let mut out = BytesMut::with_capacity(1 + varint_length(notice_length as u64) + notice_length);
    out.put_u8(length_delimited(CONTENT_NOTICE));
    put_varint(&mut out, notice_length as u64);
    put_field(&mut out, change, body);
    out.freeze()
}

/// `ConversationCreated { actor_id, name, member_ids }`.
pub fn created<'a>(
    actor: &UserId,
    name: &ConversationName,
    members: impl Iterator<Item = &'a UserId>,
) -> Bytes {
    let mut body = BytesMut::new();
    put_string(&mut body, 1, actor.as_bytes());
    put_string(&mut body, 2, name.as_str().as_bytes());
    for member in members {
        put_field(&mut body, 3, member.as_bytes());
    }
    content(CREATED, &body)
}

/// `MembersAdded { actor_id, member_ids }`.
pub fn members_added(actor: &UserId, members: &[UserId]) -> Bytes {
    let mut body = BytesMut::new();
    put_string(&mut body, 1, actor.as_bytes());
    for member in members {
        put_field(&mut body, 2, member.as_bytes());
    }
    content(MEMBERS_ADDED, &body)
}

/// `MembersRemoved { actor_id, member_ids, new_owner_id }`.
pub fn members_removed(actor: &UserId, members: &[UserId], new_owner: Option<&UserId>) -> Bytes {
    let mut body = BytesMut::new();
    put_string(&mut body, 1, actor.as_bytes());
    for member in members {
        put_field(&mut body, 2, member.as_bytes());
    }
    if let Some(owner) = new_owner {
        put_string(&mut body, 3, owner.as_bytes());
    }
    content(MEMBERS_REMOVED, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::copied(id).expect("a valid user id")
    }

    // The expected bytes are written out by hand from the protobuf encoding guide.

    #[test]
    fn created_on_the_wire() {
        let name = ConversationName::parse("Team").expect("a valid name");
        let (al, bo) = (user("al"), user("bo"));
        let wire = created(&al, &name, [&al, &bo].into_iter());
        assert_eq!(
            wire[..],
            *b"\x1a\x14\x0a\x12\x0a\x02al\x12\x04Team\x1a\x02al\x1a\x02bo"
        );
        let unnamed = created(&al, &ConversationName::default(), [&al].into_iter());
        assert_eq!(unnamed[..], *b"\x1a\x0a\x0a\x08\x0a\x02al\x1a\x02al");
    }

    #[test]
    fn members_added_on_the_wire() {
        let wire = members_added(&user("al"), &[user("bo"), user("cy")]);
        assert_eq!(wire[..], *b"\x1a\x0e\x12\x0c\x0a\x02al\x12\x02bo\x12\x02cy");
    }

    #[test]
    fn members_removed_on_the_wire() {
        let (al, bo) = (user("al"), user("bo"));
        let wire = members_removed(&al, std::slice::from_ref(&al), Some(&bo));
        assert_eq!(wire[..], *b"\x1a\x0e\x1a\x0c\x0a\x02al\x12\x02al\x1a\x02bo");
        let wire = members_removed(&al, std::slice::from_ref(&bo), None);
        assert_eq!(wire[..], *b"\x1a\x0a\x1a\x08\x0a\x02al\x12\x02bo");
    }

    #[test]
    fn lengths_above_127_take_two_bytes() {
        let long = user(&"x".repeat(64));
        let wire = members_added(&long, &[long.clone(), long.clone()]);
        // body: 3 × (2 + 64) = 198 = 0xc6 0x01; notice: 1 + 2 + 198 = 201 = 0xc9 0x01.
        assert_eq!(wire[..6], *b"\x1a\xc9\x01\x12\xc6\x01");
        assert_eq!(wire.len(), 3 + 201);
    }
}
