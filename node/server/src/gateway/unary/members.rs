//! `AddMembers`, `RemoveMembers` and `ListMembers`.

use carillon_core::{Command, ConversationId, Reply, UserId};
use carillon_proto::internal::{self, answer, query};
use carillon_proto::v1;

use super::page_token::MembersAfter;
use super::{Call, page_entries};
use crate::gateway::errors::Failure;
use crate::gateway::limits::{MEMBERS_ADDED_MAX, MEMBERS_MAX, PAGE_ENTRIES_DEFAULT};
use crate::query::conversation;

impl Call {
    pub(super) async fn add_members(
        self,
        request: v1::AddMembersRequest,
    ) -> Result<v1::AddMembersResponse, Failure> {
        let conversation = ConversationId::parse(request.conversation_id)?;
        let members = named_users(request.member_ids, MEMBERS_ADDED_MAX)?;
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
        let members = named_users(request.member_ids, MEMBERS_MAX)?;
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
fn named_users(ids: Vec<String>, max: usize) -> Result<Vec<UserId>, Failure> {
    if ids.is_empty() {
        return Err(Failure::invalid_argument(
            "MEMBERS_MISSING",
            "no user is named; give at least one",
        ));
    }
    let users = distinct(ids)?;
    if users.len() > max {
        return Err(Failure::limit(
            "members_max",
            max as u64,
            users.len() as u64,
        ));
    }
    Ok(users)
}

/// The first members of a group besides its creator: each once, in byte order.
pub(super) fn first_members(creator: &UserId, ids: Vec<String>) -> Result<Vec<UserId>, Failure> {
    let mut members = distinct(ids)?;
    members.retain(|member| member != creator);
    if members.len() > MEMBERS_ADDED_MAX {
        return Err(Failure::limit(
            "members_max",
            MEMBERS_MAX as u64,
            members.len() as u64 + 1,
        ));
    }
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
        let failure = first_members(&creator, ids(501)).expect_err("500 others");
        assert_eq!(
            (failure.code, failure.reason),
            (Code::ResourceExhausted, "LIMIT_EXCEEDED")
        );
        let twice = [ids(499), ids(499)].concat();
        assert_eq!(
            named_users(twice, MEMBERS_ADDED_MAX)
                .expect("each once")
                .len(),
            499
        );
        assert!(named_users(ids(500), MEMBERS_ADDED_MAX).is_err());
        assert_eq!(named_users(ids(500), MEMBERS_MAX).expect("500").len(), 500);
    }

    #[test]
    fn bad_lists() {
        assert_eq!(
            named_users(vec![], 1).expect_err("empty").reason,
            "MEMBERS_MISSING"
        );
        assert_eq!(
            named_users(vec!["a b".into()], 1)
                .expect_err("a space")
                .reason,
            "INVALID_ID"
        );
        let creator = UserId::copied("alice").expect("an id");
        assert!(first_members(&creator, vec![]).expect("alone").is_empty());
    }
}
