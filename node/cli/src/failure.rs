//! Failures, explained to people: what failed, why, and what to do about it.

use std::io::{self, Write};

use carillon_client::ClientError;

use crate::arguments::Output;

/// Advice that a command gives with an error of its own.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Advised {
    message: String,
    advice: String,
}

/// An error with what to do about it.
pub fn advised(message: impl Into<String>, advice: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(Advised {
        message: message.into(),
        advice: advice.into(),
    })
}

/// The same for an error that has a cause.
pub fn because(
    cause: impl Into<anyhow::Error>,
    message: impl Into<String>,
    advice: impl Into<String>,
) -> anyhow::Error {
    cause.into().context(Advised {
        message: message.into(),
        advice: advice.into(),
    })
}

/// Writes the failure to stderr.
pub fn explain(error: &anyhow::Error, output: Output) {
    let mut causes: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        // Errors that show their source in their own text would say it twice.
        if !causes.last().is_some_and(|last| last.contains(&cause)) {
            causes.push(cause);
        }
    }
    let what = causes.remove(0);
    let why = causes.join(": ");
    let advice = advice_on(error);
    let text = match output {
        Output::Table => {
            let mut text = format!("error: {what}\n");
            if !why.is_empty() {
                text.push_str(&format!("  why: {why}\n"));
            }
            if let Some(advice) = advice {
                text.push_str(&format!("  do:  {advice}\n"));
            }
            text
        }
        Output::Json => {
            let client = error.downcast_ref::<ClientError>();
            let value = serde_json::json!({ "error": {
                "what": what,
                "why": why,
                "do": advice,
                "reason": client.and_then(ClientError::reason),
            }});
            format!("{value}\n")
        }
    };
    // With stderr gone there is nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// True when the reader of our output went away (`carillon history … | head`).
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

fn advice_on(error: &anyhow::Error) -> Option<String> {
    if let Some(advised) = error.downcast_ref::<Advised>() {
        return Some(advised.advice.clone());
    }
    let text = match error.downcast_ref::<ClientError>()? {
        ClientError::Unavailable { .. } | ClientError::Timeout { .. } => {
            "start a cluster with `carillon dev`, or name its nodes with --endpoint, and with --ca \
             whose certificates they have if they are not in development mode; `carillon admin \
             status` shows how it is"
        }
        ClientError::NotAMember(_) => {
            "ask a member to add you: carillon group add --as MEMBER GROUP YOU"
        }
        ClientError::ConversationNotFound(_) => {
            "check the id with `carillon conversations`, or create it with `carillon group create`"
        }
        ClientError::ConversationExists(_) => "choose another --id, or leave it out",
        ClientError::InvalidArgument(refusal) if refusal.reason == "INVALID_ID" => {
            "ids are 1 to 64 of A-Z a-z 0-9 . _ - @ + ="
        }
        ClientError::Unauthenticated(_) => {
            "to chat give a token or secret with --token-file, to administer a certificate with \
             --certificate and --key"
        }
        ClientError::Refused(refusal) if refusal.code == tonic::Code::Unimplemented => {
            "ask another port of the nodes: listen.admin, where it is configured, is the one for \
             operators, listen.client the one for chatting"
        }
        ClientError::CursorBeyondHead(_) => "start again with --cursor 0",
        _ => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_found_whatever_the_cause() {
        let own = advised("it is away", "bring it back");
        assert_eq!(advice_on(&own).as_deref(), Some("bring it back"));
        let cause = io::Error::other("no route");
        let caused = because(cause, "it is away", "bring it back").context("all failed");
        assert_eq!(advice_on(&caused).as_deref(), Some("bring it back"));
        assert!(caused.downcast_ref::<io::Error>().is_some());
    }
}
