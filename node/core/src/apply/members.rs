//! Groups: creating them, adding and removing members.
//!
//! Every change of members is an entry of the timeline (a notice), and its seq is where a
//! stay begins or ends. A member who left is kept until the notice of it is delivered; the
//! next change of members after that forgets them.
//!
//! Invariants: `head.member_count` = the records without `left_seq`, `≤ MEMBERS_MAX`; a
//! group with members has exactly one owner.

use super::timeline::{NewEntry, append, delivered_upto};
use super::{Context, EARLIER_STAYS_MAX, Effects, Event, MEMBERS_MAX};
use crate::ids::{ConversationId, ConversationName, RequestId, Seq, UserId};
use crate::keys::ConversationKeys;
use crate::notice;
use crate::read::members_all;
use crate::records::{
    ConversationHead, ConversationInfo, ConversationKind, MemberRecord, MessageRecord, Role, Stay,
};
use crate::reply::{ConversationSummary, Refusal, Reply};
use crate::view::{View, load};

pub(super) struct NewGroup {
    pub name: ConversationName,
    pub creator: UserId,
    pub members: Vec<UserId>,
    pub request_id: RequestId,
}

/// In byte order, each once.
fn distinct(mut users: Vec<UserId>) -> Vec<UserId> {
    users.sort_unstable();
    users.dedup();
    users
}

/// More users than any limit allows count as `u32::MAX`.
fn count(users: usize) -> u32 {
    u32::try_from(users).unwrap_or(u32::MAX)
}

fn within_limit(actual: u32) -> Result<(), Refusal> {
    if actual > MEMBERS_MAX {
        return Err(Refusal::MembersLimit {
            max: MEMBERS_MAX,
            actual,
        });
    }
    Ok(())
}

pub(super) fn create(
    view: &mut impl View,
    cx: &mut Context<'_>,
    conversation: ConversationId,
    group: NewGroup,
) -> Effects {
    if conversation.is_direct() {
        return Refusal::DirectFixed.into();
    }
    let keys = ConversationKeys::new(&conversation);
    if let Some(info) = load::<ConversationInfo>(view, &keys.info()) {
        let same_request = info.request_id.as_ref() == Some(&group.request_id)
            && info.creator.as_ref() == Some(&group.creator);
        if !same_request {
            return Refusal::ConversationExists.into();
        }
        let head = load::<ConversationHead>(view, &keys.head()).unwrap_or_default();
        return Effects::reply(Reply::Created {
            summary: ConversationSummary::new(&conversation, info, &head),
            existed: true,
        });
    }
    let mut members = group.members;
    members.push(group.creator.clone());
    let members = distinct(members);
    if let Err(refusal) = within_limit(count(members.len())) {
        return refusal.into();
    }
    let mut head = ConversationHead {
        member_count: count(members.len()),
        ..ConversationHead::default()
    };
    let entry = NewEntry {
        sender: group.creator.clone(),
        client_message_id: None,
        content: notice::created(&group.creator, &group.name, members.iter()),
    };
    let message = append(view, cx, &keys, &mut head, entry);
    for member in &members {
        let role = if *member == group.creator {
            Role::Owner
        } else {
            Role::Member
        };
        let record = MemberRecord::joined(role, head.last_seq);
        cx.save(view, &keys.member(member), &record);
    }
    let info = ConversationInfo {
        kind: ConversationKind::Group,
        name: group.name,
        creator: Some(group.creator),
        created_at: message.at,
        request_id: Some(group.request_id),
    };
    cx.save(view, &keys.info(), &info);
    cx.save(view, &keys.head(), &head);
    let reply = Reply::Created {
        summary: ConversationSummary::new(&conversation, info, &head),
        existed: false,
    };
    stored(reply, conversation, head.last_seq, message)
}

fn stored(reply: Reply, conversation: ConversationId, seq: Seq, message: MessageRecord) -> Effects {
    Effects {
        reply,
        event: Some(Event::Stored {
            conversation,
            seq,
            message,
        }),
    }
}

/// A group as `actor`, a current member, may change it.
struct OpenGroup {
    info: ConversationInfo,
    head: ConversationHead,
    /// By user id, with those who left a while ago.
    members: Vec<(UserId, MemberRecord)>,
    actor_role: Role,
    delivered_upto: Seq,
}

impl OpenGroup {
    fn open(
        view: &impl View,
        keys: &ConversationKeys<'_>,
        conversation: &ConversationId,
        actor: &UserId,
    ) -> Result<OpenGroup, Refusal> {
        let (Some(info), Some(head)) = (
            load::<ConversationInfo>(view, &keys.info()),
            load::<ConversationHead>(view, &keys.head()),
        ) else {
            return Err(Refusal::ConversationNotFound);
        };
        let members = members_all(view, conversation);
        let delivered_upto = delivered_upto(view, keys, &head);
        let actor_role = match find(&members, actor) {
            Some(member) if member.is_current() => member.role,
            _ => return Err(Refusal::NotAMember),
        };
        if info.kind == ConversationKind::Direct {
            return Err(Refusal::DirectFixed);
        }
        Ok(OpenGroup {
            info,
            head,
            members,
            actor_role,
            delivered_upto,
        })
    }

    fn is_current(&self, user: &UserId) -> bool {
        find(&self.members, user).is_some_and(MemberRecord::is_current)
    }

    fn unchanged(self, conversation: &ConversationId) -> Effects {
        Effects::reply(Reply::Members {
            changed: Vec::new(),
            summary: ConversationSummary::new(conversation, self.info, &self.head),
        })
    }

    /// Deletes the records of those who left and have been given the notice of it.
    fn forget_departed(&self, view: &mut impl View, keys: &ConversationKeys<'_>) {
        for (user, member) in &self.members {
            if member
                .left_seq
                .is_some_and(|left| left <= self.delivered_upto)
            {
                view.delete(&keys.member(user));
            }
        }
    }
}

fn find<'a>(members: &'a [(UserId, MemberRecord)], user: &UserId) -> Option<&'a MemberRecord> {
    let at = members
        .binary_search_by(|(member, _)| member.cmp(user))
        .ok()?;
    Some(&members[at].1)
}

/// The stays that a user who joins again has still to be given, the oldest first.
fn undelivered_stays(member: &MemberRecord, delivered_upto: Seq) -> Vec<Stay> {
    let last = member.left_seq.map(|left| Stay {
        joined: member.joined_seq,
        left,
    });
    let stays = member.earlier.iter().copied().chain(last);
    stays.filter(|stay| stay.left > delivered_upto).collect()
}

pub(super) fn add(
    view: &mut impl View,
    cx: &mut Context<'_>,
    conversation: ConversationId,
    actor: UserId,
    members: Vec<UserId>,
) -> Result<Effects, Refusal> {
    let keys = ConversationKeys::new(&conversation);
    let mut group = OpenGroup::open(view, &keys, &conversation, &actor)?;
    let mut added = distinct(members);
    added.retain(|user| !group.is_current(user));
    if added.is_empty() {
        return Ok(group.unchanged(&conversation));
    }
    let member_count = group.head.member_count.saturating_add(count(added.len()));
    within_limit(member_count)?;
    let mut records = Vec::with_capacity(added.len());
    let joined_seq = group.head.last_seq.next();
    for user in &added {
        let mut record = MemberRecord::joined(Role::Member, joined_seq);
        if let Some(before) = find(&group.members, user) {
            record.earlier = undelivered_stays(before, group.delivered_upto);
        }
        if record.earlier.len() > EARLIER_STAYS_MAX {
            return Err(Refusal::NotDeliveredYet);
        }
        records.push(record);
    }
    group.forget_departed(view, &keys);
    let entry = NewEntry {
        content: notice::members_added(&actor, &added),
        sender: actor,
        client_message_id: None,
    };
    let message = append(view, cx, &keys, &mut group.head, entry);
    for (user, record) in added.iter().zip(&records) {
        cx.save(view, &keys.member(user), record);
    }
    group.head.member_count = member_count;
    Ok(changed(view, cx, conversation, group, added, message))
}

pub(super) fn remove(
    view: &mut impl View,
    cx: &mut Context<'_>,
    conversation: ConversationId,
    actor: UserId,
    members: Vec<UserId>,
) -> Result<Effects, Refusal> {
    let keys = ConversationKeys::new(&conversation);
    let mut group = OpenGroup::open(view, &keys, &conversation, &actor)?;
    if group.actor_role != Role::Owner && members.iter().any(|user| *user != actor) {
        return Err(Refusal::NotOwner);
    }
    let mut removed = distinct(members);
    removed.retain(|user| group.is_current(user));
    if removed.is_empty() {
        return Ok(group.unchanged(&conversation));
    }
    let is_removed = |user: &UserId| removed.binary_search(user).is_ok();
    let owner_leaves = group.members.iter().any(|(user, member)| {
        member.is_current() && member.role == Role::Owner && is_removed(user)
    });
    let new_owner = if owner_leaves {
        let rest = group
            .members
            .iter()
            .filter(|(user, member)| member.is_current() && !is_removed(user));
        rest.min_by(|(a, one), (b, other)| (one.joined_seq, a).cmp(&(other.joined_seq, b)))
            .map(|(user, _)| user.clone())
    } else {
        None
    };
    group.forget_departed(view, &keys);
    let entry = NewEntry {
        content: notice::members_removed(&actor, &removed, new_owner.as_ref()),
        sender: actor,
        client_message_id: None,
    };
    let message = append(view, cx, &keys, &mut group.head, entry);
    for (user, member) in &mut group.members {
        if is_removed(user) {
            member.left_seq = Some(group.head.last_seq);
            member.role = Role::Member;
            cx.save(view, &keys.member(user), member);
        } else if new_owner.as_ref() == Some(user) {
            member.role = Role::Owner;
            cx.save(view, &keys.member(user), member);
        }
    }
    group.head.member_count -= count(removed.len());
    Ok(changed(view, cx, conversation, group, removed, message))
}

/// Saves the head after a change and reports it.
fn changed(
    view: &mut impl View,
    cx: &mut Context<'_>,
    conversation: ConversationId,
    group: OpenGroup,
    changed: Vec<UserId>,
    message: MessageRecord,
) -> Effects {
    let keys = ConversationKeys::new(&conversation);
    cx.save(view, &keys.head(), &group.head);
    let reply = Reply::Members {
        changed,
        summary: ConversationSummary::new(&conversation, group.info, &group.head),
    };
    stored(reply, conversation, group.head.last_seq, message)
}
