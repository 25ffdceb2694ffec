//! Reading the newest page of conversations that are in memory, one page at a time at a
//! low rate: what a user waits for who opens a chat.
//!
//! Latency counts from when the call was made: at this load nothing queues.

use std::io;
use std::time::Duration;

use anyhow::Context;
use carillon_proto::v1;
use carillon_proto::v1::chat_client::ChatClient;
use clap::Args;
use futures_util::stream::{StreamExt, TryStreamExt};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::transport::Channel;

use super::duration::parse_duration;
use super::fleet::Clock;
use super::meter::{Latencies, Quantiles};
use super::population::{channel, direct, request_as};
use super::report::latency_row;
use super::{Targets, say};
use crate::output;

/// Conversations that are read, so that they spread over the shards.
const ROOMS: usize = 48;
/// The user who reads.
const READER: &str = "bench-reader";
/// Messages that are written at the same time while conversations are filled.
const FILLING_MAX: usize = 64;
/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct HistoryArguments {
    /// Messages of a page.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    page: u32,
    /// Pages a second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// How long to measure.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Bytes of each message's text.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    payload: u32,
}

#[derive(Debug, Serialize)]
pub struct HistoryReport {
    page: u32,
    payload_bytes: u32,
    rate: u32,
    pages: Quantiles,
    failed: u64,
}

/// Fills the conversations when they are short, and reads them.
pub async fn run(arguments: &HistoryArguments, targets: &Targets) -> anyhow::Result<HistoryReport> {
    let endpoints = targets.endpoints.iter();
    let channels = endpoints
        .map(|endpoint| channel(endpoint))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let rooms: Vec<String> = (0..ROOMS)
        .map(|n| {
            let id = direct(READER, &format!("bench-writer{n}"));
            String::from_utf8_lossy(&id).into_owned()
        })
        .collect();
    say(&format!("filling {ROOMS} conversations"));
    for room in &rooms {
        fill(&channels[0], room, arguments).await?;
    }
    say(&format!(
        "reading {} pages a second for {:?}",
        arguments.rate, arguments.duration
    ));
    let clock = Clock::start();
    let mut latencies = Latencies::default();
    let mut failed = 0;
    let period = Duration::from_secs(1) / arguments.rate;
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let end = Instant::now() + arguments.duration;
    let mut n = 0;
    while Instant::now() < end {
        ticks.tick().await;
        let from = clock.now_ns();
        let channel = channels[n % channels.len()].clone();
        // Every conversation through every node in turn.
        let room = &rooms[n / channels.len() % ROOMS];
        n += 1;
        match newest(channel, room, arguments.page).await {
            Ok(page) if page.messages.len() == arguments.page as usize => {
                latencies.record(from, clock.now_ns());
            }
            Ok(_) | Err(_) => failed += 1,
        }
    }
    Ok(HistoryReport {
        page: arguments.page,
        payload_bytes: arguments.payload,
        rate: arguments.rate,
        pages: latencies.quantiles(),
        failed,
    })
}

/// Writes messages until there is a page of them.
async fn fill(channel: &Channel, room: &str, arguments: &HistoryArguments) -> anyhow::Result<()> {
    let wanted = u64::from(arguments.page);
    let have = match newest(channel.clone(), room, 1).await {
        Ok(page) => page.last_seq,
        Err(status) if status.code() == tonic::Code::NotFound => 0,
        Err(status) => return Err(status).with_context(|| format!("could not read {room}")),
    };
    let text = "x".repeat(arguments.payload as usize);
    futures_util::stream::iter(have..wanted)
        .map(|n| send(channel.clone(), room, n, &text))
        .buffer_unordered(FILLING_MAX)
        .try_collect::<()>()
        .await
        .with_context(|| format!("could not write to {room}"))
}

async fn send(channel: Channel, room: &str, n: u64, text: &str) -> anyhow::Result<()> {
    let body = text.to_owned();
    let mut request = request_as(
        READER,
        v1::SendRequest {
            conversation_id: room.to_owned(),
            client_message_id: format!("fill-{n}"),
            content: Some(v1::Content {
                kind: Some(v1::content::Kind::Text(v1::Text { body })),
            }),
        },
    )?;
    request.set_timeout(CALL_LIMIT);
    ChatClient::new(channel).send(request).await?;
    Ok(())
}

async fn newest(
    channel: Channel,
    room: &str,
    limit: u32,
) -> Result<v1::GetMessagesResponse, tonic::Status> {
    let request = v1::GetMessagesRequest {
        conversation_id: room.to_owned(),
        direction: v1::Direction::Backward.into(),
        limit,
        ..v1::GetMessagesRequest::default()
    };
    let mut request = request_as(READER, request)
        .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
    request.set_timeout(CALL_LIMIT);
    let answer = ChatClient::new(channel).get_messages(request).await?;
    Ok(answer.into_inner())
}

impl HistoryReport {
    pub fn show(&self) -> io::Result<()> {
        output::line(&format!(
            "the newest {} messages of {} bytes, {} pages/s, through each node in turn",
            self.page, self.payload_bytes, self.rate
        ))?;
        let columns = ["pages", "", "p50 ms", "p90", "p99", "p99.9", "max"];
        let mut table = output::table(&columns);
        let pages = [self.pages.count.to_string()];
        table.add_row(latency_row(pages, "history page", &self.pages));
        output::show(&table)?;
        if self.failed > 0 {
            output::line(&format!("{} pages failed or were short", self.failed))?;
        }
        Ok(())
    }
}
