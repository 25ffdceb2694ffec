//! What a message may say: a walk over the encoded `Content`, without a copy.
//!
//! Content is stored as the sender encoded it and decoded by every reader, so it must be
//! the plain encoding of exactly one text or custom content: no field twice, none that
//! this version does not know, text that is UTF-8. Anything looser could be a message
//! that the server takes and a reader's protobuf library refuses.

use bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::errors::Failure;
use super::limits::{CONTENT_BYTES_MAX, CUSTOM_TYPE_BYTES_MAX};

/// Fields of `Content`.
const TEXT: u32 = 1;
const CUSTOM: u32 = 2;
const NOTICE: u32 = 3;
/// Fields of `Text` and `Custom`.
const TEXT_BODY: u32 = 1;
const CUSTOM_TYPE: u32 = 1;
const CUSTOM_DATA: u32 = 2;

/// Checks an encoded `Content` that a client wants to send.
///
/// # Errors
/// INVALID_ARGUMENT with the reason INVALID_CONTENT or CONTENT_NOT_ALLOWED, or
/// RESOURCE_EXHAUSTED for one that is too large.
pub(super) fn check(encoded: &[u8]) -> Result<(), Failure> {
    if encoded.len() > CONTENT_BYTES_MAX {
        return Err(Failure::limit(
            "content_bytes_max",
            CONTENT_BYTES_MAX as u64,
            encoded.len() as u64,
        ));
    }
    if encoded.is_empty() {
        return Err(invalid(
            "the content is empty; set its text or custom field",
        ));
    }
    let mut rest = encoded;
    let (field, kind) = next_field(&mut rest)?;
    if !rest.is_empty() {
        return Err(invalid(
            "the content has more than one kind; send exactly one",
        ));
    }
    match field {
        TEXT => check_text(kind),
        CUSTOM => check_custom(kind),
        NOTICE => Err(Failure::invalid_argument(
            "CONTENT_NOT_ALLOWED",
            "a notice is written by the server only; send a text or custom content",
        )),
        _ => Err(invalid(
            "the content is of a kind that this server does not know",
        )),
    }
}

fn check_text(mut text: &[u8]) -> Result<(), Failure> {
    let mut body: Option<&[u8]> = None;
    while !text.is_empty() {
        let (field, value) = next_field(&mut text)?;
        if field != TEXT_BODY || body.replace(value).is_some() {
            return Err(invalid(
                "the text has a field that is unknown or there twice",
            ));
        }
    }
    let body = body.unwrap_or_default();
    if body.is_empty() {
        return Err(invalid("the text's body is empty"));
    }
    if std::str::from_utf8(body).is_err() {
        return Err(invalid("the text's body is not UTF-8"));
    }
    Ok(())
}

fn check_custom(mut custom: &[u8]) -> Result<(), Failure> {
    let mut name: Option<&[u8]> = None;
    let mut data: Option<&[u8]> = None;
    while !custom.is_empty() {
        let (field, value) = next_field(&mut custom)?;
        let twice = match field {
            CUSTOM_TYPE => name.replace(value).is_some(),
            CUSTOM_DATA => data.replace(value).is_some(),
            _ => true,
        };
        if twice {
            return Err(invalid(
                "the custom content has a field that is unknown or there twice",
            ));
        }
    }
    let name = name.unwrap_or_default();
    if name.is_empty() || name.len() > CUSTOM_TYPE_BYTES_MAX {
        return Err(invalid("the custom content's type must have 1 to 64 bytes"));
    }
    if std::str::from_utf8(name).is_err() {
        return Err(invalid("the custom content's type is not UTF-8"));
    }
    Ok(())
}

/// Takes one length-delimited field off the front.
fn next_field<'a>(rest: &mut &'a [u8]) -> Result<(u32, &'a [u8]), Failure> {
    let malformed = |_| invalid("the content is not a valid protobuf message");
    let (field, wire_type) = decode_key(rest).map_err(malformed)?;
    if wire_type != WireType::LengthDelimited {
        return Err(invalid(
            "the content has a field that this server does not know",
        ));
    }
    let length = decode_varint(rest).map_err(malformed)?;
    if length > rest.remaining() as u64 {
        return Err(invalid("the content ends in the middle of a field"));
    }
    let (value, after) = rest.split_at(length as usize);
    *rest = after;
    Ok((field, value))
}

fn invalid(message: &str) -> Failure {
    Failure::invalid_argument("INVALID_CONTENT", message)
}

#[cfg(test)]
mod tests {
    use carillon_proto::v1::{self, content::Kind};
    use prost::Message;

    use super::*;

    fn text(body: &str) -> Vec<u8> {
        v1::Content {
            kind: Some(Kind::Text(v1::Text { body: body.into() })),
        }
        .encode_to_vec()
    }

    fn custom(name: &str, data: &'static [u8]) -> Vec<u8> {
        let custom = v1::Custom {
            r#type: name.into(),
            data: data.into(),
        };
        v1::Content {
            kind: Some(Kind::Custom(custom)),
        }
        .encode_to_vec()
    }

    #[test]
    fn what_may_be_sent() {
        let largest = "x".repeat(CONTENT_BYTES_MAX - 8);
        for good in [
            text("hi"),
            text("日本"),
            text(&largest),
            custom("acme.poll", b"\xff\0"),
            custom("a", b""),
        ] {
            check(&good).expect("accepted");
        }
    }

    #[test]
    fn what_may_not() {
        let notice = v1::Content {
            kind: Some(Kind::Notice(v1::Notice::default())),
        }
        .encode_to_vec();
        let twice = [text("a"), text("b")].concat();
        let cases: [(&str, Vec<u8>, &str); 12] = [
            ("empty", vec![], "INVALID_CONTENT"),
            ("empty text", text(""), "INVALID_CONTENT"),
            ("notice", notice, "CONTENT_NOT_ALLOWED"),
            ("two kinds", twice, "INVALID_CONTENT"),
            ("not UTF-8", vec![0x0a, 3, 0x0a, 1, 0xff], "INVALID_CONTENT"),
            (
                "body twice, first not UTF-8",
                vec![0x0a, 6, 0x0a, 1, 0xff, 0x0a, 1, b'a'],
                "INVALID_CONTENT",
            ),
            ("unknown kind", vec![0x7a, 0], "INVALID_CONTENT"),
            ("a number", vec![0x08, 1], "INVALID_CONTENT"),
            ("cut off", vec![0x0a, 9, 0x0a], "INVALID_CONTENT"),
            ("no type", custom("", b"x"), "INVALID_CONTENT"),
            ("long type", custom(&"t".repeat(65), b""), "INVALID_CONTENT"),
            (
                "too large",
                text(&"x".repeat(CONTENT_BYTES_MAX)),
                "LIMIT_EXCEEDED",
            ),
        ];
        for (name, encoded, reason) in cases {
            let failure = check(&encoded).expect_err(name);
            assert_eq!(failure.reason, reason, "{name}");
        }
    }
}
