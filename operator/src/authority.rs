//! The authorities of a cluster, as the Secret `NAME-ca` keeps them. Pure.
//!
//! Owner of that Secret's keys and annotations: `tls.crt` and `tls.key` issue; `next.crt` and
//! `next.key` are about to; `ca.crt` is what everybody is to trust. What these mean for the next
//! step is [`crate::rotation`]'s.
//!
//! Invariants: issuing ⊆ trusted, next ⊆ trusted; a certificate is in the bundle once.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use crate::rotation::{AuthorityId, Kept, Known, Mark};
use crate::tls::{self, Issued, TlsError};

pub const CERTIFICATE: &str = "tls.crt";
pub const KEY: &str = "tls.key";
/// What is trusted.
pub const BUNDLE: &str = "ca.crt";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const MARK_ANNOTATION: &str = "carillon.dev/authority";
const NEXT_MARK_ANNOTATION: &str = "carillon.dev/next-authority";
const NEXT_SINCE_ANNOTATION: &str = "carillon.dev/next-authority-since";
const DROPPED_AT_ANNOTATION: &str = "carillon.dev/authority-dropped-at";
/// The mark of one that was found in use, and whose key is not there. No wish is called so.
const LOST: &str = "lost/";

/// One authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate, and perhaps those between it and its root; and its key, which is empty
    /// when it is lost.
    pub issued: Issued,
    pub mark: Mark,
}

impl Authority {
    pub fn can_issue(&self) -> bool {
        !self.issued.key.is_empty()
    }

    fn known(&self) -> Result<Known, TlsError> {
        Ok(Known {
            id: tls::id(&self.issued.certificate)?,
            mark: self.mark.clone(),
        })
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Authorities {
    pub issuing: Authority,
    pub next: Option<Authority>,
    next_since_s: u64,
    dropped_at_s: u64,
    /// Each certificate in PEM, those of the issuing one first.
    trusted: Vec<String>,
}

impl Authorities {
    /// Of a cluster that has no certificates yet.
    fn first(authority: Authority) -> Authorities {
        let trusted = tls::blocks(&authority.issued.certificate);
        Authorities {
            issuing: authority,
            next: None,
            next_since_s: 0,
            dropped_at_s: 0,
            trusted,
        }
    }

    /// Of a cluster whose members trust `bundle`, with this one in it.
    fn adopted(authority: Authority, bundle: &str, now_s: u64) -> Authorities {
        let mut all = Authorities::first(authority);
        // What was dropped lately is not known any more.
        all.dropped_at_s = now_s;
        all.trusted.extend(tls::blocks(bundle));
        all.tidy();
        all
    }

    /// Of a cluster whose members trust `bundle`, while the key to that is gone: `next` takes
    /// over as if it had been asked for, and until then nothing can be issued.
    fn recovered(bundle: &str, next: Authority, now_s: u64) -> Option<Authorities> {
        let trusted = tls::blocks(bundle);
        let lost = Authority {
            issued: Issued {
                certificate: trusted.first()?.clone(),
                key: String::new(),
            },
            mark: Mark(LOST.to_owned()),
        };
        let mut all = Authorities {
            issuing: lost,
            next: None,
            next_since_s: 0,
            // What was dropped lately is not known any more.
            dropped_at_s: now_s,
            trusted,
        };
        all.begin(next, now_s);
        Some(all)
    }

    /// What to go on with, and whether that is to be written: what is kept, unless it is gone, or
    /// is somebody else's that members do not trust. `trusted` is what they were given last, and
    /// `wanted` makes the wanted authority.
    pub fn resumed<E>(
        kept: Option<Authorities>,
        trusted: Option<&str>,
        wanted: impl FnOnce() -> Result<Authority, E>,
        now_s: u64,
    ) -> Result<(Authorities, bool), E> {
        let next = match (kept, trusted) {
            (Some(kept), None) => return Ok((kept, false)),
            (Some(kept), Some(trusted)) if kept.is_trusted_by(trusted) => {
                return Ok((kept, false));
            }
            (Some(foreign), Some(_)) => foreign.issuing,
            (None, _) => wanted()?,
        };
        let adopted = match trusted {
            None => Authorities::first(next.clone()),
            Some(trusted) => Authorities::adopted(next.clone(), trusted, now_s),
        };
        // The issuing one comes first: another one there may not be trusted by all yet.
        let issued = |trusted: &&str| {
            let first = tls::id(trusted).ok();
            first.is_some() && first == tls::id(&next.issued.certificate).ok()
        };
        let recovered = trusted.filter(|trusted| !issued(trusted));
        let recovered = recovered.and_then(|all| Authorities::recovered(all, next.clone(), now_s));
        Ok((recovered.unwrap_or(adopted), true))
    }

    /// Nothing when the Secret has no authority.
    pub fn read(secret: &Secret) -> Option<Authorities> {
        let data = secret.data.as_ref()?;
        let mark = |annotation: &str| {
            let annotations = secret.metadata.annotations.as_ref();
            let mark = annotations.and_then(|all| all.get(annotation));
            Mark(mark.cloned().unwrap_or_default())
        };
        let authority = |certificate: &str, key: &str, annotation: &str| {
            let certificate = text(data, certificate)?;
            tls::id(&certificate).ok()?;
            Some(Authority {
                issued: Issued {
                    certificate,
                    key: text(data, key).unwrap_or_default(),
                },
                mark: mark(annotation),
            })
        };
        let issuing = authority(CERTIFICATE, KEY, MARK_ANNOTATION)?;
        let next = authority(NEXT_CERTIFICATE, NEXT_KEY, NEXT_MARK_ANNOTATION);
        let next = next.filter(Authority::can_issue);
        let since = mark(NEXT_SINCE_ANNOTATION).0.parse();
        let mut all = Authorities {
            issuing,
            next_since_s: since.ok().filter(|_| next.is_some()).unwrap_or_default(),
            next,
            dropped_at_s: mark(DROPPED_AT_ANNOTATION).0.parse().unwrap_or_default(),
            trusted: tls::blocks(&text(data, BUNDLE).unwrap_or_default()),
        };
        all.tidy();
        Some(all)
    }

    pub fn kept(&self) -> Result<Kept, TlsError> {
        let mut old = ids(self.trusted.iter())?;
        for current in self.current() {
            for id in ids(tls::blocks(&current.issued.certificate).iter())? {
                old.remove(&id);
            }
        }
        Ok(Kept {
            issuing: self.issuing.known()?,
            next: self.next.as_ref().map(Authority::known).transpose()?,
            next_since_s: self.next_since_s,
            dropped_at_s: self.dropped_at_s,
            old,
        })
    }

    fn current(&self) -> impl Iterator<Item = &Authority> {
        std::iter::once(&self.issuing).chain(&self.next)
    }

    /// What everybody is to trust, PEM.
    pub fn bundle(&self) -> String {
        self.trusted.concat()
    }

    /// Whether who trusts `bundle` trusts what is issued.
    fn is_trusted_by(&self, bundle: &str) -> bool {
        let issuing = tls::id(&self.issuing.issued.certificate);
        let trusted = ids(tls::blocks(bundle).iter());
        issuing.is_ok_and(|id| trusted.is_ok_and(|all| all.contains(&id)))
    }

    pub fn begin(&mut self, next: Authority, now_s: u64) {
        self.give_up(now_s);
        self.next = Some(next);
        self.next_since_s = now_s;
        self.tidy();
    }

    /// Nothing was issued from the next one, unless it is one from before a key was lost: then it
    /// is trusted until the end.
    pub fn give_up(&mut self, now_s: u64) {
        if let Some(next) = self.next.take().filter(|_| self.issuing.can_issue()) {
            let gone = tls::blocks(&next.issued.certificate);
            self.trusted.retain(|block| !gone.contains(block));
            self.dropped_at_s = now_s;
        }
        self.next_since_s = 0;
        self.tidy();
    }

    pub fn switch(&mut self) {
        if let Some(next) = self.next.take() {
            self.issuing = next;
        }
        self.next_since_s = 0;
        self.tidy();
    }

    pub fn finish(&mut self, now_s: u64) {
        self.trusted.clear();
        self.dropped_at_s = now_s;
        self.tidy();
    }

    /// What is in use is trusted, and comes first.
    fn tidy(&mut self) {
        let mut all: Vec<String> = Vec::new();
        let current = self.current();
        let current = current.flat_map(|one| tls::blocks(&one.issued.certificate));
        for block in current.chain(self.trusted.iter().cloned()) {
            if !all.contains(&block) {
                all.push(block);
            }
        }
        self.trusted = all;
    }

    /// Puts all of it into a Secret; what else that has of annotations stays.
    pub fn write(&self, secret: &mut Secret) {
        let (data, annotations) = self.written();
        secret.data = Some(data);
        let all = secret.metadata.annotations.get_or_insert_default();
        for (name, value) in annotations {
            match value {
                Some(value) => all.insert(name.to_owned(), value),
                None => all.remove(name),
            };
        }
    }

    /// The Secret's data, and its annotations; nothing is an annotation that must not be there.
    fn written(&self) -> (BTreeMap<String, ByteString>, Annotations) {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let mut data = BTreeMap::from([
            (
                CERTIFICATE.to_owned(),
                bytes(&self.issuing.issued.certificate),
            ),
            (KEY.to_owned(), bytes(&self.issuing.issued.key)),
            (BUNDLE.to_owned(), bytes(&self.bundle())),
        ]);
        if let Some(next) = &self.next {
            let certificate = bytes(&next.issued.certificate);
            data.insert(NEXT_CERTIFICATE.to_owned(), certificate);
            data.insert(NEXT_KEY.to_owned(), bytes(&next.issued.key));
        }
        let next = self.next.as_ref();
        let annotations = vec![
            (MARK_ANNOTATION, Some(self.issuing.mark.0.clone())),
            (NEXT_MARK_ANNOTATION, next.map(|next| next.mark.0.clone())),
            (
                NEXT_SINCE_ANNOTATION,
                next.map(|_| self.next_since_s.to_string()),
            ),
            (
                DROPPED_AT_ANNOTATION,
                Some(self.dropped_at_s.to_string()).filter(|_| self.dropped_at_s > 0),
            ),
        ];
        (data, annotations)
    }
}

type Annotations = Vec<(&'static str, Option<String>)>;

fn ids<'a>(blocks: impl Iterator<Item = &'a String>) -> Result<BTreeSet<AuthorityId>, TlsError> {
    blocks.map(|block| tls::id(block)).collect()
}

/// The text of a key of a Secret.
pub fn text(data: &BTreeMap<String, ByteString>, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_800_000_000;

    fn authority(mark: &str) -> Authority {
        Authority {
            issued: tls::make_authority("prod.chat", NOW_S).expect("it is made"),
            mark: Mark(mark.to_owned()),
        }
    }

    fn id(authority: &Authority) -> AuthorityId {
        tls::id(&authority.issued.certificate).expect("it is one")
    }

    /// Through a Secret and back.
    fn again(all: &Authorities) -> Authorities {
        let mut secret = Secret::default();
        all.write(&mut secret);
        Authorities::read(&secret).expect("it is there")
    }

    fn same(all: &Authorities) -> bool {
        again(all) == *all
    }

    fn trusts(all: &Authorities) -> BTreeSet<AuthorityId> {
        ids(tls::blocks(&all.bundle()).iter()).expect("they are certificates")
    }

    #[test]
    fn each_step_is_kept_in_the_secret() {
        let (old, new) = (authority("1"), authority("2"));
        let mut all = Authorities::first(old.clone());
        assert!(same(&all));
        assert_eq!(trusts(&all), [id(&old)].into());
        all.begin(new.clone(), 7);
        assert!(same(&all));
        assert_eq!(trusts(&all), [id(&old), id(&new)].into());
        let kept = all.kept().expect("they are certificates");
        assert_eq!((kept.next_since_s, kept.old.len()), (7, 0));
        all.switch();
        assert!(same(&all));
        assert_eq!(trusts(&all), [id(&old), id(&new)].into());
        let kept = all.kept().expect("they are certificates");
        assert_eq!((kept.issuing.id, kept.old), (id(&new), [id(&old)].into()));
        all.finish(9);
        assert!(same(&all));
        assert_eq!(trusts(&all), [id(&new)].into());
    }

    #[test]
    fn one_that_is_not_wanted_any_more_leaves_no_trust() {
        let (old, new, newer) = (authority("1"), authority("2"), authority("3"));
        let mut all = Authorities::first(old.clone());
        all.begin(new, 7);
        all.begin(newer.clone(), 8);
        assert_eq!(trusts(&all), [id(&old), id(&newer)].into());
        all.give_up(9);
        assert!(same(&all));
        assert_eq!(trusts(&all), [id(&old)].into());
    }

    #[test]
    fn what_members_trust_outlives_a_lost_key() {
        let (old, new) = (authority("1"), authority("2"));
        let bundle = Authorities::first(old.clone()).bundle();
        let all = Authorities::recovered(&bundle, new.clone(), 7).expect("there was one");
        assert!(same(&all));
        assert!(!all.issuing.can_issue());
        assert!(all.is_trusted_by(&bundle));
        assert!(!Authorities::first(new.clone()).is_trusted_by(&bundle));
        assert_eq!(trusts(&all), [id(&old), id(&new)].into());
    }

    #[test]
    fn a_secret_from_before_there_was_rotation_is_understood() {
        let mut old = authority("");
        old.mark = Mark(String::new());
        let (data, _) = Authorities::first(old.clone()).written();
        let secret = Secret {
            data: Some(data),
            ..Secret::default()
        };
        let read = Authorities::read(&secret).expect("it is there");
        assert!(read == Authorities::first(old));
        // What somebody took out of the bundle is trusted all the same.
        let mut secret = secret;
        if let Some(data) = &mut secret.data {
            data.remove(BUNDLE);
        }
        assert!(Authorities::read(&secret) == Some(read));
    }
}
