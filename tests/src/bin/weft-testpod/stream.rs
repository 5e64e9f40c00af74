//! Numbered messages at a steady rate: the proof that nothing was lost while something happened.
//!
//! Prints `started` once the first answer is in, and at the end one line of JSON, [`Report`]. A
//! persistent one prints more meanwhile, see [`StreamArgs::persistent`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::pin_mut;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UdpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::outcome::Outcome;
use crate::{StreamArgs, StreamProtocol, connect, serve};

/// What became of the messages.
#[derive(Serialize)]
struct Report {
    /// Messages sent.
    sent: u64,
    /// Different messages answered.
    received: u64,
    /// Messages without an answer.
    lost: u64,
    /// Answers beyond the first of a message.
    duplicated: u64,
    /// Answers that came after the answer of a later message.
    reordered: u64,
    /// The longest time without an answer, in milliseconds.
    longest_gap_ms: u128,
    /// Names of the servers that answered.
    servers: BTreeSet<String>,
    /// Who answered, in order, each change once; for a persistent stream also how it failed between.
    changes: Vec<String>,
    /// Errors that a persistent stream went on after.
    errors: u64,
    /// What ended the stream early.
    error: Option<String>,
}

/// Sends, listens and reports; succeeds when every message was answered once and in order.
pub async fn run(args: &StreamArgs) -> Result<ExitCode> {
    let mut channel = timeout(args.timeout, Channel::open(args))
        .await
        .context("connecting")??;
    let is_persistent = args.persistent && args.protocol == StreamProtocol::Udp;
    if is_persistent {
        println!("sending");
    }
    let report = stream(args, &mut channel, is_persistent).await;
    println!("{}", serde_json::to_string(&report)?);
    let clean = report.lost + report.duplicated + report.reordered == 0 && report.error.is_none();
    Ok(if clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn stream(args: &StreamArgs, channel: &mut Channel, is_persistent: bool) -> Report {
    let mut ticks = interval(Duration::from_secs(1) / args.rate.max(1));
    // A late tick must not be lost: the number of messages is part of the proof.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let start = Instant::now();
    let mut end = start + args.duration;
    let mut tally = Tally::new(start, is_persistent);
    let mut error = None;
    let told = serve::terminated();
    pin_mut!(told);
    loop {
        let sending = Instant::now() < end;
        if !sending && tally.answered.len() as u64 == tally.sent {
            break;
        }
        tokio::select! {
            answer = channel.receive() => match answer {
                Ok(answer) => tally.note(&answer),
                Err(broken) if is_persistent => tally.note_error(&broken),
                Err(broken) => { error = Some(broken); break }
            },
            _ = ticks.tick(), if sending => {
                match channel.send(tally.sent).await {
                    Ok(()) => {}
                    Err(broken) if is_persistent => tally.note_error(&broken),
                    Err(broken) => { error = Some(broken); break }
                }
                tally.sent += 1;
            }
            _ = &mut told, if sending => end = Instant::now(),
            () = sleep_until(end + args.timeout) => break,
        }
    }
    tally.into_report(error)
}

/// A running count.
struct Tally {
    sent: u64,
    answered: BTreeSet<u64>,
    duplicated: u64,
    reordered: u64,
    last_answer: Instant,
    longest_gap: Duration,
    servers: BTreeSet<String>,
    changes: Vec<String>,
    errors: u64,
    /// Whether changes are printed as they come.
    is_told: bool,
}

impl Tally {
    fn new(start: Instant, is_told: bool) -> Self {
        Tally {
            changes: Vec::new(),
            errors: 0,
            is_told,
            sent: 0,
            answered: BTreeSet::new(),
            duplicated: 0,
            reordered: 0,
            last_answer: start,
            longest_gap: Duration::ZERO,
            servers: BTreeSet::new(),
        }
    }

    /// Counts an answer of the form `NAME CLIENT NUMBER`; the greeting has no number.
    fn note(&mut self, answer: &str) {
        let mut words = answer.split_whitespace();
        let (server, number) = (
            words.next(),
            words.nth(1).and_then(|word| word.parse().ok()),
        );
        let (Some(server), Some(number)) = (server, number) else {
            return;
        };
        if self.answered.is_empty() && !self.is_told {
            println!("started");
        }
        self.note_change(server);
        let now = Instant::now();
        self.longest_gap = self.longest_gap.max(now - self.last_answer);
        self.last_answer = now;
        self.reordered += u64::from(self.answered.last().is_some_and(|&last| last > number));
        self.duplicated += u64::from(!self.answered.insert(number));
        if !self.servers.contains(server) {
            self.servers.insert(server.to_owned());
        }
    }

    fn note_error(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.note_change(&format!("{:?}", Outcome::of(error)));
    }

    fn note_change(&mut self, now: &str) {
        if self.changes.last().is_none_or(|last| last != now) {
            self.changes.push(now.to_owned());
            if self.is_told {
                println!("{now}");
            }
        }
    }

    fn into_report(self, error: Option<anyhow::Error>) -> Report {
        let received = self.answered.len() as u64;
        Report {
            sent: self.sent,
            received,
            lost: self.sent.saturating_sub(received),
            duplicated: self.duplicated,
            reordered: self.reordered,
            longest_gap_ms: self.longest_gap.as_millis(),
            servers: self.servers,
            changes: self.changes,
            errors: self.errors,
            error: error.map(|error| format!("{error:#}")),
        }
    }
}

/// A way to send numbers and hear answers. Receiving can be cancelled without losing an answer.
enum Channel {
    Tcp {
        answers: Lines<BufReader<OwnedReadHalf>>,
        writer: OwnedWriteHalf,
    },
    Udp {
        socket: UdpSocket,
        /// Whom an unconnected socket sends to.
        to: Option<SocketAddr>,
        buffer: Vec<u8>,
    },
}

impl Channel {
    async fn open(args: &StreamArgs) -> Result<Self> {
        Ok(match args.protocol {
            StreamProtocol::Tcp => {
                let (reader, writer) = connect::open(args.target, args.source, args.source_port)
                    .await?
                    .into_split();
                Channel::Tcp {
                    answers: BufReader::new(reader).lines(),
                    writer,
                }
            }
            StreamProtocol::Udp if args.unconnected => Channel::Udp {
                socket: connect::bind_udp(args.target, args.source, args.source_port).await?,
                to: Some(args.target),
                buffer: vec![0; 65_536],
            },
            StreamProtocol::Udp => Channel::Udp {
                socket: connect::open_udp(args.target, args.source, args.source_port).await?,
                to: None,
                buffer: vec![0; 65_536],
            },
        })
    }

    async fn send(&mut self, number: u64) -> Result<()> {
        match self {
            Channel::Tcp { writer, .. } => writer
                .write_all(format!("{number}\n").as_bytes())
                .await
                .context("sending"),
            Channel::Udp { socket, to, .. } => {
                let message = number.to_string();
                let sent = match to {
                    Some(to) => socket.send_to(message.as_bytes(), *to).await,
                    None => socket.send(message.as_bytes()).await,
                };
                sent.map(drop).context("sending")
            }
        }
    }

    async fn receive(&mut self) -> Result<String> {
        match self {
            Channel::Tcp { answers, .. } => answers
                .next_line()
                .await
                .context("receiving")?
                .context("the server closed the connection"),
            Channel::Udp { socket, buffer, .. } => {
                let length = socket.recv(buffer).await.context("receiving")?;
                Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
            }
        }
    }
}
