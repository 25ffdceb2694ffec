use super::*;

const MINIMAL: &str = r#"
    node_id = 1
    cluster_name = "t"
    data_dir = "d"
    [listen]
    client = "127.0.0.1:1"
    peer = "127.0.0.1:2"
    http = "127.0.0.1:3"
    [[initial_peers]]
    node_id = 1
    peer_address = "127.0.0.1:2"
    client_address = "127.0.0.1:1"
    [cluster]
    replication_factor = 1
"#;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("node.toml");
    std::fs::write(&path, text).expect("a file in it");
    Config::load(&path, Mode::Development)
}

#[test]
fn minimal_is_enough() {
    let config = load(MINIMAL).expect("valid");
    assert_eq!(config.cluster.shards, 16);
    assert_eq!(config.raft.heartbeat, Duration::from_millis(150));
}

const JOINING: &str = r#"
    cluster_name = "t"
    data_dir = "d"
    [listen]
    client = "127.0.0.1:1"
    peer = "127.0.0.1:2"
    http = "127.0.0.1:3"
    [join]
    peers = ["127.0.0.1:9"]
    token = "secret"
"#;

#[test]
fn a_node_that_joins_is_given_its_id() {
    let config = load(JOINING).expect("valid");
    assert_eq!(config.join.expect("it joins").peers, ["127.0.0.1:9"]);
    for (with, without, field) in [
        ("node_id = 4\n", "", "join"),
        ("", r#"peers = ["127.0.0.1:9"]"#, "join"),
        ("", r#"token = "secret""#, "join"),
    ] {
        let text = format!("{with}{}", JOINING.replace(without, ""));
        let error = load(&text).expect_err("refused");
        let text = format!("{error} {:?}", std::error::Error::source(&error));
        assert!(text.contains(field), "{text}");
    }
    let empty = JOINING.replace("secret", "");
    let error = load(&empty).expect_err("no token").to_string();
    assert!(error.contains("join.token"), "{error}");
    for weight in [0, 10_001] {
        let text = format!("{JOINING}[placement]\nweight = {weight}\n");
        let error = load(&text).expect_err("no weight").to_string();
        assert!(error.contains("placement.weight"), "{error}");
    }
}

#[test]
fn unknown_fields_are_refused() {
    let error = load(&format!("surprise = 1\n{MINIMAL}")).expect_err("unknown field");
    let reason = std::error::Error::source(&error).map(ToString::to_string);
    assert!(
        reason.is_some_and(|reason| reason.contains("surprise")),
        "{error}"
    );
}

#[test]
fn the_environment_overrides_fields() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("node.toml");
    std::fs::write(&path, MINIMAL).expect("a file in it");
    let load = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let environment = config::Environment::with_prefix(ENVIRONMENT_PREFIX);
        Config::load_with(
            &path,
            environment.source(Some(pairs.collect())),
            Mode::Development,
        )
    };
    let config = load(&[
        ("CARILLON_NODE__LISTEN__CLIENT", "127.0.0.1:7"),
        ("CARILLON_NODE__RAFT__HEARTBEAT", "20ms"),
        ("CARILLON_NODE__CLIENTS__CONNECTIONS_MAX", "9"),
        ("CARILLON_NODE__CLUSTER_NAME", "other"),
        ("UNRELATED__LISTEN__PEER", "127.0.0.1:8"),
    ])
    .expect("valid");
    assert_eq!(config.listen.client.port(), 7);
    assert_eq!(config.listen.peer.port(), 2);
    assert_eq!(config.raft.heartbeat, Duration::from_millis(20));
    assert_eq!(config.clients.connections_max, 9);
    assert_eq!(config.cluster_name, "other");
    assert!(load(&[("CARILLON_NODE__RAFT__SURPRISE", "1")]).is_err());
    let error = load(&[("CARILLON_NODE__CLIENTS__HEARTBEAT", "0s")]).expect_err("too short");
    assert!(error.to_string().contains("clients.heartbeat"), "{error}");
}

#[test]
fn what_cannot_work_is_refused() {
    for (from, to, field) in [
        (
            "node_id = 1\n    cluster",
            "node_id = 2\n    cluster",
            "initial_peers",
        ),
        (
            "replication_factor = 1",
            "replication_factor = 3",
            "replication_factor",
        ),
        (
            "127.0.0.1:1\"\n    peer",
            "10.0.0.1:1\"\n    peer",
            "listen.client",
        ),
        (
            "[cluster]",
            "[store]\nmemtable_bytes = 1000\n[cluster]",
            "store.memtable_bytes",
        ),
        ("[cluster]", "[log]\nsegment_bytes = 1000\n[cluster]", "log"),
        (
            "[cluster]",
            "[clients]\nsession_queue_bytes_max = 0\n[cluster]",
            "clients.session_queue_bytes_max",
        ),
        (
            "[cluster]",
            "[clients]\nheartbeat = \"0s\"\n[cluster]",
            "clients.heartbeat",
        ),
        (
            "[cluster]",
            "[logging]\nfilter = \"a=b=c\"\n[cluster]",
            "logging.filter",
        ),
        (
            "[cluster]",
            "[tracing]\nsample_ratio = 1.5\n[cluster]",
            "tracing.sample_ratio",
        ),
        (
            "[cluster]",
            "[tracing]\notlp_endpoint = \"https://collector:4317\"\n[cluster]",
            "tracing.otlp_endpoint",
        ),
        (
            "[cluster]",
            "[tracing]\notlp_endpoint = \"collector:4317\"\n[cluster]",
            "tracing.otlp_endpoint",
        ),
    ] {
        let text = MINIMAL.replacen(from, to, 1);
        assert_ne!(text, MINIMAL, "the case for {field} changes something");
        let error = load(&text).expect_err(field);
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn the_zone_of_a_host_is_looked_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let zones = folder.path().join("zones");
    std::fs::write(&zones, "h1 a\nh10 b\nh2 c d\n").expect("written");
    let with = |lines: &str| load(&format!("{MINIMAL}\n[placement]\n{lines}"));
    let file = format!("zones_file = {zones:?}\n");
    for (host, zone) in [("h1", "a"), ("h10", "b"), ("h2", "c d")] {
        let config = with(&format!("{file}host = {host:?}")).expect("valid");
        assert_eq!(config.placement.zone, zone);
    }
    for (lines, says) in [
        (format!("{file}host = \"h3\""), "no line for the host h3"),
        (file.clone(), "without host"),
        ("host = \"h1\"".to_owned(), "without zones_file"),
        (
            format!("{file}host = \"h1\"\nzone = \"a\""),
            "beside zones_file",
        ),
        (
            "zones_file = \"/nowhere\"\nhost = \"h1\"".to_owned(),
            "cannot be read",
        ),
    ] {
        let error = with(&lines).expect_err("refused").to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn only_a_node_in_development_goes_without_certificates() {
    let folder = tempfile::tempdir().expect("a folder");
    let load = |text: &str, mode| {
        let path = folder.path().join("node.toml");
        std::fs::write(&path, text).expect("written");
        Config::load(&path, mode)
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let tls = "[tls]\nca = \"ca\"\ncertificate = \"c\"\nkey = \"k\"\n";
    let auth = "[auth]\njwks = \"j\"\n";
    let secured = format!("{MINIMAL}{tls}{auth}");
    let open = secured.replace("127.0.0.1:1\"", "0.0.0.0:1\"");
    assert_ne!(open, secured);
    for (text, mode, says) in [
        (MINIMAL.to_owned(), Mode::Production, "tls: is missing"),
        (
            format!("{MINIMAL}{tls}"),
            Mode::Development,
            "tls: is not used in development",
        ),
        (
            format!("{MINIMAL}{auth}"),
            Mode::Development,
            "auth: is not used in development",
        ),
        (
            MINIMAL.replace("127.0.0.1:1\"", "0.0.0.0:1\""),
            Mode::Development,
            "listen.client: 0.0.0.0:1 is not a loopback address",
        ),
        (
            secured.replace("cluster_name = \"t\"", "cluster_name = \"a b\""),
            Mode::Production,
            "cluster_name: must be letters",
        ),
    ] {
        let error = load(&text, mode).expect_err("refused");
        assert!(error.contains(says), "{error}");
    }
    load(&open, Mode::Production).expect("any address");
    load(
        &open.replace(auth, "[auth]\nserver_keys = \"s\"\n"),
        Mode::Production,
    )
    .expect("valid");
    load(&open.replace(auth, ""), Mode::Production).expect("nobody chats yet");
    load(MINIMAL, Mode::Development).expect("valid");
}
