//! Who may take part, before and after the first shard map.

use carillon_store::StoreOptions;
use tonic::Code;

use super::*;

struct Opened {
    identity: Identity,
    config: Config,
    _directory: tempfile::TempDir,
}

fn opened() -> Opened {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("node.toml");
    let peers: String = (1..=3)
        .map(|node| {
            format!(
                "[[initial_peers]]\nnode_id = {node}\npeer_address = \"127.0.0.1:2{node}\"\n\
                 client_address = \"127.0.0.1:1{node}\"\n"
            )
        })
        .collect();
    let text = format!(
        "node_id = 1\ncluster_name = \"t\"\ndata_dir = \"unused\"\n[listen]\n\
         client = \"127.0.0.1:11\"\npeer = \"127.0.0.1:21\"\nhttp = \"127.0.0.1:31\"\n{peers}"
    );
    std::fs::write(&file, text).expect("a file");
    let config = Config::load(&file, crate::config::Mode::Development).expect("valid");
    let store = Store::open(&StoreOptions::new(directory.path().join("state"))).expect("a store");
    Opened {
        identity: Identity::open(store, &config, Dialer::new(None)).expect("new"),
        config,
        _directory: directory,
    }
}

fn node(id: u64, identity: &str) -> NodeInfo {
    NodeInfo {
        node_id: NodeId(id),
        identity: identity.to_owned(),
        client_address: String::new(),
        peer_address: String::new(),
        zone: Zone::default(),
        weight: 1,
        capacity_bytes: u64::MAX,
    }
}

fn of_nodes(nodes: &[NodeInfo]) -> MetaState {
    MetaState {
        map: ShardMap {
            nodes: nodes.to_vec(),
            ..ShardMap::default()
        },
        ..MetaState::default()
    }
}

impl Opened {
    fn admits(&self, id: u64, identity: &str, meta: &MetaState) -> bool {
        self.identity.admit(NodeId(id), identity, "c", meta).is_ok()
    }
}

#[test]
fn a_founder_knows_its_peers_before_the_first_map() {
    let founder = opened();
    let no_map = MetaState::default();
    assert!(!founder.admits(2, "b", &no_map), "there is no cluster yet");
    let founders = [node(1, "a"), node(2, "b"), node(3, "c")];
    founder
        .identity
        .adopt("c".to_owned(), &founders, ClusterVersion::MAX)
        .expect("a store that works");
    assert!(founder.admits(2, "b", &no_map));
    assert!(!founder.admits(2, "wiped", &no_map), "a wiped disk");
    assert!(!founder.admits(4, "d", &no_map), "an unknown node");
    let other = founder
        .identity
        .admit(NodeId(2), "b", "another cluster", &no_map);
    assert!(other.is_err());
    // Once there is a map it decides alone.
    let map = of_nodes(&[node(1, "a"), node(2, "new"), node(4, "d")]);
    assert!(founder.admits(2, "new", &map) && founder.admits(4, "d", &map));
    assert!(!founder.admits(2, "b", &map) && !founder.admits(3, "c", &map));
}

#[test]
fn the_others_learn_of_their_peers_with_the_map() {
    let follower = opened();
    follower
        .identity
        .adopt("c".to_owned(), &[], ClusterVersion::MAX)
        .expect("a store that works");
    assert!(follower.admits(3, "anything", &MetaState::default()));
    let map = of_nodes(&[node(3, "c")]);
    assert!(follower.admits(3, "c", &map));
    assert!(!follower.admits(3, "wiped", &map) && !follower.admits(2, "b", &map));
}

#[test]
fn a_call_says_who_calls() {
    let (caller, called) = (opened(), opened());
    let map = of_nodes(&[node(1, &caller.identity.own.identity)]);
    let mut metadata = MetadataMap::new();
    for opened in [&caller, &called] {
        let adopted = opened
            .identity
            .adopt("c".to_owned(), &[], ClusterVersion::MAX);
        adopted.expect("a store that works");
    }
    let unsaid = called.identity.caller(&metadata, &map).expect_err("nobody");
    assert_eq!(unsaid.code(), Code::InvalidArgument);
    caller
        .identity
        .introduce(&mut metadata)
        .expect("plain text");
    assert_eq!(
        called.identity.caller(&metadata, &map).expect("known"),
        NodeId(1)
    );
    let other = of_nodes(&[node(1, "another data directory")]);
    let refused = called
        .identity
        .caller(&metadata, &other)
        .expect_err("wiped");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[test]
fn a_node_of_a_new_cluster_finds_the_others_without_its_configuration() {
    let founder = opened();
    let found = founder
        .identity
        .adopt("c".to_owned(), &[], ClusterVersion::MAX);
    found.expect("a store that works");
    let keeps = founder.identity.keep_contacts(&founder.config);
    keeps.expect("a store that works");
    let mut config = founder.config;
    config.initial_peers.clear();
    let store = founder.identity.store;
    let again = Identity::open(store, &config, Dialer::new(None)).expect("the same");
    let no_map = MetaState::default();
    let address = again.peer_address(NodeId(3), &no_map);
    assert_eq!(address.as_deref(), Some("127.0.0.1:23"));
}
