//! Groups: creation, members, who may do what, and what the timeline says about it.

use anyhow::{Context as _, Result, ensure};
use carillon_proto::v1::{self, MemberRole, notice::Change};
use carillon_tests::rpc;
use tonic::{Code, Status};

use crate::cast::{Cast, change};

type Outcome<T> = Result<T, Status>;

fn create(id: &str, members: &[String], request_id: &str) -> v1::CreateConversationRequest {
    v1::CreateConversationRequest {
        conversation_id: id.to_owned(),
        name: "A group".to_owned(),
        member_ids: members.to_vec(),
        request_id: request_id.to_owned(),
    }
}

async fn add(
    cast: &Cast,
    user: &str,
    group: &str,
    members: &[String],
) -> Result<Outcome<v1::AddMembersResponse>> {
    let request = v1::AddMembersRequest {
        conversation_id: group.to_owned(),
        member_ids: members.to_vec(),
    };
    let outcome = cast.chat(1)?.add_members(rpc::as_user(user, request)).await;
    Ok(outcome.map(tonic::Response::into_inner))
}

async fn remove(
    cast: &Cast,
    user: &str,
    group: &str,
    members: &[&str],
) -> Result<Outcome<v1::RemoveMembersResponse>> {
    let request = v1::RemoveMembersRequest {
        conversation_id: group.to_owned(),
        member_ids: members.iter().map(|member| (*member).to_owned()).collect(),
    };
    let outcome = cast
        .chat(2)?
        .remove_members(rpc::as_user(user, request))
        .await;
    Ok(outcome.map(tonic::Response::into_inner))
}

async fn members(cast: &Cast, user: &str, group: &str, page_size: u32) -> Result<Vec<v1::Member>> {
    let (mut members, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListMembersRequest {
            conversation_id: group.to_owned(),
            page_size,
            page_token,
        };
        let page = cast
            .chat(3)?
            .list_members(rpc::as_user(user, request))
            .await?
            .into_inner();
        ensure!(
            page.members.len() <= 500,
            "a page of {}",
            page.members.len()
        );
        members.extend(page.members);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(members);
        }
    }
}

fn names(members: &[v1::Member]) -> Vec<&str> {
    members
        .iter()
        .map(|member| member.user_id.as_str())
        .collect()
}

fn owner(members: &[v1::Member]) -> Option<&str> {
    let mut owners = members
        .iter()
        .filter(|member| member.role() == MemberRole::Owner);
    let owner = owners.next()?;
    owners.next().is_none().then_some(owner.user_id.as_str())
}

#[tokio::test]
async fn a_group_is_created_once() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, carol) = (cast.id("alice"), cast.id("bob"), cast.id("carol"));
    let others = [carol.clone(), bob.clone(), bob.clone(), alice.clone()];
    let id = cast.id("team");
    let mut chat = cast.chat(1)?;
    let first = chat
        .create_conversation(rpc::as_user(&alice, create(&id, &others, "r1")))
        .await?;
    let first = first.into_inner().conversation.context("no conversation")?;
    assert_eq!(
        (first.conversation_id.as_str(), first.name.as_str()),
        (id.as_str(), "A group")
    );
    assert_eq!(
        (first.kind(), first.creator_id.as_str()),
        (v1::ConversationKind::Group, alice.as_str())
    );
    assert_eq!((first.last_seq, first.member_count), (1, 3));
    assert!(first.created_at_ms > 0);

    let again = cast
        .chat(2)?
        .create_conversation(rpc::as_user(&alice, create(&id, &others, "r1")))
        .await?;
    assert_eq!(again.into_inner().conversation.as_ref(), Some(&first));
    for (user, request) in [(&alice, "r2"), (&bob, "r1")] {
        let outcome = chat
            .create_conversation(rpc::as_user(user, create(&id, &[], request)))
            .await;
        rpc::assert_refused(outcome, Code::AlreadyExists, "CONVERSATION_EXISTS");
    }

    let everybody = members(&cast, &bob, &id, 0).await?;
    assert_eq!(names(&everybody), [&alice, &bob, &carol]);
    assert_eq!(owner(&everybody), Some(alice.as_str()));
    assert!(everybody.iter().all(|member| member.joined_seq == 1));
    let history = cast.history(&carol, &id).await?;
    let Some(Change::Created(created)) = change(&history[0]) else {
        anyhow::bail!("the first entry is {:?}", history[0]);
    };
    assert_eq!(
        (created.actor_id.as_str(), created.name.as_str()),
        (alice.as_str(), "A group")
    );
    let mut said = created.member_ids.clone();
    said.sort();
    assert_eq!(said, [alice.clone(), bob.clone(), carol.clone()]);
    assert_eq!(history[0].sender_id, alice);
    assert_eq!(
        cast.inbox(&bob, 1).await?[0].message.as_ref(),
        Some(&history[0])
    );
    Ok(())
}

#[tokio::test]
async fn an_id_is_made_when_none_is_given() -> Result<()> {
    let cast = Cast::new().await?;
    let alice = cast.id("alice");
    let mut ids = Vec::new();
    for (node, request) in [(1, "r1"), (2, "r1"), (3, "r2")] {
        let answer = cast
            .chat(node)?
            .create_conversation(rpc::as_user(&alice, create("", &[], request)))
            .await?;
        ids.push(
            answer
                .into_inner()
                .conversation
                .context("no conversation")?
                .conversation_id,
        );
    }
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
    assert!(!ids[0].contains(':') && !ids[0].is_empty());
    Ok(())
}

#[tokio::test]
async fn creations_that_are_refused() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, direct) = cast.pair();
    let id = cast.id("team");
    let mut long_name = create(&id, &[], "r");
    long_name.name = "x".repeat(257);
    let cases = [
        (
            create(&direct, &[], "r"),
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (create("a:b", &[], "r"), Code::InvalidArgument, "INVALID_ID"),
        (
            create(&"x".repeat(65), &[], "r"),
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (
            create(&id, &["a b".to_owned()], "r"),
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (
            create(&id, &[String::new()], "r"),
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (create(&id, &[], ""), Code::InvalidArgument, "INVALID_ID"),
        (long_name, Code::InvalidArgument, "LIMIT_EXCEEDED"),
    ];
    let mut chat = cast.chat(1)?;
    for (request, code, reason) in cases {
        let outcome = chat
            .create_conversation(rpc::as_user(&alice, request))
            .await;
        rpc::assert_refused(outcome, code, reason);
    }
    let group = v1::GetConversationRequest {
        conversation_id: id,
    };
    let outcome = chat.get_conversation(rpc::as_user(&alice, group)).await;
    rpc::assert_refused(outcome, Code::NotFound, "CONVERSATION_NOT_FOUND");
    // A direct conversation is there once somebody writes, and its members are fixed.
    cast.say(&alice, &direct, "m", "x").await?;
    let carol = [cast.id("carol")];
    let outcome = add(&cast, &alice, &direct, &carol).await?;
    rpc::assert_refused(outcome, Code::FailedPrecondition, "DIRECT_FIXED");
    let outcome = remove(&cast, &alice, &direct, &[&bob]).await?;
    rpc::assert_refused(outcome, Code::FailedPrecondition, "DIRECT_FIXED");
    let both = members(&cast, &bob, &direct, 1).await?;
    assert_eq!(both.len(), 2);
    Ok(())
}

#[tokio::test]
async fn five_hundred_members_and_no_more() -> Result<()> {
    let cast = Cast::new().await?;
    let alice = cast.id("alice");
    let crowd: Vec<String> = (0..500)
        .map(|number| cast.id(&format!("m{number:03}")))
        .collect();
    let mut chat = cast.chat(1)?;
    let id = cast.id("crowd");
    let outcome = chat
        .create_conversation(rpc::as_user(&alice, create(&id, &crowd, "r")))
        .await;
    let over_limit = |status: &tonic::Status| {
        let of = |key| rpc::error_metadata(status, key);
        assert_eq!(
            [of("limit"), of("max"), of("actual")],
            ["members_max", "500", "501"]
        );
    };
    let status = rpc::assert_refused(outcome, Code::ResourceExhausted, "LIMIT_EXCEEDED");
    over_limit(&status);

    let answer = chat
        .create_conversation(rpc::as_user(&alice, create(&id, &crowd[..498], "r")))
        .await?;
    assert_eq!(
        answer
            .into_inner()
            .conversation
            .context("none")?
            .member_count,
        499
    );
    // Too many for any group, and too many for this one.
    for too_many in [&crowd[..], &crowd[497..]] {
        let outcome = add(&cast, &alice, &id, too_many).await?;
        let status = rpc::assert_refused(outcome, Code::ResourceExhausted, "LIMIT_EXCEEDED");
        over_limit(&status);
    }
    let added = add(&cast, &alice, &id, &crowd[..499]).await??;
    assert_eq!(
        added.added_ids,
        [crowd[498].clone()],
        "only who was missing"
    );
    assert_eq!(added.conversation.context("none")?.member_count, 500);
    for page_size in [0, 7, 500] {
        let everybody = members(&cast, &crowd[10], &id, page_size).await?;
        let mut expected = crowd[..499].to_vec();
        expected.push(alice.clone());
        expected.sort();
        assert_eq!(names(&everybody), expected);
    }
    cast.say(&crowd[0], &id, "m", "hello crowd").await?;
    for member in [&alice, &crowd[0], &crowd[250], &crowd[497]] {
        assert_eq!(cast.inbox(member, 3).await?.len(), 3);
    }
    // The last one came with the second notice.
    let late = cast.inbox(&crowd[498], 2).await?;
    let seqs: Vec<u64> = late
        .iter()
        .filter_map(|e| e.message.as_ref())
        .map(|m| m.seq)
        .collect();
    assert_eq!(seqs, [2, 3]);
    Ok(())
}

#[tokio::test]
async fn who_joins_sees_the_timeline_from_there() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, carol) = (cast.id("alice"), cast.id("bob"), cast.id("carol"));
    let group = cast.group("team", &alice, &[&bob]).await?;
    cast.say_many(&alice, &group, 3).await?;
    let outcome = add(&cast, &carol, &group, std::slice::from_ref(&carol)).await?;
    rpc::assert_refused(outcome, Code::PermissionDenied, "NOT_A_MEMBER");
    let added = add(&cast, &bob, &group, &[carol.clone(), alice.clone()]).await??;
    assert_eq!(added.added_ids, std::slice::from_ref(&carol));
    let nobody = add(&cast, &bob, &group, std::slice::from_ref(&carol)).await??;
    assert!(nobody.added_ids.is_empty());
    assert_eq!(
        nobody.conversation.context("none")?.last_seq,
        5,
        "no notice for nobody"
    );
    cast.say(&alice, &group, "welcome", "welcome carol").await?;

    let seen = cast.history(&carol, &group).await?;
    assert_eq!(
        seen.iter().map(|message| message.seq).collect::<Vec<_>>(),
        [5, 6]
    );
    let Some(Change::MembersAdded(notice)) = change(&seen[0]) else {
        anyhow::bail!("the first entry is {:?}", seen[0]);
    };
    assert_eq!(
        (notice.actor_id.as_str(), &notice.member_ids),
        (bob.as_str(), &vec![carol.clone()])
    );
    let inbox = cast.inbox(&carol, 2).await?;
    assert_eq!(
        inbox
            .iter()
            .filter_map(|e| e.message.as_ref())
            .map(|m| m.seq)
            .collect::<Vec<_>>(),
        [5, 6]
    );
    let everybody = members(&cast, &carol, &group, 0).await?;
    let joined = everybody.iter().find(|member| member.user_id == carol);
    assert_eq!(
        joined.map(|member| (member.joined_seq, member.role())),
        Some((5, MemberRole::Member))
    );
    Ok(())
}

#[tokio::test]
async fn who_leaves_gets_the_notice_and_nothing_after_it() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, carol) = (cast.id("alice"), cast.id("bob"), cast.id("carol"));
    let group = cast.group("team", &alice, &[&bob, &carol]).await?;
    let outcome = remove(&cast, &bob, &group, &[&carol]).await?;
    rpc::assert_refused(outcome, Code::PermissionDenied, "NOT_OWNER");
    let removed = remove(&cast, &alice, &group, &[&carol, &cast.id("stranger")]).await??;
    assert_eq!(removed.removed_ids, std::slice::from_ref(&carol));
    cast.say(&alice, &group, "m", "without carol").await?;

    let inbox = cast.inbox(&carol, 2).await?;
    let last = inbox[1].message.as_ref().context("no message")?;
    let Some(Change::MembersRemoved(notice)) = change(last) else {
        anyhow::bail!("the last entry is {last:?}");
    };
    assert_eq!(
        (notice.actor_id.as_str(), &notice.member_ids),
        (alice.as_str(), &vec![carol.clone()])
    );
    assert!(notice.new_owner_id.is_empty());
    cast.inbox(&bob, 3).await?;
    assert_eq!(cast.inbox(&carol, 2).await?.len(), 2);

    let get = v1::GetConversationRequest {
        conversation_id: group.clone(),
    };
    let outcome = cast
        .chat(1)?
        .get_conversation(rpc::as_user(&carol, get))
        .await;
    rpc::assert_refused(outcome, Code::PermissionDenied, "NOT_A_MEMBER");
    let send = v1::SendRequest {
        conversation_id: group.clone(),
        client_message_id: "m".to_owned(),
        content: Some(rpc::text("x")),
    };
    let outcome = cast.chat(1)?.send(rpc::as_user(&carol, send)).await;
    rpc::assert_refused(outcome, Code::PermissionDenied, "NOT_A_MEMBER");
    let list = v1::ListConversationsRequest::default();
    let rows = cast
        .chat(1)?
        .list_conversations(rpc::as_user(&carol, list))
        .await?
        .into_inner();
    assert_eq!((rows.conversations.len(), rows.unread_total), (0, 0));

    // And back again: from the new notice on.
    add(&cast, &bob, &group, std::slice::from_ref(&carol)).await??;
    let seen = cast.history(&carol, &group).await?;
    assert_eq!(
        seen.iter().map(|message| message.seq).collect::<Vec<_>>(),
        [4]
    );
    assert_eq!(cast.inbox(&carol, 3).await?.len(), 3);
    Ok(())
}

#[tokio::test]
async fn an_owner_who_leaves_is_followed_by_who_was_first() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, bob, carol) = (cast.id("alice"), cast.id("bob"), cast.id("carol"));
    let group = cast.group("team", &alice, &[&carol]).await?;
    add(&cast, &alice, &group, std::slice::from_ref(&bob)).await??;
    let left = remove(&cast, &alice, &group, &[&alice]).await??;
    assert_eq!(left.removed_ids, std::slice::from_ref(&alice));
    let everybody = members(&cast, &bob, &group, 0).await?;
    assert_eq!(
        owner(&everybody),
        Some(carol.as_str()),
        "carol joined before bob"
    );
    let history = cast.history(&bob, &group).await?;
    let Some(Change::MembersRemoved(notice)) = history.last().and_then(change) else {
        anyhow::bail!("the last entry is {:?}", history.last());
    };
    assert_eq!(notice.new_owner_id, carol);
    assert_eq!(notice.member_ids, std::slice::from_ref(&alice));
    remove(&cast, &carol, &group, &[&bob]).await??;
    Ok(())
}

#[tokio::test]
async fn changes_of_members_that_are_refused() -> Result<()> {
    let cast = Cast::new().await?;
    let (alice, stranger) = (cast.id("alice"), cast.id("stranger"));
    let group = cast.group("team", &alice, &[]).await?;
    let unknown = cast.id("unknown");
    let many: Vec<String> = (0..500)
        .map(|number| cast.id(&format!("m{number}")))
        .collect();
    let cases: [(&str, &str, &[String], Code, &str); 6] = [
        (
            &alice,
            &unknown,
            &many[..1],
            Code::NotFound,
            "CONVERSATION_NOT_FOUND",
        ),
        (
            &stranger,
            &group,
            &many[..1],
            Code::PermissionDenied,
            "NOT_A_MEMBER",
        ),
        (
            &alice,
            &group,
            &[],
            Code::InvalidArgument,
            "MEMBERS_MISSING",
        ),
        (
            &alice,
            &group,
            &many,
            Code::ResourceExhausted,
            "LIMIT_EXCEEDED",
        ),
        (
            &alice,
            &group,
            &["a/b".to_owned()],
            Code::InvalidArgument,
            "INVALID_ID",
        ),
        (
            &alice,
            "a b",
            &many[..1],
            Code::InvalidArgument,
            "INVALID_ID",
        ),
    ];
    for (user, group, members, code, reason) in cases {
        let outcome = add(&cast, user, group, members).await?;
        rpc::assert_refused(outcome, code, reason);
    }
    let outcome = remove(&cast, &stranger, &group, &[&alice]).await?;
    rpc::assert_refused(outcome, Code::PermissionDenied, "NOT_A_MEMBER");
    let list = v1::ListMembersRequest {
        conversation_id: group.clone(),
        page_size: 0,
        page_token: "nonsense".to_owned(),
    };
    let outcome = cast.chat(1)?.list_members(rpc::as_user(&alice, list)).await;
    rpc::assert_refused(outcome, Code::InvalidArgument, "INVALID_PAGE_TOKEN");
    let nobody = remove(&cast, &alice, &group, &[&stranger]).await??;
    assert!(nobody.removed_ids.is_empty());
    assert_eq!(
        nobody.conversation.context("none")?.last_seq,
        1,
        "no notice for nobody"
    );
    Ok(())
}
