//! Who asks an admin call: whose credential it is, and how they call themselves. Recorded with
//! what happens; nothing is allowed or refused by it here.

use carillon_auth::caller::Caller;
use carillon_core::map::{ACTOR_BYTES_MAX, Actor};
use carillon_proto::ACTOR_METADATA_KEY;
use tonic::{Request, Status};

use crate::gateway::errors::Failure;

/// See the file's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asker(pub(super) Actor);

impl Asker {
    /// Reads a call's metadata, and whose credential it came with. A name that is only claimed
    /// stands behind one that is proved.
    pub(super) fn of<R>(request: &Request<R>) -> Result<Self, Status> {
        let text = request.metadata().get(ACTOR_METADATA_KEY);
        let text = text.and_then(|text| text.to_str().ok()).unwrap_or_default();
        let name = text.trim();
        if name.len() > ACTOR_BYTES_MAX {
            let (max, actual) = (ACTOR_BYTES_MAX as u64, name.len() as u64);
            return Err(Failure::argument_limit("actor_bytes_max", max, actual).into_status());
        }
        let proved = request.extensions().get().and_then(Caller::name);
        Ok(Asker(match (proved, name) {
            (None, "") => Actor::unknown(),
            (None, name) => Actor(name.to_owned()),
            (Some(proved), claimed) if claimed.is_empty() || claimed == proved => {
                Actor(proved.to_owned())
            }
            (Some(proved), claimed) => {
                let mut both = format!("{proved} for {claimed}");
                both.truncate(both.floor_char_boundary(ACTOR_BYTES_MAX));
                Actor(both)
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use carillon_auth::identity::{Identity, Role};

    use super::*;

    fn request(name: &str) -> Request<()> {
        let mut request = Request::new(());
        let name = name.parse().expect("ascii");
        request.metadata_mut().insert(ACTOR_METADATA_KEY, name);
        request
    }

    fn of(name: &str) -> Result<Asker, Status> {
        Asker::of(&request(name))
    }

    #[test]
    fn who_does_not_say_is_unknown_and_names_are_bounded() {
        let unknown = Asker(Actor::unknown());
        assert_eq!(Asker::of(&Request::new(())).expect("allowed"), unknown);
        assert_eq!(of("  ").expect("allowed"), unknown);
        let ann = Asker(Actor("ann@desk".to_owned()));
        assert_eq!(of("ann@desk").expect("allowed"), ann);
        assert!(of(&"a".repeat(ACTOR_BYTES_MAX)).is_ok());
        let long = of(&"a".repeat(ACTOR_BYTES_MAX + 1)).expect_err("too long");
        assert_eq!(long.code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn a_name_that_is_proved_comes_first() {
        let owner = Identity {
            cluster: "demo".to_owned(),
            role: Role::Admin,
            name: "operator".to_owned(),
        };
        let of = |name: &str| {
            let mut request = request(name);
            let caller = Caller::Operator(owner.clone());
            request.extensions_mut().insert(caller);
            Asker::of(&request).expect("allowed").0.0
        };
        assert_eq!(of(""), "operator");
        assert_eq!(of("operator"), "operator");
        assert_eq!(of("ann@desk"), "operator for ann@desk");
        assert_eq!(of(&"a".repeat(ACTOR_BYTES_MAX)).len(), ACTOR_BYTES_MAX);
    }
}
