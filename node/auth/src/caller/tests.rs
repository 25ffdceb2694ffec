use std::fs;

use super::*;
use crate::keys::make;

fn token(user: &str, device: Option<&str>) -> Caller {
    Caller::User(Token {
        user_id: user.to_owned(),
        device_id: device.map(str::to_owned),
        ends_at_s: 100,
        key: crate::tokens::KeyPrint::of(b"key"),
    })
}

fn server(scopes: &[Scope]) -> Caller {
    Caller::Server(ServerKey {
        name: "billing".to_owned(),
        scopes: scopes.to_vec(),
        print: crate::tokens::KeyPrint::of(b"secret"),
    })
}

fn operator(role: Role) -> Caller {
    Caller::Operator(Identity {
        cluster: "demo".to_owned(),
        role,
        name: "olga".to_owned(),
    })
}

#[test]
fn users_act_for_themselves_only() {
    let alice = token("alice", None);
    alice
        .may_chat_as("alice", Some("phone"), Access::Write)
        .expect("her own");
    assert_eq!(
        alice.may_chat_as("bob", None, Access::Read),
        Err(Denied::User)
    );
    let phone = token("alice", Some("phone"));
    phone
        .may_chat_as("alice", Some("phone"), Access::Write)
        .expect("its own");
    phone
        .may_chat_as("alice", None, Access::Write)
        .expect("no device is named");
    let other = phone.may_chat_as("alice", Some("laptop"), Access::Read);
    assert_eq!(other, Err(Denied::Device));
}

#[test]
fn servers_do_what_their_scopes_say() {
    let reads = server(&[Scope::ChatRead]);
    reads
        .may_chat_as("alice", None, Access::Read)
        .expect("in scope");
    let denied = reads
        .may_chat_as("alice", None, Access::Write)
        .expect_err("not in scope");
    assert_eq!(
        denied.to_string(),
        "the server key billing lacks the scope chat.write"
    );
    let writes = server(&[Scope::ChatWrite]);
    for access in [Access::Read, Access::Write] {
        writes
            .may_chat_as("alice", None, access)
            .expect("who may write may read");
    }
}

#[test]
fn only_operators_administer_and_only_admins_change() {
    operator(Role::Admin)
        .may_administer(Access::Write)
        .expect("an admin");
    operator(Role::Viewer)
        .may_administer(Access::Read)
        .expect("looks");
    operator(Role::Viewer)
        .may_administer(Access::Write)
        .expect_err("changes");
    for caller in [
        operator(Role::Node),
        token("alice", None),
        server(&Scope::ALL),
    ] {
        for access in [Access::Read, Access::Write] {
            caller.may_administer(access).expect_err("no operator");
        }
    }
    for role in [Role::Admin, Role::Viewer, Role::Node] {
        let chats = operator(role).may_chat_as("alice", None, Access::Read);
        assert!(matches!(chats, Err(Denied::Kind(_))), "{role}");
    }
}

#[test]
fn files_are_read_again_and_bad_ones_change_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.toml");
    let (secret, entry) = make("billing", &Scope::ALL).expect("random");
    fs::write(&path, &entry).expect("written");
    let files = CredentialFiles {
        jwks: None,
        server_keys: Some(path.clone()),
    };
    let credentials = Credentials::load(files, TokenRules::default()).expect("usable");
    let authorization = format!("Bearer {secret}");
    let caller = credentials
        .identify(Some(&authorization), 0)
        .expect("known");
    assert!(!credentials.reload().expect("read"), "nothing has changed");
    for bad in ["nonsense", "[[keys]]"] {
        fs::write(&path, bad).expect("written");
        credentials.reload().expect_err(bad);
        credentials.still_knows(&caller, 0).expect("as before");
    }
    fs::remove_file(&path).expect("removed");
    credentials.reload().expect_err("missing");
    credentials
        .identify(Some(&authorization), 0)
        .expect("as before");
    let (_, other) = make("other", &Scope::ALL).expect("random");
    fs::write(&path, other).expect("written");
    assert!(credentials.reload().expect("read"));
    assert_eq!(credentials.still_knows(&caller, 0), Err(Unknown::Secret));
    assert_eq!(
        credentials.identify(Some(&authorization), 0),
        Err(Unknown::Secret)
    );
}

#[test]
fn a_broken_file_keeps_nothing_from_the_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (secret, entry) = make("billing", &Scope::ALL).expect("random");
    let key = "A".repeat(43);
    let jwks = format!("{{\"keys\": [{{\"kty\": \"oct\", \"k\": \"{key}\"}}]}}");
    fs::write(path("jwks"), jwks).expect("written");
    fs::write(path("keys"), entry).expect("written");
    let files = CredentialFiles {
        jwks: Some(path("jwks")),
        server_keys: Some(path("keys")),
    };
    let credentials = Credentials::load(files, TokenRules::default()).expect("usable");
    let authorization = format!("Bearer {secret}");
    credentials
        .identify(Some(&authorization), 0)
        .expect("known");
    fs::write(path("jwks"), "broken").expect("written");
    fs::write(path("keys"), "").expect("written");
    credentials.reload().expect_err("one is broken");
    let refused = credentials.identify(Some(&authorization), 0);
    assert_eq!(refused, Err(Unknown::Secret), "it was taken back");
}

#[test]
fn what_is_no_credential_is_refused() {
    let credentials = Credentials::load(CredentialFiles::default(), TokenRules::default());
    let credentials = credentials.expect("nothing to read");
    let identify = |given| credentials.identify(given, 0).expect_err("refused");
    assert_eq!(identify(None), Unknown::Missing);
    assert_eq!(identify(Some("Bearer")), Unknown::Malformed);
    assert_eq!(identify(Some("Basic abc")), Unknown::Malformed);
    assert_eq!(identify(Some("Bearer carillon_x")), Unknown::Secret);
    assert_eq!(identify(Some("bearer a.b.c")), Unknown::NoTokens);
}

#[test]
fn a_token_ends_while_its_caller_is_there() {
    let credentials = Credentials::load(CredentialFiles::default(), TokenRules::default());
    let credentials = credentials.expect("nothing to read");
    let expired = Err(Unknown::Token(TokenError::Expired));
    assert_eq!(credentials.still_knows(&token("alice", None), 100), expired);
    let gone = credentials.still_knows(&token("alice", None), 99);
    assert_eq!(
        gone,
        Err(Unknown::NoTokens),
        "its key is not there any more"
    );
    credentials
        .still_knows(&Caller::Anyone, u64::MAX)
        .expect("nobody asks");
}
