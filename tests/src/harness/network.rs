//! A network between the nodes of a cluster that a test may cut.
//!
//! Each node has a network namespace of its own. A veth pair joins it to the hub: the namespace
//! of the thread that runs the test, and of every thread that it starts. The hub forwards
//! between the nodes, and drops what has been cut; clients are in the hub, and reach every node.
//!
//! ```text
//! node 1 (127.77.1.1) eth0 ─── node1 ┐
//! node 2 (127.77.2.1) eth0 ─── node2 ┤ hub (127.77.0.1): forwards, drops, clients
//! node 3 (127.77.3.1) eth0 ─── node3 ┘
//! ```
//!
//! Nodes listen on loopback addresses only, so these are: in each of the namespaces `lo` has
//! nothing but 127.0.0.1, and `route_localnet` lets the kernel carry the rest of 127.0.0.0/8
//! over other interfaces.
//!
//! Invariants: the machine's own namespace is never changed, and no interface leads out of
//! these. The namespaces have no names: they end with the threads, files and processes that use
//! them, however the test ends. A packet is dropped exactly if `(from, to)` is in `cut`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::panic;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};

use super::os;

/// Nodes of a network: their number is a part of their address.
const NODES_MAX: u64 = 250;
/// The address of the hub, and of the clients.
const HUB: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
/// All addresses of a network.
const ALL: &str = "127.77.0.0/16";
/// Where the rules that drop stand: after the local table, before the main one.
const RULE_PREFERENCE: u32 = 100;

/// A network namespace without a name.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// Makes one with nothing in it.
    fn new() -> io::Result<Self> {
        // On a thread of its own: the caller stays where it is.
        on_a_thread(|| {
            os::unshare_network()?;
            Self::current()
        })
    }

    /// That of the calling thread.
    fn current() -> io::Result<Self> {
        File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// Moves the calling thread into it, and with it the threads and processes that it starts.
    pub fn enter(&self) -> io::Result<()> {
        os::enter_network(&self.0)
    }

    /// Runs something in it.
    fn within<R: Send>(&self, what: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        on_a_thread(|| {
            self.enter().context("could not enter a namespace")?;
            what()
        })
    }

    /// A path to it, for as long as this process has it open.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// The network of one cluster; clones are the same one.
#[derive(Debug, Clone)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hub: Namespace,
    /// Of node 1, 2, 3 …
    nodes: Vec<Arc<Namespace>>,
    cut: Mutex<BTreeSet<(u64, u64)>>,
}

impl Network {
    /// Why this machine cannot have one, if so: tries, in a namespace that is thrown away.
    pub fn impossible() -> Option<String> {
        let probe = || {
            let namespace = Namespace::new()
                .context("only root (CAP_SYS_ADMIN) may make network namespaces")?;
            namespace.within(|| {
                carry_loopback()?;
                ip("link add node1 type veth peer name eth0")?;
                ip("rule add iif node1 blackhole")
            })
        };
        probe()
            .err()
            .map(|error: anyhow::Error| format!("{error:#}"))
    }

    /// Makes a network for so many nodes and runs something in its hub, on a thread of its own.
    pub fn run<R: Send>(nodes: u64, what: impl FnOnce(Self) -> R + Send) -> Result<R> {
        on_a_thread(|| {
            os::unshare_network().context("could not make a network namespace")?;
            Ok(what(Self::make(nodes)?))
        })
    }

    /// Makes one around the calling thread, whose namespace becomes the hub.
    fn make(nodes: u64) -> Result<Self> {
        assert!(
            nodes <= NODES_MAX,
            "a network has at most {NODES_MAX} nodes"
        );
        carry_loopback()?;
        sysctl("ip_forward", "1")?;
        let mut inner = Inner {
            hub: Namespace::current()?,
            nodes: Vec::new(),
            cut: Mutex::default(),
        };
        for id in 1..=nodes {
            inner.nodes.push(Arc::new(join_node(id)?));
        }
        Ok(Self(Arc::new(inner)))
    }

    /// The address of a node.
    pub fn ip(&self, id: u64) -> Result<Ipv4Addr> {
        self.of(id)?;
        node_ip(id)
    }

    /// The namespace of a node.
    pub fn of(&self, id: u64) -> Result<Arc<Namespace>> {
        let index = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
        let namespace = index.and_then(|index| self.0.nodes.get(index));
        let namespace = namespace.with_context(|| format!("the network has no node {id}"))?;
        Ok(Arc::clone(namespace))
    }

    /// Drops from now on what one node sends to another.
    pub fn cut_one_way(&self, from: u64, to: u64) -> Result<()> {
        self.change(from, to, true)
    }

    /// Carries again what one node sends to another.
    fn heal_one_way(&self, from: u64, to: u64) -> Result<()> {
        self.change(from, to, false)
    }

    /// Drops everything between two nodes.
    pub fn cut(&self, one: u64, other: u64) -> Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Carries everything again.
    pub fn heal_all(&self) -> Result<()> {
        let cut = self.lock_cut().clone();
        for (from, to) in cut {
            self.heal_one_way(from, to)?;
        }
        Ok(())
    }

    fn change(&self, from: u64, to: u64, cut: bool) -> Result<()> {
        let (_, ip_to) = (self.ip(from)?, self.ip(to)?);
        // Held meanwhile, so that the rules are what the set says.
        let mut all = self.lock_cut();
        if all.contains(&(from, to)) == cut {
            return Ok(());
        }
        let verb = if cut { "add" } else { "del" };
        let rule =
            format!("rule {verb} preference {RULE_PREFERENCE} iif node{from} to {ip_to} blackhole");
        self.0.hub.within(|| ip(&rule))?;
        if cut {
            all.insert((from, to));
        } else {
            all.remove(&(from, to));
        }
        Ok(())
    }

    fn lock_cut(&self) -> MutexGuard<'_, BTreeSet<(u64, u64)>> {
        self.0.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node_ip(id: u64) -> Result<Ipv4Addr> {
    Ok(Ipv4Addr::new(127, 77, u8::try_from(id)?, 1))
}

/// Makes the namespace of a node and joins it to that of the calling thread, the hub.
fn join_node(id: u64) -> Result<Namespace> {
    let namespace = Namespace::new()?;
    let own = node_ip(id)?;
    let at = namespace.path();
    ip(&format!(
        "link add node{id} type veth peer name eth0 netns {at}"
    ))?;
    ip(&format!("address add {HUB}/32 dev node{id} scope global"))?;
    ip(&format!("link set node{id} up"))?;
    ip(&format!("route add {own}/32 dev node{id} src {HUB}"))?;
    namespace.within(|| {
        carry_loopback()?;
        ip(&format!("address add {own}/32 dev eth0 scope global"))?;
        ip("link set eth0 up")?;
        ip(&format!("route add {HUB}/32 dev eth0 src {own}"))?;
        ip(&format!("route add {ALL} via {HUB} src {own}"))
    })?;
    Ok(namespace)
}

/// Lets the calling thread's namespace carry 127.0.0.0/8, but for 127.0.0.1, as any addresses.
fn carry_loopback() -> Result<()> {
    sysctl("conf/all/route_localnet", "1")?;
    // Else what comes back over a link that is cut one way is dropped too.
    sysctl("conf/all/rp_filter", "0")?;
    sysctl("conf/default/rp_filter", "0")?;
    ip("link set lo up")?;
    ip("address delete 127.0.0.1/8 dev lo")?;
    ip("address add 127.0.0.1/32 dev lo")
}

/// Sets a value of IPv4 in the calling thread's namespace.
fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv4/{name}");
    std::fs::write(&path, value).with_context(|| format!("could not write {path}"))
}

/// Runs iproute2's `ip` in the calling thread's namespace.
fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .context("could not run ip (the package iproute2)")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("ip {arguments}: {}", text.trim());
    }
    Ok(())
}

/// Runs something on a thread of its own, and panics as it does.
fn on_a_thread<R: Send>(what: impl FnOnce() -> R + Send) -> R {
    let outcome = thread::scope(|scope| scope.spawn(what).join());
    outcome.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    const PORT: u16 = 12_000;
    /// How long a packet may take, and how long none is waited for.
    const PACKET_LIMIT: Duration = Duration::from_millis(500);

    fn socket(network: &Network, id: u64) -> Result<UdpSocket> {
        let at = network.ip(id)?;
        network.of(id)?.within(|| {
            let socket = UdpSocket::bind((at, PORT))?;
            socket.set_read_timeout(Some(PACKET_LIMIT))?;
            Ok(socket)
        })
    }

    /// A packet arrives, or does not.
    fn arrives(from: &UdpSocket, to: &UdpSocket) -> Result<bool> {
        from.send_to(b"packet", to.local_addr()?)?;
        match to.recv_from(&mut [0; 16]) {
            Ok((_, source)) => {
                assert_eq!(source, from.local_addr()?, "from the one who sent it");
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn cuts_what_it_says(network: &Network) -> Result<()> {
        let [one, two, three] = [1, 2, 3].map(|id| socket(network, id));
        let (one, two, three) = (one?, two?, three?);
        let client = UdpSocket::bind((HUB, PORT))?;
        assert!(arrives(&one, &two)? && arrives(&two, &one)?, "at first");
        network.cut_one_way(1, 2)?;
        network.cut_one_way(1, 2)?;
        assert!(!arrives(&one, &two)?, "cut");
        assert!(arrives(&two, &one)?, "not cut this way");
        assert!(arrives(&one, &three)? && arrives(&three, &two)?, "others");
        assert!(arrives(&client, &one)? && arrives(&client, &two)?, "client");
        network.cut(1, 2)?;
        assert!(!arrives(&one, &two)? && !arrives(&two, &one)?, "both ways");
        network.heal_one_way(1, 2)?;
        assert!(arrives(&one, &two)? && !arrives(&two, &one)?, "half");
        network.heal_all()?;
        assert!(arrives(&one, &two)? && arrives(&two, &one)?, "healed");
        assert!(network.ip(4).is_err(), "there are three");
        Ok(())
    }

    #[test]
    fn a_link_is_cut_one_way_or_both() -> Result<()> {
        if let Some(reason) = Network::impossible() {
            println!("SKIPPED: partitions of the network need namespaces: {reason}");
            return Ok(());
        }
        let before = std::fs::read_link("/proc/thread-self/ns/net")?;
        Network::run(3, |network| cuts_what_it_says(&network))??;
        let after = std::fs::read_link("/proc/thread-self/ns/net")?;
        assert_eq!(before, after, "the caller stays where it is");
        Ok(())
    }
}
