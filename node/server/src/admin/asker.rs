//! Who asks an admin call, as they call themselves. Recorded with what happens; nothing is
//! allowed or refused by it.

use carillon_core::map::{ACTOR_BYTES_MAX, Actor};
use carillon_proto::ACTOR_METADATA_KEY;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::gateway::errors::Failure;

/// See the file's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asker(pub(super) Actor);

impl Asker {
    /// Reads a call's metadata.
    pub(super) fn of(metadata: &MetadataMap) -> Result<Self, Status> {
        let text = metadata.get(ACTOR_METADATA_KEY);
        let text = text.and_then(|text| text.to_str().ok()).unwrap_or_default();
        let name = text.trim();
        if name.len() > ACTOR_BYTES_MAX {
            let (max, actual) = (ACTOR_BYTES_MAX as u64, name.len() as u64);
            return Err(Failure::argument_limit("actor_bytes_max", max, actual).into_status());
        }
        Ok(Asker(match name {
            "" => Actor::unknown(),
            name => Actor(name.to_owned()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Result<Asker, Status> {
        let mut metadata = MetadataMap::new();
        metadata.insert(ACTOR_METADATA_KEY, name.parse().expect("ascii"));
        Asker::of(&metadata)
    }

    #[test]
    fn who_does_not_say_is_unknown_and_names_are_bounded() {
        let unknown = Asker(Actor::unknown());
        assert_eq!(Asker::of(&MetadataMap::new()).expect("allowed"), unknown);
        assert_eq!(of("  ").expect("allowed"), unknown);
        let ann = Asker(Actor("ann@desk".to_owned()));
        assert_eq!(of("ann@desk").expect("allowed"), ann);
        assert!(of(&"a".repeat(ACTOR_BYTES_MAX)).is_ok());
        let long = of(&"a".repeat(ACTOR_BYTES_MAX + 1)).expect_err("too long");
        assert_eq!(long.code(), tonic::Code::InvalidArgument);
    }
}
