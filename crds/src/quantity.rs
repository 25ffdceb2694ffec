//! Amounts of bytes as Kubernetes writes them: `50Gi`, `1.5T`, `1000`.

/// The suffixes and what they multiply by.
const SUFFIXES: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];
/// Digits after the point that count; Kubernetes keeps as many.
const DECIMALS_MAX: usize = 3;

/// What the schema accepts as a size.
pub const SIZE_PATTERN: &str = r"^[0-9]{1,15}(\.[0-9]{1,3})?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$";

/// Bytes of a quantity, rounded up; nothing for what is none, or is more than a u64 holds.
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .unwrap_or((text, 1));
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(decimals) || decimals.len() > DECIMALS_MAX {
        return None;
    }
    let scale = 10_u128.pow(decimals.len() as u32);
    let fraction: u128 = match decimals {
        "" => 0,
        some => some.parse().ok()?,
    };
    let scaled = whole.parse::<u128>().ok()?.checked_mul(scale)? + fraction;
    u64::try_from(scaled.checked_mul(u128::from(unit))?.div_ceil(scale)).ok()
}

/// Bytes as people write them: `10Gi` where that is exact.
pub fn text(bytes: u64) -> String {
    let exact = ["Pi", "Ti", "Gi", "Mi", "Ki"]
        .into_iter()
        .find_map(|suffix| {
            let (_, unit) = SUFFIXES.iter().find(|(known, _)| *known == suffix)?;
            let whole = bytes > 0 && bytes.is_multiple_of(*unit);
            whole.then(|| format!("{}{suffix}", bytes / unit))
        });
    exact.unwrap_or_else(|| bytes.to_string())
}

#[cfg(test)]
mod tests {
    use super::{bytes, text};

    #[test]
    fn sizes_are_written_as_short_as_is_exact() {
        assert_eq!(text(10 << 30), "10Gi");
        assert_eq!(text((1 << 40) + (1 << 39)), "1536Gi");
        assert_eq!(text(1000), "1000");
        assert_eq!(text(0), "0");
    }

    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1000", Some(1000)),
            ("50Gi", Some(50 << 30)),
            ("1.5Ki", Some(1536)),
            ("1.001", Some(2)),
            ("2k", Some(2000)),
            ("1.5T", Some(1_500_000_000_000)),
            ("", None),
            ("Gi", None),
            ("-1", None),
            ("1.2345Gi", None),
            ("1e3", None),
            ("99999999999999999999Pi", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }
}
