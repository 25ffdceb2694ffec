//! Just enough HTTP to ask a node for `/readyz`, `/healthz` and `/metrics`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes of an answer that are read.
const BODY_BYTES_MAX: u64 = 8 << 20;

/// Gets a path; returns the status code and the body.
pub async fn get(address: &str, path: &str, limit: Duration) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(BODY_BYTES_MAX).read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("an HTTP answer without an end of its head")?;
        let code = head
            .split_whitespace()
            .nth(1)
            .context("an HTTP answer without a status")?
            .parse()?;
        anyhow::Ok((code, body.to_owned()))
    };
    tokio::time::timeout(limit, exchange)
        .await
        .with_context(|| format!("no answer from http://{address}{path} within {limit:?}"))?
}
