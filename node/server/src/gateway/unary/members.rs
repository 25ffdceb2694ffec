//! `AddMembers`, `RemoveMembers` and `ListMembers`.

use carillon_core::{Command, ConversationId, Reply, UserId};
use carillon_proto::internal::{self, answer, query};
use carillon_proto::v1;

use super::page_token::MembersAfter;
use super::{Call, page_entries};
use crate::gateway::errors::Failure;
use crate::gateway::limits::{MEMBERS_MAX, PAGE_ENTRIES_DEFAULT};
use crate::query::conversation;

impl Call {
    pub(super) async fn add_members(
        self,
        request: v1::AddMembersRequest,
    ) -> Result<v1::AddMembersResponse, Failure> {
        let conversation = ConversationId::parse(request.conversation_id)?;
        let members = named_users(request.member_ids)?;
        members_within_limit(&self.user, &members)?;
        let slot = conversation.slot();
        let command = Command::AddMembers {
            conversation,
            actor: self.user.clone(),
            members,
        };
        let (added_ids, conversation) = self.change_members(slot, &command).await?;
        Ok(v1::AddMembersResponse {
            added_ids,
            conversation: Some(conversation),
        })
    }

    pub(super) async fn remove_members(
        self,
        request: v1::RemoveMembersRequest,
    ) -> Result<v1::RemoveMembersResponse, Failure> {
        let conversation = ConversationId::parse(request.conversation_id)?;
        let members = named_users(request.member_ids)?;
        // No group has more.
        within_limit(members.len())?;
        let slot = conversation.slot();
        let command = Command::RemoveMembers {
            conversation,
            actor: self.user.clone(),
            members,
        };
        let (removed_ids, conversation) = self.change_members(slot, &command).await?;
        Ok(v1::RemoveMembersResponse {
            removed_ids,
            conversation: Some(conversation),
        })
    }

    async fn change_members(
        &self,
        slot: carillon_core::Slot,
        command: &Command,
    ) -> Result<(Vec<String>, v1::Conversation), Failure> {
        match self.execute(slot, command).await? {
            Reply::Members { changed, summary } => {
                let changed = changed
                    .iter()
                    .map(|user| user.as_str().to_owned())
                    .collect();
                Ok((changed, conversation(&summary)))
            }
            other => Err(Failure::unexpected("a change of members", other)),
        }
    }

    pub(super) async fn list_members(
        self,
        request: v1::ListMembersRequest,
    ) -> Result<v1::ListMembersResponse, Failure> {
        let conversation = ConversationId::parse(request.conversation_id)?;
        let page_size = page_entries(request.page_size, PAGE_ENTRIES_DEFAULT)?;
        let after = MembersAfter::parse(&request.page_token)?;
        let query = internal::MembersQuery {
            user_id: self.user_id(),
            conversation_id: conversation.as_str().to_owned(),
            page_size,
            after_user_id: after
                .map(|after| after.0.as_str().to_owned())
                .unwrap_or_default(),
        };
        let mut page = match self
            .query(conversation.slot(), query::Kind::Members(query))
            .await?
        {
            answer::Kind::Members(page) => page,
            other => return Err(Failure::unexpected("a query for members", other)),
        };
        if !page.next_page_token.is_empty() {
            // Between nodes it is the last user; clients get it wrapped.
            page.next_page_token = MembersAfter(UserId::copied(&page.next_page_token)?).token();
        }
        Ok(page)
    }
}

/// The users of a change of members: each once, in byte order.
fn named_users(ids: Vec<String>) -> Result<Vec<UserId>, Failure> {
    if ids.is_empty() {
        return Err(Failure::invalid_argument(
            "MEMBERS_MISSING",
            "no user is named; give at least one",
        ));
    }
    distinct(ids)
}

/// The caller is a member, so a group with these has both; how many it has already is looked
/// at where its members are.
fn members_within_limit(caller: &UserId, members: &[UserId]) -> Result<(), Failure> {
    let others = members.iter().filter(|member| *member != caller);
    within_limit(others.count() + 1)
}

fn within_limit(members: usize) -> Result<(), Failure> {
    if members > MEMBERS_MAX {
        return Err(Failure::limit(
            "members_max",
            MEMBERS_MAX as u64,
            members as u64,
        ));
    }
    Ok(())
}

/// The first members of a group besides its creator: each once, in byte order.
pub(super) fn first_members(creator: &UserId, ids: Vec<String>) -> Result<Vec<UserId>, Failure> {
    let mut members = distinct(ids)?;
    members_within_limit(creator, &members)?;
    members.retain(|member| member != creator);
    Ok(members)
}

fn distinct(ids: Vec<String>) -> Result<Vec<UserId>, Failure> {
    let mut users = ids
        .into_iter()
        .map(UserId::parse)
        .collect::<Result<Vec<UserId>, _>>()?;
    users.sort_unstable();
    users.dedup();
    Ok(users)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("user-{number}")).collect()
    }

    #[test]
    fn users_are_counted_once() {
        let creator = UserId::copied("user-0").expect("an id");
        assert_eq!(
            first_members(&creator, ids(500)).expect("499 others").len(),
            499
        );
        let twice = [ids(499), ids(499)].concat();
        assert_eq!(named_users(twice).expect("each once").len(), 499);
    }

    #[test]
    fn the_limit_is_that_of_the_group() {
        let caller = UserId::copied("caller").expect("an id");
        let users = |count| named_users(ids(count)).expect("ids");
        let of_limit = |failure: Failure| {
            assert_eq!(
                (failure.code, failure.reason),
                (Code::ResourceExhausted, "LIMIT_EXCEEDED")
            );
            failure.metadata
        };
        let metadata = |actual: usize| {
            vec![
                ("limit", "members_max".to_owned()),
                ("max", "500".to_owned()),
                ("actual", actual.to_string()),
            ]
        };
        members_within_limit(&caller, &users(499)).expect("500 with the caller");
        let failure = members_within_limit(&caller, &users(500)).expect_err("501");
        assert_eq!(of_limit(failure), metadata(501));
        let failure = first_members(&caller, ids(500)).expect_err("501");
        assert_eq!(of_limit(failure), metadata(501));
        // Who calls is counted once.
        let member = UserId::copied("user-0").expect("an id");
        members_within_limit(&member, &users(500)).expect("500 with the caller");
        within_limit(500).expect("500 to remove");
        assert_eq!(of_limit(within_limit(501).expect_err("501")), metadata(501));
    }

    #[test]
    fn bad_lists() {
        assert_eq!(
            named_users(vec![]).expect_err("empty").reason,
            "MEMBERS_MISSING"
        );
        assert_eq!(
            named_users(vec!["a b".into()]).expect_err("a space").reason,
            "INVALID_ID"
        );
        let creator = UserId::copied("alice").expect("an id");
        assert!(first_members(&creator, vec![]).expect("alone").is_empty());
    }
}
