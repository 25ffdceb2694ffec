//! Signed tokens (JSON Web Tokens, RFC 7519) by which a product lets its users in.
//!
//! The product's own servers sign; a cluster only has the keys to check with, a JSON Web Key Set
//! (RFC 7517). Owner of no state. Invariants: the key decides the algorithm, never the token, so
//! that no public key is ever used as a secret; a token without an end is refused.

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse,
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;

/// Keys in one set, at most.
pub const TOKEN_KEYS_MAX: usize = 64;
/// Bytes of one token, at most.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Bytes of a secret key, at least: RFC 7518, section 3.2.
const SECRET_BYTES_MIN: usize = 32;
/// Bytes of an RSA modulus, at least: RFC 7518, section 3.3.
const RSA_BYTES_MIN: usize = 256;

/// What a key is known by: the digest of all that it says. Two keys of one id are two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyPrint(pub(crate) [u8; 32]);

impl KeyPrint {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut print = [0; 32];
        print.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Self(print)
    }

    /// The digest itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What is checked of a token beside its signature.
#[derive(Debug, Clone, Default)]
pub struct TokenRules {
    /// `iss` must be this.
    pub issuer: Option<String>,
    /// `aud` must name this.
    pub audience: Option<String>,
    /// How far the clocks of who signs and who checks may differ.
    pub clock_skew: Duration,
}

/// Why a set of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeysError {
    /// It is not a JSON Web Key Set.
    #[error("not a JSON Web Key Set (RFC 7517): {0}")]
    Unreadable(#[from] serde_json::Error),
    /// One key of it cannot be used.
    #[error("key {index} ({id}): {problem}")]
    Key {
        /// Which one, from 0.
        index: usize,
        /// Its `kid`.
        id: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It has no keys, or too many.
    #[error("it has {0} keys; 1 to {TOKEN_KEYS_MAX} are needed")]
    Count(usize),
}

/// Why a token is refused. The texts are for who gets them, who may be anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("the token is not a signed JSON Web Token")]
    Unreadable,
    /// No key has its id.
    #[error("the token is signed with a key that this cluster does not have")]
    UnknownKey,
    /// Its signature or its algorithm is not that of the key.
    #[error("the token's signature does not fit its key")]
    BadSignature,
    /// It has ended.
    #[error("the token has expired")]
    Expired,
    /// It has not begun, or says that it was made in the future.
    #[error("the token is not valid yet; check the clock of who signs it")]
    NotYet,
    /// It was made by somebody else or for something else.
    #[error("the token is of another issuer or for another audience")]
    NotForUs,
    /// A claim is missing that must be there: `sub` or `exp`.
    #[error("the token needs the claims sub, the user's id, and exp")]
    Incomplete,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// `sub`: whose token it is.
    pub user_id: String,
    /// `device_id`: the one device that it is for.
    pub device_id: Option<String>,
    /// `exp` and what clocks may differ by: from then on it is worth nothing.
    pub ends_at_s: u64,
    /// The key that it is signed with.
    pub key: KeyPrint,
}

struct Key {
    algorithm: Algorithm,
    decoding: DecodingKey,
    print: KeyPrint,
}

/// The keys of a cluster that tokens are checked with.
pub struct TokenKeys {
    keys: Vec<Key>,
    by_id: HashMap<String, usize>,
}

/// A moment as JWTs have it: seconds since 1970, perhaps with a fraction.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Deserialize)]
struct NumericDate(f64);

#[derive(Debug, Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<NumericDate>,
    nbf: Option<NumericDate>,
    iat: Option<NumericDate>,
    device_id: Option<String>,
}

impl TokenKeys {
    /// Reads a JSON Web Key Set.
    ///
    /// # Errors
    /// [`TokenKeysError`]: one key that cannot be used makes the whole set unusable, since its
    /// tokens would be refused without anybody knowing why.
    pub fn parse(text: &[u8]) -> Result<Self, TokenKeysError> {
        let mut set: JwkSet = serde_json::from_slice(text)?;
        // Sets of identity providers have them too, for what is none of ours.
        let for_signatures =
            |jwk: &Jwk| jwk.common.public_key_use != Some(PublicKeyUse::Encryption);
        set.keys.retain(for_signatures);
        if set.keys.is_empty() || set.keys.len() > TOKEN_KEYS_MAX {
            return Err(TokenKeysError::Count(set.keys.len()));
        }
        let mut found = Self {
            keys: Vec::new(),
            by_id: HashMap::new(),
        };
        for (index, jwk) in set.keys.iter().enumerate() {
            let id = jwk.common.key_id.clone();
            let refused = |problem: String| TokenKeysError::Key {
                index,
                id: id.clone().unwrap_or_else(|| "without kid".to_owned()),
                problem,
            };
            if id.is_none() && set.keys.len() > 1 {
                return Err(refused("of several keys each needs a kid".to_owned()));
            }
            let key = Key::read(jwk).map_err(refused)?;
            if let Some(id) = &id
                && found.by_id.insert(id.clone(), index).is_some()
            {
                return Err(refused("its kid is given twice".to_owned()));
            }
            found.keys.push(key);
        }
        Ok(found)
    }

    /// Whether tokens of a key are still taken.
    #[must_use]
    pub fn has(&self, print: &KeyPrint) -> bool {
        self.keys.iter().any(|key| key.print == *print)
    }

    /// Checks a token at a moment, in seconds since 1970.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn check(&self, token: &str, rules: &TokenRules, now_s: u64) -> Result<Token, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Unreadable);
        }
        let header = decode_header(token).map_err(|_| TokenError::Unreadable)?;
        // RFC 7515, section 4.1.11: what must be understood and is not makes it invalid.
        if header.crit.is_some() {
            return Err(TokenError::Unreadable);
        }
        let key = match &header.kid {
            Some(id) => self.by_id.get(id).map(|index| &self.keys[*index]),
            None => self.keys.first().filter(|_| self.keys.len() == 1),
        };
        let key = key.ok_or(TokenError::UnknownKey)?;
        let mut validation = Validation::new(key.algorithm);
        // Times are looked at below: with the caller's clock, and `iat` too.
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        validation.validate_aud = rules.audience.is_some();
        if let Some(audience) = &rules.audience {
            validation.set_audience(&[audience]);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        if let Some(issuer) = &rules.issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        let decoded = decode::<Claims>(token, &key.decoding, &validation);
        let claims = decoded.map_err(|error| refusal(&error))?.claims;
        let (Some(user_id), Some(exp)) = (claims.sub, claims.exp) else {
            return Err(TokenError::Incomplete);
        };
        let skew_s = rules.clock_skew.as_secs();
        let ends_at_s = exp.seconds()?.saturating_add(skew_s);
        if ends_at_s <= now_s {
            return Err(TokenError::Expired);
        }
        for begins in [claims.nbf, claims.iat].into_iter().flatten() {
            if begins.seconds()? > now_s.saturating_add(skew_s) {
                return Err(TokenError::NotYet);
            }
        }
        Ok(Token {
            user_id,
            device_id: claims.device_id,
            ends_at_s,
            key: key.print,
        })
    }
}

impl NumericDate {
    fn seconds(self) -> Result<u64, TokenError> {
        if !self.0.is_finite() || self.0 < 0.0 {
            return Err(TokenError::Unreadable);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is not negative, and saturates"
        )]
        Ok(self.0 as u64)
    }
}

impl Key {
    fn read(jwk: &Jwk) -> Result<Self, String> {
        let (algorithm, named) = match &jwk.algorithm {
            AlgorithmParameters::OctetKey(_) => (Algorithm::HS256, KeyAlgorithm::HS256),
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => {
                let known = "oct (HS256), RSA (RS256), EC P-256 (ES256) and OKP Ed25519 (EdDSA)";
                return Err(format!("its kind is not known; {known} are"));
            }
        };
        if let Some(wanted) = jwk.common.key_algorithm
            && wanted != named
        {
            return Err(format!(
                "its alg is {wanted}; of this kind only {named} is known"
            ));
        }
        let decoding = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        check_size(jwk)?;
        let all = serde_json::to_vec(jwk).map_err(|error| error.to_string())?;
        Ok(Self {
            algorithm,
            decoding,
            print: KeyPrint::of(&all),
        })
    }
}

/// Whether a key is long enough to be worth something.
fn check_size(jwk: &Jwk) -> Result<(), String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let bytes = |text: &str| {
        let decoded = URL_SAFE_NO_PAD.decode(text);
        decoded.map_err(|_| "it is not base64url without padding".to_owned())
    };
    match &jwk.algorithm {
        AlgorithmParameters::OctetKey(key) => {
            let length = bytes(&key.value)?.len();
            if length < SECRET_BYTES_MIN {
                let least = "HS256 needs at least 32 (openssl rand 32)";
                return Err(format!("the secret has {length} bytes; {least}"));
            }
        }
        AlgorithmParameters::RSA(key) => {
            let length = bytes(&key.n)?.iter().skip_while(|byte| **byte == 0).count();
            if length < RSA_BYTES_MIN {
                let bits = length * 8;
                return Err(format!(
                    "the RSA key has {bits} bits; at least 2048 are needed"
                ));
            }
        }
        _ => {}
    }
    Ok(())
}

fn refusal(error: &jsonwebtoken::errors::Error) -> TokenError {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidSignature | ErrorKind::InvalidAlgorithm => TokenError::BadSignature,
        ErrorKind::InvalidIssuer | ErrorKind::InvalidAudience => TokenError::NotForUs,
        ErrorKind::MissingRequiredClaim(_) => TokenError::NotForUs,
        _ => TokenError::Unreadable,
    }
}

#[cfg(test)]
mod tests;
