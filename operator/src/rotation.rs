//! How one authority takes another one's place: `decide(kept, wanted, …)`, the next step. Pure.
//!
//! What there is, is kept in the Secret `NAME-ca` ([`crate::authority`]), so an operator may stop
//! at any point, and another one goes on:
//!
//! | kept | leaves are issued from | everybody is to trust |
//! |---|---|---|
//! | nothing else | `issuing` | `issuing` |
//! | `next` | `issuing` | `issuing`, `next` |
//! | `old` and no `next` | `issuing`, which was `next` | `issuing`, `old` |
//!
//! Invariants:
//! * Nothing is issued from `next` before each member has shown that it trusts it ([`Next::Switch`]).
//! * `old` is trusted until each member has shown a leaf of `issuing` ([`Next::Finish`]).
//! * So each leaf in use is trusted by every member, at any moment.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::MemberName;

/// Tells one authority from another: a hash of its certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuthorityId(pub String);

/// What an authority was made for, or where it comes from. One with another mark than the wanted
/// one is to be exchanged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(pub String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub id: AuthorityId,
    pub mark: Mark,
}

/// What the Secret says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub issuing: Known,
    /// The one that is about to take its place, and since when it is published.
    pub next: Option<Known>,
    pub next_since_s: u64,
    /// When something was trusted no more that was before.
    pub dropped_at_s: u64,
    /// Others that are still trusted.
    pub old: BTreeSet<AuthorityId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub mark: Mark,
    /// One of the same mark has to follow: the issuing one ends soon.
    pub anew: bool,
    /// How long clients have to learn of the next one.
    pub overlap_s: u64,
}

/// What every member with a Pod is asked, by a handshake with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Does it take a certificate of `next`?
    TrustsNext,
    /// Does it show one of `issuing`?
    ShowsIssuing,
}

/// Yes, or why not.
pub type Answers = BTreeMap<MemberName, Result<(), String>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Rest,
    /// Publish the wanted one as `next`, in place of another one if there is one: nothing was
    /// issued from that.
    Begin,
    /// Take `next` back out: the issuing one is wanted after all.
    GiveUp,
    /// Ask all members, and decide again.
    Ask(Question),
    /// `next` becomes the issuing one, and that is `old`.
    Switch,
    /// `old` is trusted no more.
    Finish,
    /// Nothing can be done for so long.
    Wait {
        reason: Wait,
        for_s: u64,
    },
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// Clients have until then to learn of the next one, seconds since 1970.
    Clients { until_s: u64 },
    /// Copies of Secrets from before may still be on their way to members.
    Copies,
    /// A member has not shown yet what it was asked for.
    Member {
        question: Question,
        name: MemberName,
        why: String,
    },
}

/// A kubelet may bring a node a copy of its Secret that is as old as this: twice the minute or so
/// that it takes. What is trusted again that was not a moment ago cannot be told by asking before
/// that: the copy in which it was not may still be on its way.
const SETTLES_S: u64 = 180;
/// Members are asked again after this: they read their files every two seconds.
const ASK_AGAIN_S: u64 = 3;

/// The next step. `answers` are of the question that was asked for what is kept, right before;
/// nothing while none was.
pub fn decide(kept: &Kept, wanted: &Wanted, now_s: u64, answers: Option<&Answers>) -> Next {
    let Some(next) = &kept.next else {
        if !kept.old.is_empty() {
            return asked(Question::ShowsIssuing, answers, Next::Finish);
        }
        return match kept.issuing.mark != wanted.mark || wanted.anew {
            true => Next::Begin,
            false => Next::Rest,
        };
    };
    if next.mark != wanted.mark {
        return match kept.issuing.mark == wanted.mark && !wanted.anew {
            true => Next::GiveUp,
            false => Next::Begin,
        };
    }
    // A clock that was set back makes nobody wait longer than that.
    let until_s = kept.next_since_s.saturating_add(wanted.overlap_s);
    let left_s = until_s.saturating_sub(now_s).min(wanted.overlap_s);
    if left_s > 0 {
        return Next::Wait {
            reason: Wait::Clients { until_s },
            for_s: left_s,
        };
    }
    let until_s = kept.dropped_at_s.saturating_add(SETTLES_S);
    let left_s = until_s.saturating_sub(now_s).min(SETTLES_S);
    if left_s > 0 {
        return Next::Wait {
            reason: Wait::Copies,
            for_s: left_s,
        };
    }
    asked(Question::TrustsNext, answers, Next::Switch)
}

fn asked(question: Question, answers: Option<&Answers>, then: Next) -> Next {
    let Some(answers) = answers else {
        return Next::Ask(question);
    };
    let mut refused = answers.iter().filter_map(|(name, answer)| {
        let why = answer.as_ref().err()?;
        Some((name, why))
    });
    match refused.next() {
        None => then,
        Some((name, why)) => Next::Wait {
            reason: Wait::Member {
                question,
                name: name.clone(),
                why: why.clone(),
            },
            for_s: ASK_AGAIN_S,
        },
    }
}

/// What is done about a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeafStep {
    Keep,
    /// The same leaf, with what is trusted now beside it.
    Write,
    /// A new one of the issuing authority.
    Issue,
    /// There is none, and none can be made until the next authority issues.
    Wait,
}

/// What is known of a leaf.
#[derive(Debug, Clone, Copy)]
pub struct Leaf {
    /// There is one that works.
    pub there: bool,
    /// It is to be made anew: it ends soon, is of another authority than the issuing one, or is
    /// for other names.
    pub due: bool,
    /// Beside it is what is to be trusted now.
    pub bundled: bool,
}

/// Nothing is issued while the issuing authority's key is lost.
pub fn leaf(seen: Leaf, can_issue: bool) -> LeafStep {
    match seen {
        Leaf { due: true, .. } if can_issue => LeafStep::Issue,
        Leaf { there: false, .. } => LeafStep::Wait,
        Leaf { bundled: false, .. } => LeafStep::Write,
        Leaf { .. } => LeafStep::Keep,
    }
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wait::Clients { until_s } => {
                let until = i64::try_from(*until_s).unwrap_or(i64::MAX);
                let until = k8s_openapi::jiff::Timestamp::from_second(until).unwrap_or_default();
                write!(
                    f,
                    "clients have until {until} to learn of the new authority"
                )
            }
            Wait::Copies => write!(
                f,
                "copies of certificates from before may still be on their way to members"
            ),
            Wait::Member {
                question: Question::TrustsNext,
                name,
                why,
            } => write!(f, "{name} does not trust the new authority yet: {why}"),
            Wait::Member {
                question: Question::ShowsIssuing,
                name,
                why,
            } => write!(f, "{name} does not show its new certificate yet: {why}"),
        }
    }
}
