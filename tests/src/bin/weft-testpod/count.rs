//! Connections one after the other, each a new one, and who answers them. Prints one line of JSON,
//! [`Report`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::time::timeout;

use crate::outcome::Outcome;
use crate::{ConnectArgs, CountArgs, Protocol, connect, sctp};

/// What became of the connections.
#[derive(Default, Serialize)]
struct Report {
    /// Connections that were answered.
    answered: usize,
    /// How many of them each server answered.
    servers: BTreeMap<String, usize>,
    /// Who answered, in order.
    order: Vec<String>,
    /// The addresses that the servers saw.
    clients: BTreeSet<IpAddr>,
    /// How the others failed: `Refused`, `TimedOut`, `Unreachable` or `Failed`.
    failed: BTreeMap<String, usize>,
}

/// Connects as often as told; succeeds when every connection was answered.
pub async fn run(args: &CountArgs) -> Result<ExitCode> {
    let once = ConnectArgs {
        protocol: args.protocol,
        target: args.target,
        timeout: args.timeout,
        source_port: args.source_port,
        source: args.source,
        path: "/hostname".to_owned(),
        whole: false,
        size: 0,
        unconnected: false,
        ends: false,
    };
    let mut report = Report::default();
    for _ in 0..args.count {
        match answer(&once).await {
            Ok((server, client)) => {
                report.answered += 1;
                *report.servers.entry(server.clone()).or_default() += 1;
                report.order.push(server);
                report.clients.extend(client);
            }
            Err(error) => {
                let outcome = format!("{:?}", Outcome::of(&error));
                *report.failed.entry(outcome).or_default() += 1;
            }
        }
        if args
            .servers
            .is_some_and(|enough| report.servers.len() >= enough)
        {
            break;
        }
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(if report.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The server's name, and whom it sees if it says so.
async fn answer(args: &ConnectArgs) -> Result<(String, Option<IpAddr>)> {
    let answer = match args.protocol {
        Protocol::Tcp => timeout(args.timeout, connect::tcp(args)).await,
        Protocol::Udp => timeout(args.timeout, connect::udp(args)).await,
        Protocol::Http => timeout(args.timeout, connect::http(args)).await,
        Protocol::Sctp => Ok(sctp::connect(args)),
    }??;
    let mut words = answer.split_whitespace();
    let server = words.next().context("the answer has no words")?.to_owned();
    let client = words.next().and_then(|word| word.parse().ok());
    Ok((
        server,
        client.map(|client: std::net::SocketAddr| client.ip()),
    ))
}
