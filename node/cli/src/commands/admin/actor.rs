//! Who types: the name that the cluster records with what an operator changes.

use std::ffi::CStr;

/// What the cluster takes, bytes.
const NAME_BYTES_MAX: usize = 128;
/// The longest host name, bytes.
const HOST_BYTES_MAX: usize = 256;

/// The name that was given, or the user and host of this process.
pub fn name(given: Option<&str>) -> String {
    match given {
        Some(name) => plain(name),
        None => {
            let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
            let user = user.unwrap_or_else(|_| "unknown".to_owned());
            plain(&format!("{user}@{}", host()))
        }
    }
}

/// Metadata of calls is ASCII.
fn plain(name: &str) -> String {
    let ascii = name.trim().chars().map(|c| match c {
        ' '..='~' => c,
        _ => '?',
    });
    ascii.take(NAME_BYTES_MAX).collect()
}

fn host() -> String {
    let mut name = [0u8; HOST_BYTES_MAX];
    #[expect(unsafe_code, reason = "std does not know the host's name")]
    // SAFETY: the buffer is as long as is said; the last byte stays 0.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) } != 0;
    let name = CStr::from_bytes_until_nul(&name).ok();
    let name = name.and_then(|name| name.to_str().ok());
    match name.filter(|name| !failed && !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        assert_eq!(name(Some(" Ann ")), "Ann");
        assert_eq!(name(Some("Zoë\n")), "Zo?");
        assert_eq!(name(Some(&"a".repeat(500))).len(), NAME_BYTES_MAX);
        assert!(name(None).contains('@'));
    }
}
