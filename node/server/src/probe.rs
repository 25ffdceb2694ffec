//! `carillon-node probe`: asks the node of a configuration how it is, for a container's probes.
//!
//! Owner of no state.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::config::Config;

/// The node answers within this, or is not well.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// What is asked.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Question {
    /// Whether the process runs.
    Live,
    /// Whether it serves clients.
    Ready,
}

/// Asks; the answer is for people.
///
/// # Errors
/// When the node does not answer, or not with yes.
pub fn ask(config: &Config, question: Question) -> anyhow::Result<String> {
    let path = match question {
        Question::Live => "/healthz",
        Question::Ready => "/readyz",
    };
    let address = reachable(config.listen.http);
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = asked().with_context(|| format!("the node at {address} does not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("{status}: {}", body.trim());
    }
    Ok(body.trim().to_owned())
}

/// Where a node that listens on all addresses is reached from beside it.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}
