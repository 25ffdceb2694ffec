//! Tokens are signed here by hand, so that those which no library makes can be made too.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use aws_lc_rs::{hmac, rsa};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::*;

const NOW_S: u64 = 2_000_000_000;

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// A key of a product: what it publishes, and how it signs.
struct Signer {
    alg: &'static str,
    jwk: Value,
    sign: Sign,
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn hmac_signer(secret: Vec<u8>) -> (Value, Sign) {
    let jwk = json!({"kty": "oct", "k": base64url(&secret)});
    let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    let sign = move |message: &[u8]| hmac::sign(&key, message).as_ref().to_vec();
    (jwk, Box::new(sign))
}

fn rsa_signer(size: rsa::KeySize) -> (Value, Sign) {
    let key = RsaKeyPair::generate(size).expect("a key");
    let public = key.public_key();
    let n = public.modulus().big_endian_without_leading_zero().to_vec();
    let e = public.exponent().big_endian_without_leading_zero().to_vec();
    let jwk = json!({"kty": "RSA", "n": base64url(n), "e": base64url(e)});
    let sign = move |message: &[u8]| {
        let mut signature = vec![0; key.public_modulus_len()];
        let random = SystemRandom::new();
        key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
            .expect("signed");
        signature
    };
    (jwk, Box::new(sign))
}

fn signer(alg: &'static str, kid: &str) -> Signer {
    let (mut jwk, sign) = match alg {
        "HS256" => hmac_signer(kid.bytes().cycle().take(32).collect()),
        "RS256" => rsa_signer(rsa::KeySize::Rsa2048),
        "ES256" => {
            let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
            let point = key.public_key().as_ref()[1..].to_vec();
            let (x, y) = point.split_at(32);
            let jwk = json!({"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)});
            let sign = move |message: &[u8]| {
                let signature = key.sign(&SystemRandom::new(), message);
                signature.expect("signed").as_ref().to_vec()
            };
            (jwk, Box::new(sign) as Sign)
        }
        "EdDSA" => {
            let key = Ed25519KeyPair::generate().expect("a key");
            let x = base64url(key.public_key());
            let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x});
            let sign = move |message: &[u8]| key.sign(message).as_ref().to_vec();
            (jwk, Box::new(sign) as Sign)
        }
        other => panic!("no signer of {other}"),
    };
    jwk["kid"] = json!(kid);
    Signer { alg, jwk, sign }
}

impl Signer {
    fn header(&self) -> Value {
        json!({"typ": "JWT", "alg": self.alg, "kid": self.jwk["kid"]})
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let message = unsigned(header, claims);
        let signature = (self.sign)(message.as_bytes());
        format!("{message}.{}", base64url(signature))
    }
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!(
        "{}.{}",
        base64url(header.to_string()),
        base64url(claims.to_string())
    )
}

fn keys(signers: &[&Signer]) -> TokenKeys {
    let keys: Vec<_> = signers.iter().map(|signer| signer.jwk.clone()).collect();
    TokenKeys::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("a key set")
}

fn claims() -> Value {
    json!({"sub": "alice", "exp": NOW_S + 60})
}

fn rules() -> TokenRules {
    TokenRules {
        clock_skew: Duration::from_secs(5),
        ..TokenRules::default()
    }
}

fn refused(keys: &TokenKeys, token: &str, rules: &TokenRules) -> TokenError {
    keys.check(token, rules, NOW_S).expect_err("refused")
}

#[test]
fn tokens_of_every_kind_of_key_are_taken() {
    let all = ["HS256", "RS256", "ES256", "EdDSA"].map(|alg| signer(alg, alg));
    let keys = keys(&all.iter().collect::<Vec<_>>());
    for signer in &all {
        let token = signer.token(&signer.header(), &claims());
        let token = keys.check(&token, &rules(), NOW_S).expect(signer.alg);
        assert_eq!(token.user_id, "alice");
        assert_eq!(token.ends_at_s, NOW_S + 65);
        assert!(keys.has(&token.key));
    }
}

#[test]
fn a_token_without_a_signature_is_refused() {
    let signer = signer("RS256", "one");
    let keys = keys(&[&signer]);
    for alg in ["none", "None", "NONE", ""] {
        let header = json!({"alg": alg, "kid": "one"});
        for signature in ["", "x", &base64url("signature")] {
            let token = format!("{}.{signature}", unsigned(&header, &claims()));
            assert_eq!(refused(&keys, &token, &rules()), TokenError::Unreadable);
        }
    }
    let token = format!("{}.", unsigned(&signer.header(), &claims()));
    assert_eq!(refused(&keys, &token, &rules()), TokenError::BadSignature);
}

#[test]
fn a_public_key_is_never_used_as_a_secret() {
    for alg in ["RS256", "ES256", "EdDSA"] {
        let signer = signer(alg, "one");
        let keys = keys(&[&signer]);
        let public = signer.jwk["n"].as_str().or(signer.jwk["x"].as_str());
        let public = URL_SAFE_NO_PAD
            .decode(public.expect("a part"))
            .expect("base64url");
        let secrets = [public, signer.jwk.to_string().into_bytes()];
        for secret in secrets {
            let (_, sign) = hmac_signer(secret);
            let header = json!({"alg": "HS256", "kid": "one"});
            let forged = Signer {
                alg: "HS256",
                jwk: signer.jwk.clone(),
                sign,
            };
            let token = forged.token(&header, &claims());
            assert_eq!(
                refused(&keys, &token, &rules()),
                TokenError::BadSignature,
                "{alg}"
            );
        }
    }
}

#[test]
fn the_key_that_a_token_brings_along_is_not_used() {
    let known = signer("EdDSA", "one");
    let own = signer("EdDSA", "one");
    let keys = keys(&[&known]);
    let mut header = own.header();
    header["jwk"] = own.jwk.clone();
    header["jku"] = json!("https://example.org/keys");
    let token = own.token(&header, &claims());
    assert_eq!(refused(&keys, &token, &rules()), TokenError::BadSignature);
}

#[test]
fn only_keys_that_are_known_are_used() {
    let (one, two) = (signer("ES256", "one"), signer("ES256", "two"));
    let token = two.token(&two.header(), &claims());
    let alone = keys(&[&one]);
    assert_eq!(refused(&alone, &token, &rules()), TokenError::UnknownKey);
    let both = keys(&[&one, &two]);
    let taken = both.check(&token, &rules(), NOW_S).expect("known");
    assert!(!alone.has(&taken.key), "the key was taken out of the set");
    // Which of two it is must be said; of one it need not be.
    let header = json!({"alg": "ES256"});
    let token = one.token(&header, &claims());
    assert_eq!(refused(&both, &token, &rules()), TokenError::UnknownKey);
    alone.check(&token, &rules(), NOW_S).expect("the only one");
}

#[test]
fn another_key_of_the_same_id_is_another_key() {
    let before = signer("EdDSA", "one");
    let after = signer("EdDSA", "one");
    let taken = keys(&[&before]).check(&before.token(&before.header(), &claims()), &rules(), NOW_S);
    assert!(!keys(&[&after]).has(&taken.expect("taken").key));
}

#[test]
fn a_changed_token_is_refused() {
    let signer = signer("HS256", "one");
    let keys = keys(&[&signer]);
    let token = signer.token(&signer.header(), &claims());
    let (_, signature) = token.rsplit_once('.').expect("three parts");
    let mut other = claims();
    other["sub"] = json!("bob");
    let forged = format!("{}.{signature}", unsigned(&signer.header(), &other));
    assert_eq!(refused(&keys, &forged, &rules()), TokenError::BadSignature);
    for broken in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        &token[1..],
        &token.replace('.', ""),
    ] {
        keys.check(broken, &rules(), NOW_S).expect_err(broken);
    }
    let long = format!("{}{token}", "e".repeat(TOKEN_BYTES_MAX));
    assert_eq!(refused(&keys, &long, &rules()), TokenError::Unreadable);
}

#[test]
fn times_are_kept_to_the_second_and_the_skew() {
    let signer = signer("HS256", "one");
    let keys = keys(&[&signer]);
    let check = |claims: Value| {
        let token = signer.token(&signer.header(), &claims);
        keys.check(&token, &rules(), NOW_S)
            .map(|token| token.ends_at_s)
    };
    let of = |name: &str, at_s: u64| {
        let mut claims = claims();
        claims[name] = json!(at_s);
        check(claims)
    };
    assert_eq!(of("exp", NOW_S - 5), Err(TokenError::Expired));
    assert_eq!(of("exp", NOW_S - 4), Ok(NOW_S + 1));
    for begins in ["nbf", "iat"] {
        assert_eq!(of(begins, NOW_S + 6), Err(TokenError::NotYet));
        assert!(of(begins, NOW_S + 5).is_ok());
    }
    assert_eq!(check(json!({"sub": "alice"})), Err(TokenError::Incomplete));
    assert_eq!(
        check(json!({"exp": NOW_S + 60})),
        Err(TokenError::Incomplete)
    );
    let fraction = json!({"sub": "alice", "exp": 2_000_000_060.5});
    assert_eq!(check(fraction), Ok(NOW_S + 65));
    for odd in [json!("never"), json!(-1), json!(null), json!([])] {
        check(json!({"sub": "alice", "exp": odd})).expect_err("no time");
    }
    let far = json!({"sub": "alice", "exp": 1e300});
    assert_eq!(check(far), Ok(u64::MAX));
}

#[test]
fn issuer_and_audience_must_fit_when_they_are_asked_for() {
    let signer = signer("HS256", "one");
    let keys = keys(&[&signer]);
    let strict = TokenRules {
        issuer: Some("https://login.example.org".to_owned()),
        audience: Some("chat".to_owned()),
        ..rules()
    };
    let check = |issuer: Value, audience: Value| {
        let mut claims = claims();
        claims["iss"] = issuer;
        claims["aud"] = audience;
        let token = signer.token(&signer.header(), &claims);
        keys.check(&token, &rules(), NOW_S).expect("nobody asks");
        keys.check(&token, &strict, NOW_S).map(|_| ())
    };
    let ours = json!("https://login.example.org");
    assert_eq!(check(ours.clone(), json!("chat")), Ok(()));
    assert_eq!(check(ours.clone(), json!(["mail", "chat"])), Ok(()));
    let refused = Err(TokenError::NotForUs);
    assert_eq!(check(ours.clone(), json!("mail")), refused);
    assert_eq!(check(ours, json!(null)), refused);
    assert_eq!(
        check(json!("https://other.example.org"), json!("chat")),
        refused
    );
    assert_eq!(check(json!(null), json!("chat")), refused);
}

#[test]
fn what_must_be_understood_and_is_not_makes_a_token_invalid() {
    let signer = signer("HS256", "one");
    let mut header = signer.header();
    header["crit"] = json!(["b64"]);
    header["b64"] = json!(false);
    let token = signer.token(&header, &claims());
    assert_eq!(
        refused(&keys(&[&signer]), &token, &rules()),
        TokenError::Unreadable
    );
}

#[test]
fn key_sets_that_cannot_work_are_refused_with_what_is_wrong() {
    let with = |change: fn(&mut Value)| {
        let mut jwk = signer("HS256", "one").jwk;
        change(&mut jwk);
        json!({"keys": [jwk]}).to_string()
    };
    let small = rsa_signer(rsa::KeySize::Rsa2048).0;
    let short = base64url(
        &URL_SAFE_NO_PAD
            .decode(small["n"].as_str().expect("n"))
            .expect("n")[..128],
    );
    let cases = [
        ("{}".to_owned(), "not a JSON Web Key Set"),
        (r#"{"keys": []}"#.to_owned(), "0 keys"),
        (with(|jwk| jwk["k"] = json!(base64url("short"))), "5 bytes"),
        (with(|jwk| jwk["alg"] = json!("HS512")), "its alg is HS512"),
        (with(|jwk| jwk["use"] = json!("enc")), "0 keys"),
        (
            with(|jwk| jwk["kty"] = json!("odd")),
            "its kind is not known",
        ),
        (
            json!({"keys": [{"kty": "RSA", "n": short, "e": "AQAB"}]}).to_string(),
            "1024 bits",
        ),
        (
            json!({"keys": [signer("HS256", "one").jwk, signer("HS256", "one").jwk]}).to_string(),
            "given twice",
        ),
        (
            json!({"keys": [signer("HS256", "one").jwk, {"kty": "oct", "k": base64url([7; 32])}]})
                .to_string(),
            "needs a kid",
        ),
    ];
    for (text, says) in cases {
        let Err(error) = TokenKeys::parse(text.as_bytes()) else {
            panic!("{text} is taken");
        };
        assert!(error.to_string().contains(says), "{error} for {text}");
    }
}
