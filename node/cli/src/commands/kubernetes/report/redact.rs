//! What no report may have: whatever looks like a secret is replaced, in objects and in text. Pure.
//!
//! Secrets are not even read for a report; this is for what somebody wrote where it does not
//! belong: into an environment, an argument, an annotation, a log. Rather too much is replaced
//! than too little.

use carillon_auth::keys::SECRET_PREFIX;
use serde_json::Value;

/// What stands where something was.
pub(super) const HIDDEN: &str = "(redacted)";
/// The whole object as it was applied, with all that is replaced elsewhere.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Parts of names whose values are secrets.
const SECRET_NAMES: [&str; 10] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "apikey",
    "privatekey",
    "authorization",
    "cookie",
];
/// Names of fields that look like it, and name a Secret.
const REFERENCES: [&str; 2] = ["secretName", "tokenSecretName"];
/// The shortest secret of a server, without its prefix.
const SERVER_SECRET_CHARS_MIN: usize = 40;
/// How a private key begins and ends, around its kind.
const KEY_MARK: &str = "PRIVATE KEY-----";
const BEGIN_MARK: &str = "-----BEGIN ";
const END_MARK: &str = "-----END ";

/// An object of Kubernetes, without secrets, and without what only the API server needs.
pub(super) fn object(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("managedFields");
            let named = fields
                .get("name")
                .and_then(Value::as_str)
                .is_some_and(is_secret_name);
            for (name, value) in fields.iter_mut() {
                let hide = name == LAST_APPLIED
                    || (named && name == "value")
                    || (is_secret_name(name) && !REFERENCES.contains(&name.as_str()));
                match value {
                    Value::String(text) if hide => HIDDEN.clone_into(text),
                    value => object(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(object),
        Value::String(said) => *said = text(said),
        _ => {}
    }
}

fn is_secret_name(name: &str) -> bool {
    let letters = name.chars().filter(char::is_ascii_alphabetic);
    let plain: String = letters.map(|letter| letter.to_ascii_lowercase()).collect();
    SECRET_NAMES.iter().any(|secret| plain.contains(secret))
}

/// A text without secrets: a log, a configuration.
pub(super) fn text(said: &str) -> String {
    let mut kept = String::with_capacity(said.len());
    let mut rest = said;
    while let Some((before, from)) = private_key(rest) {
        words(before, &mut kept);
        kept.push_str(HIDDEN);
        // One without an end has nothing behind it.
        let end = from.find(END_MARK).map(|end| &from[end..]);
        let end = end.and_then(|end| Some(&end[end.find(KEY_MARK)? + KEY_MARK.len()..]));
        rest = end.unwrap_or_default();
    }
    words(rest, &mut kept);
    kept
}

/// What is before a private key, and what begins with it.
fn private_key(said: &str) -> Option<(&str, &str)> {
    let mark = said.find(KEY_MARK)?;
    let begin = said[..mark].rfind(BEGIN_MARK)?;
    Some((&said[..begin], &said[begin + BEGIN_MARK.len()..]))
}

/// Words, and what is between them, in turn. A word after the name of a secret and a sign that
/// gives it a value is one; so is all between quotes there.
fn words(said: &str, kept: &mut String) {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_-./+~".contains(c);
    let mut rest = said;
    let mut hide = false;
    while !rest.is_empty() {
        let (word, behind) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
        let (gap, next) = behind.split_at(behind.find(is_word).unwrap_or(behind.len()));
        let hidden = !word.is_empty() && (hide || is_secret(word));
        kept.push_str(if hidden { HIDDEN } else { word });
        kept.push_str(gap);
        rest = next;
        hide = (is_secret_name(word) && gives_value(gap))
            || (word.eq_ignore_ascii_case("bearer") && gap == " ")
            // A scheme stands between the name and the secret.
            || (hidden && ["bearer", "basic"].contains(&word.to_ascii_lowercase().as_str()));
        if hide && let Some(quote @ ('"' | '\'')) = gap.chars().last() {
            let end = rest.find([quote, '\n']).unwrap_or(rest.len());
            if end > 0 {
                kept.push_str(HIDDEN);
            }
            rest = &rest[end..];
            hide = false;
        }
    }
}

/// Signs, quotes and blanks only, and one of the signs.
fn gives_value(gap: &str) -> bool {
    gap.contains(['=', ':']) && gap.chars().all(|c| "=: \t\"'\\".contains(c))
}

/// What is one by its looks: a server's secret, a user's token.
fn is_secret(word: &str) -> bool {
    let server = word.find(SECRET_PREFIX).is_some_and(|at| {
        let secret = &word[at + SECRET_PREFIX.len()..];
        // Metrics have long names too, of small letters.
        secret.len() >= SERVER_SECRET_CHARS_MIN
            && secret.contains(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit())
    });
    // A header in JSON begins with {" in base 64.
    let token = word
        .find("eyJ")
        .is_some_and(|at| word[at..].matches('.').count() >= 2);
    server || token
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_environment_keeps_its_names_and_loses_its_secrets() {
        let mut pod = json!({
            "metadata": {
                "name": "chat-0",
                "managedFields": [{"manager": "kubectl"}],
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{\"all\":\"of it\"}",
                    "example.com/vault-token": "s.1234",
                    "carillon.dev/revision": "abc",
                },
            },
            "spec": {
                "automountServiceAccountToken": false,
                "containers": [{
                    "args": ["--password=hunter2", "--config", "/etc/found.toml"],
                    "env": [
                        {"name": "DB_PASSWORD", "value": "hunter2"},
                        {"name": "LEVEL", "value": "debug"},
                        {"name": "JOIN_TOKEN", "valueFrom": {"secretKeyRef": {
                            "name": "chat-join", "key": "token",
                        }}},
                    ],
                }],
                "volumes": [{"name": "tls", "secret": {"secretName": "chat-0-tls"}}],
            },
        });
        object(&mut pod);
        let text = pod.to_string();
        for secret in ["hunter2", "s.1234", "of it", "managedFields"] {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["args"][0], "--password=(redacted)");
        assert_eq!(container["args"][2], "/etc/found.toml");
        assert_eq!(container["env"][0]["name"], "DB_PASSWORD");
        assert_eq!(container["env"][0]["value"], HIDDEN);
        assert_eq!(container["env"][1]["value"], "debug");
        let source = &container["env"][2]["valueFrom"]["secretKeyRef"];
        assert_eq!(
            (&source["name"], &source["key"]),
            (&json!("chat-join"), &json!("token"))
        );
        assert_eq!(
            pod["spec"]["volumes"][0]["secret"]["secretName"],
            "chat-0-tls"
        );
        assert_eq!(
            pod["metadata"]["annotations"]["carillon.dev/revision"],
            "abc"
        );
    }

    #[test]
    fn text_loses_what_gives_a_secret_its_value() {
        for (said, kept) in [
            (
                "[join]\ntoken = \"none\"\n",
                "[join]\ntoken = \"(redacted)\"\n",
            ),
            ("password: correct horse", "password: (redacted) horse"),
            ("password='correct horse' x", "password='(redacted)' x"),
            (
                r#"{"join_token":"a b","n":1}"#,
                r#"{"join_token":"(redacted)","n":1}"#,
            ),
            (
                r#"{\"api_key\":\"ab\",\"n\":1}"#,
                r#"{\"api_key\":\"(redacted)"#,
            ),
            (
                "authorization: Bearer abc.def",
                "authorization: (redacted) (redacted)",
            ),
            ("Bearer abc, and more", "Bearer (redacted), and more"),
            ("no token was given", "no token was given"),
            ("secret=", "secret="),
            (
                "key = \"/etc/carillon/tls/tls.key\"",
                "key = \"/etc/carillon/tls/tls.key\"",
            ),
        ] {
            let text = text(said);
            assert!(text.starts_with(kept), "{said} became {text}");
        }
    }

    #[test]
    fn secrets_are_known_by_their_looks() {
        let (secret, _) = carillon_auth::keys::make("demo", &[]).expect("it is made");
        let token = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl";
        let said = text(&format!("alice used {secret} and {token}, then left"));
        assert_eq!(said, "alice used (redacted) and (redacted), then left");
        let metric = "carillon_store_compaction_pending_bytes_of_all_levels_estimate";
        assert_eq!(text(metric), metric);
    }

    #[test]
    fn a_private_key_goes_whole() {
        let key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\nabc=\n-----END EC PRIVATE KEY-----";
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----";
        let said = text(&format!("{certificate}\nkey {key}\nend {key}!"));
        assert_eq!(
            said,
            format!("{certificate}\nkey (redacted)\nend (redacted)!")
        );
        let torn = text("before -----BEGIN PRIVATE KEY-----\nMHcC");
        assert_eq!(torn, "before (redacted)");
    }
}
