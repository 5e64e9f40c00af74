//! Many connections to one destination, all open at once. Prints one line of JSON, [`Report`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::outcome::Outcome;
use crate::{ManyArgs, StreamProtocol, connect, options};

/// What became of the connections.
#[derive(Default, Serialize)]
struct Report {
    /// Connections that were opened and answered.
    opened: usize,
    /// Those of them that answered again, with their own words, once all were open.
    held: usize,
    /// How the others failed.
    failed: BTreeMap<String, usize>,
    /// Different addresses and ports that the servers saw: as many as were opened, or two
    /// connections were one to them.
    distinct: usize,
    /// The addresses that the servers saw.
    seen: BTreeSet<IpAddr>,
    /// The lowest and the highest port that the servers saw.
    ports: Option<(u16, u16)>,
    /// How many connections each server got.
    servers: BTreeMap<String, usize>,
}

/// An open connection.
enum Channel {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

/// Opens all, then asks each again; succeeds when every one answered as itself.
pub async fn run(args: &ManyArgs) -> Result<ExitCode> {
    options::allow_many_sockets()?;
    let slots = Rc::new(Semaphore::new(args.concurrency.max(1)));
    let mut tasks = JoinSet::new();
    let local = tokio::task::LocalSet::new();
    let (protocol, target, limit) = (args.protocol, args.target, args.timeout);
    for number in 0..args.count {
        let slots = Rc::clone(&slots);
        tasks.spawn_local_on(
            async move {
                let _slot = slots.acquire().await?;
                timeout(limit, open(protocol, target, number)).await?
            },
            &local,
        );
    }
    let mut report = Report::default();
    let mut open = Vec::new();
    let mut peers = BTreeSet::new();
    local
        .run_until(async {
            while let Some(done) = tasks.join_next().await {
                match done.context("a connection's task")? {
                    Ok((number, channel, server, peer)) => {
                        open.push((number, channel, peer));
                        peers.insert(peer);
                        *report.servers.entry(server).or_default() += 1;
                    }
                    Err(error) => {
                        let outcome = format!("{:?}", Outcome::of(&error));
                        *report.failed.entry(outcome).or_default() += 1;
                    }
                }
            }
            anyhow::Ok(())
        })
        .await?;
    report.opened = open.len();
    report.distinct = peers.len();
    report.seen = peers.iter().map(SocketAddr::ip).collect();
    let ports = peers.iter().map(SocketAddr::port);
    report.ports = ports.clone().min().zip(ports.max());
    for (number, channel, peer) in &mut open {
        let again = timeout(limit, ask(channel, *number)).await;
        if let Ok(Ok((_, seen))) = again {
            report.held += usize::from(seen == *peer);
        }
    }
    println!("{}", serde_json::to_string(&report)?);
    let is_clean = report.held == args.count && report.distinct == args.count;
    Ok(if is_clean {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn open(
    protocol: StreamProtocol,
    target: SocketAddr,
    number: usize,
) -> Result<(usize, Channel, String, SocketAddr)> {
    let mut channel = match protocol {
        StreamProtocol::Udp => Channel::Udp(connect::open_udp(target, None, 0).await?),
        StreamProtocol::Tcp => {
            let mut stream = BufReader::new(connect::open(target, None, 0).await?);
            let mut greeting = String::new();
            stream.read_line(&mut greeting).await?;
            Channel::Tcp(stream)
        }
    };
    let (server, peer) = ask(&mut channel, number).await?;
    Ok((number, channel, server, peer))
}

/// Sends the connection's number, and returns the server's name and whom it sees.
async fn ask(channel: &mut Channel, number: usize) -> Result<(String, SocketAddr)> {
    let answer = match channel {
        Channel::Tcp(stream) => {
            stream
                .get_mut()
                .write_all(format!("{number}\n").as_bytes())
                .await?;
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            line
        }
        Channel::Udp(socket) => {
            socket.send(number.to_string().as_bytes()).await?;
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer).await?;
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        }
    };
    let words: Vec<_> = answer.split_whitespace().collect();
    match words[..] {
        [server, peer, echo] if echo == number.to_string() => {
            Ok((server.to_owned(), peer.parse()?))
        }
        _ => bail!("connection {number} got {answer:?}"),
    }
}
