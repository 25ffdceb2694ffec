//! Certificates of the nodes and of the operator, made from an authority. Pure but for the keys'
//! randomness; [`crate::secrets`] keeps what is made here in Secrets.
//!
//! A certificate says whose it is by a URI: `carillon://CLUSTER/node/NAME` for nodes,
//! `carillon://CLUSTER/admin/NAME` for who may administer.
//!
//! Invariants:
//! * A leaf ends no later than its authority.
//! * A leaf is made anew when less than a third of its time is left, when its authority is another
//!   one, and when its names have changed; not otherwise.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;
use x509_parser::pem::Pem;
use x509_parser::prelude::{GeneralName, ParsedExtension};

use crate::rotation::AuthorityId;

/// How long an authority lives, and a leaf.
const AUTHORITY_S: i64 = 10 * 365 * 86_400;
/// One of the operator's own is followed by another one when it has less than this left: long
/// before leaves would have to be shorter for it, and time for a rotation that is held up.
pub const AUTHORITY_RENEWAL_S: i64 = 365 * 86_400;
const LEAF_S: i64 = 90 * 86_400;
/// Clocks may be behind by this much.
const BACKDATED_S: i64 = 3_600;
/// A leaf is renewed when less than one part in this many of its time is left.
const RENEWAL_PARTS: i64 = 3;

/// A certificate and its key, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

/// Whose a certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// `carillon://…`
    pub uri: String,
    /// Where it is reached: names, and addresses.
    pub hosts: Vec<String>,
}

/// When a certificate is valid, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub from_s: i64,
    pub until_s: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("a certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("what should be a certificate is none: {0}")]
    Read(String),
}

pub fn node_uri(cluster: &str, member: &str) -> String {
    format!("carillon://{cluster}/node/{member}")
}

pub fn admin_uri(cluster: &str, name: &str) -> String {
    format!("carillon://{cluster}/admin/{name}")
}

/// An authority of a cluster's own.
pub fn make_authority(cluster: &str, now_s: i64) -> Result<Issued, TlsError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Carillon authority of {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = moment(now_s - BACKDATED_S);
    params.not_after = moment(now_s + AUTHORITY_S);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(Issued {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// A certificate of the subject, for both sides of a connection.
pub fn issue(authority: &Issued, subject: &Subject, now_s: i64) -> Result<Issued, TlsError> {
    let authority_ends_s = validity(&authority.certificate)?.until_s;
    let mut params = CertificateParams::new(subject.hosts.clone())?;
    let uri = subject.uri.as_str().try_into()?;
    params.subject_alt_names.push(SanType::URI(uri));
    params.distinguished_name = named("Carillon");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = moment(now_s - BACKDATED_S);
    params.not_after = moment((now_s + LEAF_S).min(authority_ends_s));
    let issuer_key = KeyPair::from_pem(&authority.key)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, issuer_key)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Issued {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn named(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all
}

fn moment(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn first(certificate: &str) -> Result<Pem, TlsError> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes())
        .map_err(|error| TlsError::Read(error.to_string()))?;
    Ok(pem)
}

/// The certificates of a PEM text, each in PEM.
pub fn blocks(text: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut all = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let Some(length) = rest[begin..].find(END) else {
            break;
        };
        let (block, after) = rest[begin..].split_at(length + END.len());
        all.push(format!("{block}\n"));
        rest = after;
    }
    all
}

/// Tells the first certificate of a PEM text from all others.
pub fn id(certificate: &str) -> Result<AuthorityId, TlsError> {
    Ok(AuthorityId(crate::build::hash(
        &first(certificate)?.contents,
    )))
}

pub fn validity(certificate: &str) -> Result<Validity, TlsError> {
    let pem = first(certificate)?;
    let parsed = pem
        .parse_x509()
        .map_err(|error| TlsError::Read(error.to_string()))?;
    Ok(Validity {
        from_s: parsed.validity().not_before.timestamp(),
        until_s: parsed.validity().not_after.timestamp(),
    })
}

/// Whether a certificate must be made anew. One that cannot be read must be.
pub fn is_due(certificate: &str, authority: &str, subject: &Subject, now_s: i64) -> bool {
    check(certificate, authority, subject, now_s) != Some(true)
}

fn check(certificate: &str, authority: &str, subject: &Subject, now_s: i64) -> Option<bool> {
    let pem = first(certificate).ok()?;
    let leaf = pem.parse_x509().ok()?;
    let authority = first(authority).ok()?;
    let authority = authority.parse_x509().ok()?;
    let from_s = leaf.validity().not_before.timestamp();
    let until_s = leaf.validity().not_after.timestamp();
    let fresh = until_s - now_s > (until_s - from_s) / RENEWAL_PARTS;
    let signed = leaf.issuer() == authority.subject() && signed_by(&leaf, &authority);
    Some(fresh && signed && names(&leaf) == wanted_names(subject))
}

/// By the key identifiers, which the authority's public key makes: a signature would need
/// another library of ciphers.
fn signed_by(
    leaf: &x509_parser::certificate::X509Certificate<'_>,
    authority: &x509_parser::certificate::X509Certificate<'_>,
) -> bool {
    let of_leaf = leaf
        .extensions()
        .iter()
        .find_map(|one| match one.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|id| id.0)
            }
            _ => None,
        });
    let of_authority = authority
        .extensions()
        .iter()
        .find_map(|one| match one.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        });
    // An authority that was given may have no identifier; its name has to do then.
    of_authority.is_none() || of_leaf == of_authority
}

fn names(leaf: &x509_parser::certificate::X509Certificate<'_>) -> Vec<String> {
    let mut all = Vec::new();
    if let Ok(Some(names)) = leaf.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) | GeneralName::URI(name) => {
                    all.push((*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    if let Ok(four) = <[u8; 4]>::try_from(*bytes) {
                        all.push(std::net::IpAddr::from(four).to_string());
                    }
                }
                _ => {}
            }
        }
    }
    all.sort();
    all
}

fn wanted_names(subject: &Subject) -> Vec<String> {
    let mut all = subject.hosts.clone();
    all.push(subject.uri.clone());
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_800_000_000;

    fn subject() -> Subject {
        Subject {
            uri: node_uri("prod.chat", "chat-0"),
            hosts: vec!["chat-0.prod.svc".to_owned(), "127.0.0.1".to_owned()],
        }
    }

    fn due(leaf: &Issued, authority: &Issued, subject: &Subject, now_s: i64) -> bool {
        is_due(&leaf.certificate, &authority.certificate, subject, now_s)
    }

    #[test]
    fn a_leaf_is_renewed_when_a_third_of_its_time_is_left() {
        let authority = make_authority("prod.chat", NOW_S).expect("it is made");
        let leaf = issue(&authority, &subject(), NOW_S).expect("it is issued");
        assert!(!due(&leaf, &authority, &subject(), NOW_S));
        assert!(!due(&leaf, &authority, &subject(), NOW_S + LEAF_S / 2));
        assert!(due(&leaf, &authority, &subject(), NOW_S + LEAF_S * 7 / 10));
        assert!(due(&leaf, &authority, &subject(), NOW_S + 2 * LEAF_S));
    }

    #[test]
    fn a_leaf_of_another_authority_or_subject_is_made_anew() {
        let authority = make_authority("prod.chat", NOW_S).expect("it is made");
        // Its subject is the same: only the key tells them apart.
        let other = make_authority("prod.chat", NOW_S).expect("it is made");
        let leaf = issue(&authority, &subject(), NOW_S).expect("it is issued");
        assert!(due(&leaf, &other, &subject(), NOW_S));
        let mut moved = subject();
        moved.hosts.push("chat-client.prod.svc".to_owned());
        assert!(due(&leaf, &authority, &moved, NOW_S));
        let mut renamed = subject();
        renamed.uri = node_uri("prod.chat", "chat-1");
        assert!(due(&leaf, &authority, &renamed, NOW_S));
        let broken = Issued {
            certificate: "no certificate".to_owned(),
            key: String::new(),
        };
        assert!(due(&broken, &authority, &subject(), NOW_S));
    }

    #[test]
    fn a_leaf_ends_no_later_than_its_authority() {
        let authority = make_authority("prod.chat", NOW_S).expect("it is made");
        let late_s = NOW_S + AUTHORITY_S - 86_400;
        let leaf = issue(&authority, &subject(), late_s).expect("it is issued");
        let until_s = validity(&leaf.certificate).expect("it is one").until_s;
        assert_eq!(until_s, NOW_S + AUTHORITY_S);
    }
}
