//! Which release may follow which. What the cluster could not go through is refused before any
//! Pod is touched.

use std::fmt;

/// Versions of the cluster that known releases support, by major and minor number; see
/// docs/operations.md, Upgrade.
const RELEASES: [((u32, u32), (u32, u32)); 2] = [((0, 1), (1, 1)), ((0, 2), (1, 2))];

/// A release. Patch and pre-release numbers change nothing about what can follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release {
    pub major: u32,
    pub minor: u32,
}

impl Release {
    pub fn parse(version: &str) -> Option<Release> {
        let mut parts = version.splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        parts.next()?;
        Some(Release { major, minor })
    }

    /// The oldest and the newest version of the cluster that it supports, if that is known here.
    fn supports(self) -> Option<(u32, u32)> {
        let known = RELEASES
            .iter()
            .find(|(release, _)| *release == (self.major, self.minor));
        known.map(|(_, range)| *range)
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why nodes that run `running` must not be exchanged for `target`; nothing when they may.
pub fn refusal(target: &str, running: &[&str], cluster_version: Option<u32>) -> Option<String> {
    let target_release = Release::parse(target)?;
    if let (Some((oldest, newest)), Some(cluster)) = (target_release.supports(), cluster_version) {
        if cluster > newest {
            return Some(format!(
                "release {target} supports the cluster's versions up to {newest}, and the cluster is at {cluster}: there is no way back but a backup"
            ));
        }
        if cluster < oldest {
            return Some(format!(
                "release {target} supports the cluster's versions from {oldest} on, and the cluster is at {cluster}: finish the upgrade before it with 'carillon admin finalize-upgrade'"
            ));
        }
    }
    let oldest = running
        .iter()
        .filter_map(|version| Release::parse(version))
        .min()?;
    let skips = target_release.major > oldest.major
        || (target_release.major == oldest.major && target_release.minor > oldest.minor + 1);
    let next_major = target_release.major == oldest.major + 1 && target_release.minor == 0;
    (skips && !next_major).then(|| {
        format!(
            "nodes run {oldest}, and {target} is more than one release further: upgrade to the one in between first"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::refusal;

    #[test]
    fn steps_that_the_cluster_cannot_make_are_refused() {
        // target, running, the cluster's version, refused
        for (target, running, cluster, refused) in [
            ("0.2.0", &["0.1.0"][..], Some(1), false),
            ("0.2.1", &["0.2.0"], Some(2), false),
            ("0.3.0", &["0.2.0", "0.2.0"], Some(2), false),
            ("0.3.0", &["0.2.0", "0.1.0"], Some(1), true),
            ("0.4.0", &["0.2.0"], Some(2), true),
            ("1.0.0", &["0.9.0"], Some(2), false),
            ("1.1.0", &["0.9.0"], Some(2), true),
            ("2.0.0", &["0.9.0"], Some(2), true),
            ("0.1.0", &["0.2.0"], Some(1), false),
            ("0.1.0", &["0.2.0"], Some(2), true),
            ("0.2.0", &[], None, false),
        ] {
            let reason = refusal(target, running, cluster);
            assert_eq!(
                reason.is_some(),
                refused,
                "{target} after {running:?}: {reason:?}"
            );
        }
    }
}
