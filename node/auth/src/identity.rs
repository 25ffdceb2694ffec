//! What a certificate says about its owner: a URI among its alternative names,
//! `carillon://CLUSTER/ROLE/NAME`.
//!
//! That a certificate was issued by the right authority says only that somebody may talk; the
//! role says as what, and the cluster where. Owner of no state.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The scheme of the URI.
const SCHEME: &str = "carillon://";
/// Bytes of a name, at most.
pub const NAME_BYTES_MAX: usize = 128;

/// As what the owner of a certificate may act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A node of the cluster: talks to the others, and answers clients.
    Node,
    /// Administers the cluster.
    Admin,
    /// Looks at the cluster and changes nothing.
    Viewer,
}

impl Role {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "node" => Some(Self::Node),
            "admin" => Some(Self::Admin),
            "viewer" => Some(Self::Viewer),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Admin => "admin",
            Self::Viewer => "viewer",
        })
    }
}

/// Who the owner of a certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name of the cluster that it is for.
    pub cluster: String,
    /// As what it may act there.
    pub role: Role,
    /// Its own name: a node's, a person's or a program's.
    pub name: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cluster,
            role,
            name,
        } = self;
        write!(f, "{SCHEME}{cluster}/{role}/{name}")
    }
}

/// Why a certificate says nothing of its owner.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// It has no such URI.
    #[error(
        "the certificate names no owner: it needs one URI carillon://CLUSTER/ROLE/NAME among its \
         subject alternative names, with ROLE node, admin or viewer"
    )]
    None,
    /// It has several.
    #[error("the certificate names more than one owner: {0} and {1}")]
    Several(Identity, Identity),
}

/// Whether a name can be part of such a URI: letters, digits, `.`, `_` and `-`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(is_allowed)
}

impl Identity {
    fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(SCHEME)?.split('/');
        let cluster = parts.next().filter(|part| is_name(part))?;
        let role = Role::parse(parts.next()?)?;
        let name = parts.next().filter(|part| is_name(part))?;
        parts.next().is_none().then(|| Self {
            cluster: cluster.to_owned(),
            role,
            name: name.to_owned(),
        })
    }

    /// Who the owner of a certificate is, whose signature somebody else has checked.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let certificate = read(certificate)?;
        let names = certificate.subject_alternative_name();
        let names = names.map_err(|error| IdentityError::Unreadable(error.to_string()))?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        let mut owners = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Self::parse(uri),
            _ => None,
        });
        let owner = owners.next().ok_or(IdentityError::None)?;
        match owners.next() {
            Some(other) => Err(IdentityError::Several(owner, other)),
            None => Ok(owner),
        }
    }
}

/// Whether a certificate is valid at a moment, in seconds since 1970. A session that is resumed
/// brings its certificate along, which nobody has checked since.
#[must_use]
pub fn is_valid_at(certificate: &CertificateDer<'_>, now_s: i64) -> bool {
    read(certificate).is_ok_and(|certificate| {
        let validity = certificate.validity();
        validity.not_before.timestamp() <= now_s && now_s <= validity.not_after.timestamp()
    })
}

/// Until when a certificate is valid, in seconds since 1970.
///
/// # Errors
/// [`IdentityError::Unreadable`].
pub fn not_after_s(certificate: &CertificateDer<'_>) -> Result<i64, IdentityError> {
    Ok(read(certificate)?.validity().not_after.timestamp())
}

fn read<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    let read = X509Certificate::from_der(certificate);
    let (_, read) = read.map_err(|error| IdentityError::Unreadable(error.to_string()))?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Authority;

    fn owner(uris: &[&str]) -> Result<Identity, IdentityError> {
        let issued = Authority::new().issue(uris, &["localhost"]);
        Identity::of(&issued.certificate)
    }

    #[test]
    fn the_uri_says_who_owns_a_certificate() {
        let found = owner(&["https://example.org", "carillon://demo/admin/alice"]);
        let found = found.expect("an owner");
        assert_eq!(found.role, Role::Admin);
        assert_eq!(found.to_string(), "carillon://demo/admin/alice");
    }

    #[test]
    fn what_is_not_exactly_such_a_uri_names_nobody() {
        for uri in [
            "carillon://demo/admin",
            "carillon://demo/admin/",
            "carillon://demo/owner/alice",
            "carillon://demo/admin/alice/x",
            "carillon://demo/admin/al%69ce",
            "carillon:///admin/alice",
            "Carillon://demo/admin/alice",
            "spiffe://demo/admin/alice",
        ] {
            let found = owner(&[uri]);
            assert!(
                matches!(found, Err(IdentityError::None)),
                "{uri}: {found:?}"
            );
        }
        assert!(matches!(owner(&[]), Err(IdentityError::None)));
    }

    #[test]
    fn a_certificate_has_a_beginning_and_an_end() {
        let issued = Authority::new().issue_with(&[], &["localhost"], |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        });
        let (begins_s, ends_s) = (1_577_836_800, 1_609_459_200);
        assert_eq!(not_after_s(&issued.certificate).expect("readable"), ends_s);
        for (now_s, expected) in [
            (begins_s - 1, false),
            (begins_s, true),
            (ends_s, true),
            (ends_s + 1, false),
        ] {
            assert_eq!(is_valid_at(&issued.certificate, now_s), expected, "{now_s}");
        }
    }

    #[test]
    fn a_certificate_of_two_owners_is_of_none() {
        let found = owner(&["carillon://demo/node/a", "carillon://demo/admin/b"]);
        assert!(
            matches!(found, Err(IdentityError::Several(..))),
            "{found:?}"
        );
    }
}
