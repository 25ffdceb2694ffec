//! Rotations in a simulated world: Secrets that kubelets copy late, nodes that read them later,
//! an operator that stops between any two writes, a second one that works at the same time, and
//! people who change their minds, and delete what they should not. The Secret of the
//! authorities itself stays: what its loss costs is not shown here.
//!
//! A failure names its seed: `CARILLON_SEED=7 cargo test -p carillon-operator --test rotation`.

#[path = "../../node/core/tests/steering/rng.rs"]
#[expect(dead_code, reason = "others pick")]
mod rng;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};

use carillon_operator::authority::{Authorities, Authority};
use carillon_operator::plan::MemberName;
use carillon_operator::rotation::{
    Answers, AuthorityId, Kept, Leaf, LeafStep, Mark, Next, Question, Wanted, decide, leaf,
};
use carillon_operator::tls::{self, Issued};
use k8s_openapi::api::core::v1::Secret;
use rng::Rng;

/// Worlds of one run.
const SEEDS: u64 = 200;
/// Ticks, of a second each, in which things go wrong.
const TROUBLED_TICKS: u64 = 1_500;
/// Ticks within which a world without troubles comes to rest.
const CALM_TICKS: u64 = 1_500;
/// Authorities that there are, made once: keys take their time.
const POOL: usize = 64;
/// How often, of 100, the operator stops before a write.
const STOPS_PERCENT: u64 = 5;
const MEMBERS_MAX: u32 = 5;

/// A Secret with a leaf: whose, and what is trusted beside it.
#[derive(Clone, PartialEq)]
struct Files {
    issuer: AuthorityId,
    bundle: String,
    trusted: BTreeSet<AuthorityId>,
}

impl Files {
    fn trusts(&self, id: &AuthorityId) -> bool {
        self.trusted.contains(id)
    }
}

fn trusted(bundle: &str) -> BTreeSet<AuthorityId> {
    let blocks = tls::blocks(bundle);
    let ids = blocks
        .iter()
        .map(|block| tls::id(block).expect("it is one"));
    ids.collect()
}

/// A running node: what its kubelet has copied, and what it has read of that.
struct Pod {
    volume: Files,
    read: Files,
    answers: bool,
}

struct World {
    rng: Rng,
    now_s: u64,
    pool: Pool,
    /// With mode Secret: the number of the one that was given.
    given: Option<usize>,
    revision: u64,
    ends_soon: bool,
    overlap_s: u64,
    /// `NAME-ca`, and how often it was written.
    kept: Option<Authorities>,
    version: u64,
    admin: Option<Files>,
    leaves: BTreeMap<MemberName, Files>,
    pods: BTreeMap<MemberName, Pod>,
    nodes: u32,
    /// What clients were given to trust, and since when.
    published: Vec<(u64, BTreeSet<AuthorityId>)>,
    writes: u64,
    switches: u64,
    /// Members are not asked: the invariants must notice.
    lies: bool,
}

type Pool = Vec<(Issued, AuthorityId)>;

/// The operator stopped.
struct Stopped;

impl World {
    fn new(seed: u64, pool: Pool, lies: bool) -> World {
        let mut rng = Rng::new(seed);
        World {
            given: rng.chance(40).then_some(0),
            overlap_s: [0, 5, 60][rng.below(3) as usize],
            rng,
            now_s: 1_000,
            pool,
            revision: 0,
            ends_soon: false,
            kept: None,
            version: 0,
            admin: None,
            leaves: BTreeMap::new(),
            pods: BTreeMap::new(),
            nodes: 3,
            published: Vec::new(),
            writes: 0,
            switches: 0,
            lies,
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            mark: match self.given {
                Some(given) => Mark(format!("given/{given}")),
                None => Mark(self.revision.to_string()),
            },
            anew: self.given.is_none() && self.ends_soon,
            overlap_s: self.overlap_s,
        }
    }

    /// One that nobody has heard of.
    fn unheard(&mut self) -> usize {
        let pods = self.pods.values().flat_map(|pod| [&pod.volume, &pod.read]);
        let files = pods.chain(self.leaves.values()).chain(&self.admin);
        let heard: BTreeSet<_> = files.flat_map(|files| &files.trusted).collect();
        let kept = self.kept.as_ref().map(|kept| trusted(&kept.bundle()));
        let kept = kept.unwrap_or_default();
        let begin = self.rng.below(POOL as u64) as usize;
        let mut numbers = (begin..begin + POOL).map(|number| number % POOL);
        let number = numbers.find(|number| {
            let id = &self.pool[*number].1;
            !heard.contains(id) && !kept.contains(id)
        });
        number.expect("the pool is large enough")
    }

    /// The wanted authority: what was given, or a new one.
    fn authority(&mut self) -> Authority {
        let number = match self.given {
            Some(given) => given,
            None => self.unheard(),
        };
        Authority {
            issued: self.pool[number].0.clone(),
            mark: self.wanted().mark,
        }
    }

    fn may_stop(&mut self) -> Result<(), Stopped> {
        match self.rng.chance(STOPS_PERCENT) {
            true => Err(Stopped),
            false => Ok(()),
        }
    }

    /// Through the Secret, as the API server has it.
    fn write(&mut self, all: &Authorities) {
        let mut secret = Secret::default();
        all.write(&mut secret);
        self.kept = Authorities::read(&secret);
        self.version += 1;
        self.writes += 1;
        let now_s = self.now_s;
        self.published.push((now_s, trusted(&all.bundle())));
    }

    fn members(&self) -> BTreeSet<MemberName> {
        let wanted = (0..self.nodes).map(|index| MemberName::new("chat", index));
        wanted.chain(self.pods.keys().cloned()).collect()
    }

    /// One pass, as the operator's.
    fn pass(&mut self, depth: u32) -> Result<(), Stopped> {
        for _ in 0..4 {
            let wanted = self.authority();
            let trusted = self.admin.as_ref().map(|admin| admin.bundle.clone());
            let resumed = Authorities::resumed::<Infallible>(
                self.kept.clone(),
                trusted.as_deref(),
                || Ok(wanted.clone()),
                self.now_s,
            );
            let Ok((mut all, changed)) = resumed;
            if changed {
                self.may_stop()?;
                self.write(&all);
            }
            let version = self.version;
            let kept = all.kept().expect("they are certificates");
            self.leaves(&all, &kept)?;
            let mut next = decide(&kept, &self.wanted(), self.now_s, None);
            if let Next::Ask(question) = next {
                let answers = self.ask(question, &kept);
                next = decide(&kept, &self.wanted(), self.now_s, Some(&answers));
            }
            if depth == 0 && self.rng.chance(5) {
                // One that does not know yet that it leads no more, or does by now.
                let _ = self.pass(1);
            }
            match &next {
                Next::Rest | Next::Ask(_) | Next::Wait { .. } => break,
                Next::Begin => all.begin(wanted, self.now_s),
                Next::GiveUp => all.give_up(self.now_s),
                Next::Switch => {
                    all.switch();
                    self.switches += 1;
                    // It will not end soon any more.
                    self.ends_soon = false;
                }
                Next::Finish => all.finish(self.now_s),
            }
            self.may_stop()?;
            if self.version != version {
                return Err(Stopped);
            }
            self.write(&all);
        }
        self.may_stop()?;
        // Pods come after what they mount.
        for index in 0..self.nodes {
            let name = MemberName::new("chat", index);
            if let Some(files) = self.leaves.get(&name)
                && !self.pods.contains_key(&name)
            {
                let pod = Pod {
                    volume: files.clone(),
                    read: files.clone(),
                    answers: true,
                };
                self.pods.insert(name, pod);
            }
        }
        Ok(())
    }

    fn leaves(&mut self, all: &Authorities, kept: &Kept) -> Result<(), Stopped> {
        let admin = self.leaf(all, kept, self.admin.clone())?;
        self.admin = admin;
        for name in self.members() {
            let found = self.leaves.get(&name).cloned();
            if let Some(made) = self.leaf(all, kept, found)? {
                self.leaves.insert(name, made);
            }
        }
        Ok(())
    }

    fn leaf(
        &mut self,
        all: &Authorities,
        kept: &Kept,
        found: Option<Files>,
    ) -> Result<Option<Files>, Stopped> {
        let bundle = all.bundle();
        let other = |files: &Files| files.issuer != kept.issuing.id;
        let seen = Leaf {
            there: found.is_some(),
            due: found.as_ref().is_none_or(other) || self.rng.chance(3),
            bundled: found.as_ref().is_some_and(|files| files.bundle == bundle),
        };
        let issuer = match leaf(seen, all.issuing.can_issue()) {
            LeafStep::Keep => return Ok(found),
            LeafStep::Wait => return Ok(None),
            LeafStep::Write => match found {
                Some(files) => files.issuer,
                None => return Ok(None),
            },
            LeafStep::Issue => kept.issuing.id.clone(),
        };
        // What was written before it stopped stays written.
        self.may_stop()?;
        self.writes += u64::from(!seen.there || !seen.bundled);
        let trusted = trusted(&bundle);
        Ok(Some(Files {
            issuer,
            bundle,
            trusted,
        }))
    }

    fn ask(&self, question: Question, kept: &Kept) -> Answers {
        let answer = |pod: &Pod| {
            let yes = match (question, &kept.next) {
                _ if self.lies => true,
                (Question::TrustsNext, Some(next)) => pod.read.trusts(&next.id),
                (Question::TrustsNext, None) => false,
                (Question::ShowsIssuing, _) => pod.read.issuer == kept.issuing.id,
            };
            match pod.answers && yes {
                true => Ok(()),
                false => Err("it does not".to_owned()),
            }
        };
        let pods = self.pods.iter();
        pods.map(|(name, pod)| (name.clone(), answer(pod)))
            .collect()
    }

    /// Kubelets copy, nodes read, each in its time.
    fn live(&mut self) {
        for (name, pod) in &mut self.pods {
            if self.rng.chance(8)
                && let Some(files) = self.leaves.get(name)
            {
                pod.volume = files.clone();
            }
            if self.rng.chance(40) {
                pod.read = pod.volume.clone();
            }
        }
    }

    /// What people and machines do.
    fn troubles(&mut self) {
        let number = self.rng.below(u64::from(MEMBERS_MAX)) as u32;
        let name = MemberName::new("chat", number);
        match self.rng.below(150) {
            0 => match &mut self.given {
                Some(given) => *given = self.rng.below(POOL as u64) as usize,
                None => self.revision = self.rng.below(4),
            },
            1 => self.ends_soon = true,
            2 | 3 => {
                self.pods.remove(&name);
            }
            4 if self.is_whole() && self.can_issue() => {
                self.leaves.remove(&name);
            }
            5 => self.nodes = 1 + number,
            6 => {
                let nodes = self.nodes;
                let gone = (nodes..MEMBERS_MAX).map(|index| MemberName::new("chat", index));
                for name in gone {
                    self.pods.remove(&name);
                }
            }
            7 | 8 => {
                if let Some(pod) = self.pods.get_mut(&name) {
                    pod.answers = !pod.answers;
                }
            }
            10 if self.is_whole() => self.admin = None,
            _ => {}
        }
    }

    /// Nobody has done anything to the Secrets that the operator has not seen.
    fn is_whole(&self) -> bool {
        let (Some(kept), Some(admin)) = (&self.kept, &self.admin) else {
            return false;
        };
        kept.kept().is_ok_and(|kept| admin.trusts(&kept.issuing.id))
            && kept.bundle() == admin.bundle
            && self.pods.keys().all(|name| self.leaves.contains_key(name))
    }

    /// A leaf that is lost with the key to make another one costs its member a moment.
    fn can_issue(&self) -> bool {
        self.kept
            .as_ref()
            .is_some_and(|kept| kept.issuing.can_issue())
    }

    fn check(&self) {
        for (name, pod) in &self.pods {
            for (other, by) in &self.pods {
                assert!(
                    by.read.trusts(&pod.read.issuer),
                    "{other} does not trust {name}"
                );
            }
            if let Some(admin) = &self.admin {
                assert!(pod.read.trusts(&admin.issuer), "{name} not the operator");
                assert!(admin.trusts(&pod.read.issuer), "the operator not {name}");
            }
            for known in self.learnt() {
                assert!(known.contains(&pod.read.issuer), "clients not {name}");
            }
        }
    }

    /// What clients trust that learn within the overlap.
    fn learnt(&self) -> impl Iterator<Item = &BTreeSet<AuthorityId>> {
        let since_s = self.now_s.saturating_sub(self.overlap_s);
        let before = self
            .published
            .iter()
            .rposition(|(at_s, _)| *at_s <= since_s);
        self.published[before.unwrap_or_default()..]
            .iter()
            .map(|(_, trusted)| trusted)
    }

    fn tick(&mut self) {
        self.now_s += 1;
        self.live();
        if self.rng.chance(40) {
            let _ = self.pass(0);
        }
        self.check();
    }
}

fn pool() -> Pool {
    let made = (0..POOL).map(|_| {
        let made = tls::make_authority("prod.chat", 1_800_000_000).expect("it is made");
        let id = tls::id(&made.certificate).expect("it is one");
        (made, id)
    });
    made.collect()
}

fn run(seed: u64, pool: &Pool, lies: bool) -> u64 {
    let mut world = World::new(seed, pool.clone(), lies);
    for _ in 0..TROUBLED_TICKS {
        world.troubles();
        world.tick();
    }
    for pod in world.pods.values_mut() {
        pod.answers = true;
    }
    for _ in 0..CALM_TICKS {
        world.tick();
    }
    let all = world.kept.clone().expect("it is there");
    let kept = all.kept().expect("they are certificates");
    let wanted = world.wanted();
    assert_eq!(decide(&kept, &wanted, world.now_s, None), Next::Rest);
    assert_eq!(kept.issuing.mark, wanted.mark, "it is not the wanted one");
    assert_eq!(trusted(&all.bundle()), [kept.issuing.id.clone()].into());
    assert!(world.pods.len() >= world.nodes as usize);
    for pod in world.pods.values() {
        assert!(pod.read.issuer == kept.issuing.id);
        assert_eq!(pod.read.trusted, [kept.issuing.id.clone()].into());
    }
    let writes = world.writes;
    for _ in 0..20 {
        world.tick();
    }
    assert_eq!(world.writes, writes, "it is not idle");
    world.switches
}

#[test]
fn every_leaf_in_use_is_trusted_at_any_moment_and_it_ends() {
    let pool = pool();
    let seeds: Vec<u64> = match std::env::var("CARILLON_SEED") {
        Ok(seed) => vec![seed.parse().expect("CARILLON_SEED is a number")],
        Err(_) => (0..SEEDS).collect(),
    };
    let all = seeds.len() > 1;
    let mut switches = 0;
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed, &pool, false))) {
            Ok(some) => switches += some,
            Err(_) => panic!("seed {seed} failed; the reason is above"),
        }
    }
    println!("{switches} authorities took another one's place");
    assert!(!all || switches > SEEDS, "hardly anything was rotated");
}

#[test]
fn a_rotation_that_asks_nobody_is_found() {
    let pool = pool();
    let found = (0..40).any(|seed| {
        let ran = catch_unwind(AssertUnwindSafe(|| run(seed, &pool, true)));
        ran.is_err()
    });
    assert!(found, "no run noticed");
}
