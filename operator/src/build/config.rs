//! The nodes' configuration: one file for those that found the cluster, one for all others. They
//! are the same for all members; what differs comes from the Pod's environment.

use carillon_crds::imcluster::NodeConfig;
use serde_json::{Map, Value, json};

use super::{ADMIN_PORT, CLIENT_PORT, Context, HTTP_PORT, PEER_PORT, names};
use crate::plan::MemberName;

pub const DATA_DIR: &str = "/var/lib/carillon";
pub const CONFIG_DIR: &str = "/etc/carillon/config";
pub const TLS_DIR: &str = "/etc/carillon/tls";
pub const CLIENT_TLS_DIR: &str = "/etc/carillon/client-tls";
pub const AUTH_DIR: &str = "/etc/carillon/auth";
pub const ZONES_DIR: &str = "/etc/carillon/zones";
pub const FOUND_FILE: &str = "found.toml";
pub const JOIN_FILE: &str = "join.toml";
/// What stands where the join token belongs.
const NO_TOKEN: &str = "none";

/// Both files, as TOML.
pub struct NodeFiles {
    pub found: String,
    pub join: String,
}

impl NodeFiles {
    pub fn hash(&self) -> String {
        super::hash(format!("{}\n{}", self.found, self.join).as_bytes())
    }
}

impl NodeFiles {
    /// For a cluster of which no node starts any more.
    pub fn none() -> NodeFiles {
        NodeFiles {
            found: String::new(),
            join: String::new(),
        }
    }
}

/// An error is a value of `spec.config` that TOML cannot express, such as a number of 65 bits.
pub fn files(context: &Context<'_>) -> Result<NodeFiles, toml::ser::Error> {
    let common = common(context);
    let mut found = common.clone();
    found.insert("initial_peers".to_owned(), initial_peers(context));
    let mut join = common;
    let service = names::host(&names::admin_service(context.name), context.namespace);
    // The token comes from the environment, once there is one. A node that has its identity on
    // its volume needs none.
    let peers = [format!("{service}:{PEER_PORT}")];
    join.insert(
        "join".to_owned(),
        json!({"peers": peers, "token": NO_TOKEN}),
    );
    Ok(NodeFiles {
        found: toml::to_string(&found)?,
        join: toml::to_string(&join)?,
    })
}

fn initial_peers(context: &Context<'_>) -> Value {
    let peer = |index: u32| {
        let member = MemberName::new(context.name, index);
        let host = names::host(member.as_str(), context.namespace);
        json!({
            "node_id": index + 1,
            "peer_address": format!("{host}:{PEER_PORT}"),
            "client_address": format!("{host}:{CLIENT_PORT}"),
        })
    };
    (0..context.cluster.spec.replication_factor)
        .map(peer)
        .collect()
}

fn common(context: &Context<'_>) -> Map<String, Value> {
    let spec = &context.cluster.spec;
    let mut all = sections(&spec.config);
    let mut set = |name: &str, value: Value| {
        all.insert(name.to_owned(), value);
    };
    set(
        "cluster_name",
        json!(names::cluster(context.namespace, context.name)),
    );
    set("data_dir", json!(DATA_DIR));
    let stop_s = super::pod::stop_s(spec);
    set("shutdown_timeout", json!(format!("{stop_s}s")));
    set(
        "listen",
        json!({
            "client": format!("0.0.0.0:{CLIENT_PORT}"),
            "peer": format!("0.0.0.0:{PEER_PORT}"),
            "http": format!("0.0.0.0:{HTTP_PORT}"),
            "admin": format!("0.0.0.0:{ADMIN_PORT}"),
        }),
    );
    set(
        "cluster",
        json!({"shards": spec.shards, "replication_factor": spec.replication_factor}),
    );
    set(
        "placement",
        json!({"zones_file": format!("{ZONES_DIR}/zones")}),
    );
    set("tls", tls(spec.tls.clients.is_some()));
    if let Some(auth) = &spec.auth {
        let mut table = Map::new();
        if auth.jwks.is_some() {
            table.insert("jwks".to_owned(), json!(format!("{AUTH_DIR}/jwks")));
        }
        if auth.server_keys.is_some() {
            table.insert(
                "server_keys".to_owned(),
                json!(format!("{AUTH_DIR}/server-keys")),
            );
        }
        let texts = [
            ("issuer", auth.issuer.clone()),
            ("audience", auth.audience.clone()),
            ("clock_skew", auth.clock_skew.map(|skew| skew.to_string())),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                table.insert(name.to_owned(), json!(text));
            }
        }
        set("auth", Value::Object(table));
    }
    all
}

fn tls(of_clients: bool) -> Value {
    let mut tls = json!({
        "ca": format!("{TLS_DIR}/ca.crt"),
        "certificate": format!("{TLS_DIR}/tls.crt"),
        "key": format!("{TLS_DIR}/tls.key"),
    });
    if of_clients {
        tls["clients"] = json!({
            "certificate": format!("{CLIENT_TLS_DIR}/tls.crt"),
            "key": format!("{CLIENT_TLS_DIR}/tls.key"),
        });
    }
    tls
}

/// What `spec.config` sets. Logs are JSON unless it says otherwise.
fn sections(config: &NodeConfig) -> Map<String, Value> {
    let mut all = Map::new();
    if let Some(threads) = config.worker_threads {
        all.insert("worker_threads".to_owned(), json!(threads));
    }
    let mut logging = config.logging.clone();
    logging
        .entry("format".to_owned())
        .or_insert_with(|| json!("json"));
    let named = [
        ("raft", &config.raft),
        ("log", &config.log),
        ("store", &config.store),
        ("clients", &config.clients),
        ("disk", &config.disk),
        ("logging", &logging),
        ("tracing", &config.tracing),
    ];
    for (name, section) in named {
        // null is how a merge patch takes a setting out; it is the same here.
        let section = without_nulls(section);
        if !section.is_empty() {
            all.insert(name.to_owned(), Value::Object(section));
        }
    }
    all
}

fn without_nulls<'a>(
    table: impl IntoIterator<Item = (&'a String, &'a Value)>,
) -> Map<String, Value> {
    let set = table.into_iter().filter(|(_, value)| !value.is_null());
    set.map(|(name, value)| (name.clone(), clean(value)))
        .collect()
}

fn clean(value: &Value) -> Value {
    match value {
        Value::Object(table) => Value::Object(without_nulls(table)),
        Value::Array(all) => {
            let set = all.iter().filter(|one| !one.is_null());
            Value::Array(set.map(clean).collect())
        }
        other => other.clone(),
    }
}
