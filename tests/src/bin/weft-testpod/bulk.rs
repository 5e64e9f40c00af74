//! As many bytes as the network takes in a bounded time, counted where they arrive.
//!
//! Over TCP the client says `up` or `down MILLISECONDS` in a first line; after `up` it sends until it
//! is done, and the server answers with its [`Tally`]. Over UDP every datagram from the client is
//! counted, but `down MILLISECONDS BITS` asks for datagrams, and `tally` for the count so far.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{BulkArgs, Direction, StreamProtocol, connect};

/// Bytes of a datagram's payload: with headers it fits every uplink and overlay.
const DATAGRAM: usize = 1200;

/// How often paced datagrams are sent.
const TICK: Duration = Duration::from_millis(1);

/// How long a receiver of datagrams waits for the first, and for one more.
const SILENCE: Duration = Duration::from_secs(1);

/// After how long a tally is of what goes on, and not of the start: bursts are over.
const SETTLED: Duration = Duration::from_secs(1);

/// What arrived.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Bytes of payload.
    bytes: u64,
    /// From the first byte to the last, in microseconds.
    microseconds: u64,
    /// Bytes of payload that arrived after [`SETTLED`].
    settled_bytes: u64,
    /// From the last byte before [`SETTLED`] to the last of all, in microseconds.
    settled_microseconds: u64,
}

impl Tally {
    fn report(&self) -> serde_json::Value {
        let rate = |bytes: u64, microseconds: u64| {
            u128::from(bytes) * 8 * 1_000_000 / u128::from(microseconds.max(1))
        };
        serde_json::json!({
            "bytes": self.bytes, "microseconds": self.microseconds,
            "bits_per_second": rate(self.bytes, self.microseconds),
            "settled": {
                "bytes": self.settled_bytes, "microseconds": self.settled_microseconds,
                "bits_per_second": rate(self.settled_bytes, self.settled_microseconds),
            },
        })
    }
}

/// A tally that goes on.
#[derive(Default)]
struct Count {
    bytes: u64,
    times: Option<(Instant, Instant)>,
    /// The last arrival before [`SETTLED`], and the bytes until then.
    start: Option<(Instant, u64)>,
}

impl Count {
    fn add(&mut self, length: usize) {
        let now = Instant::now();
        let first = self.times.map_or(now, |(first, _)| first);
        self.times = Some((first, now));
        self.bytes += length as u64;
        if now - first <= SETTLED {
            self.start = Some((now, self.bytes));
        }
    }

    fn tally(&self) -> Tally {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (Some((first, last)), Some((settled, before))) = (self.times, self.start) else {
            return Tally::default();
        };
        Tally {
            bytes: self.bytes,
            microseconds: micros(last - first),
            settled_bytes: self.bytes - before,
            settled_microseconds: micros(last - settled),
        }
    }
}

/// Sends or receives for the given time, and prints the receiver's tally with its rate.
pub async fn run(args: &BulkArgs) -> Result<ExitCode> {
    let limit = args.duration + args.timeout;
    let done = match args.protocol {
        StreamProtocol::Tcp => timeout(limit, tcp(args)).await,
        StreamProtocol::Udp => timeout(limit + SILENCE, udp(args)).await,
    };
    let tally = done??;
    println!("{}", tally.report());
    Ok(ExitCode::SUCCESS)
}

async fn tcp(args: &BulkArgs) -> Result<Tally> {
    let mut stream = connect::open(args.target, None, 0).await?;
    match args.direction {
        Direction::Up => {
            stream.write_all(b"up\n").await?;
            pour(&mut stream, args.duration).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            serde_json::from_slice(&answer).context("the server's tally")
        }
        Direction::Down => {
            let request = format!("down {}\n", args.duration.as_millis());
            stream.write_all(request.as_bytes()).await?;
            drain(&mut stream).await
        }
    }
}

async fn pour(stream: &mut TcpStream, duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    let chunk = vec![0; 1 << 16];
    while Instant::now() < end {
        // What is on its way when the time is over still counts.
        match timeout(duration, stream.write(&chunk)).await {
            Ok(written) => drop(written?),
            Err(_) => break,
        }
    }
    Ok(())
}

async fn drain(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<Tally> {
    let mut count = Count::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(count.tally()),
            length => count.add(length),
        }
    }
}

async fn udp(args: &BulkArgs) -> Result<Tally> {
    let socket = connect::open_udp(args.target, None, 0).await?;
    match args.direction {
        Direction::Up => {
            pace(&socket, None, args.duration, args.bitrate).await?;
            let mut answer = [0; 512];
            loop {
                socket.send(b"tally").await?;
                // The request may be lost where the rest was.
                if let Ok(length) = timeout(SILENCE, socket.recv(&mut answer)).await {
                    return serde_json::from_slice(&answer[..length?]).context("the tally");
                }
            }
        }
        Direction::Down => {
            let request = format!("down {} {}", args.duration.as_millis(), args.bitrate);
            socket.send(request.as_bytes()).await?;
            let mut count = Count::default();
            let mut buffer = [0; DATAGRAM];
            while let Ok(length) = timeout(SILENCE, socket.recv(&mut buffer)).await {
                count.add(length?);
            }
            if count.bytes == 0 {
                bail!("nothing came");
            }
            Ok(count.tally())
        }
    }
}

/// Sends datagrams of zeros at a rate in bits per second.
async fn pace(
    socket: &UdpSocket,
    to: Option<SocketAddr>,
    duration: Duration,
    rate: u64,
) -> Result<()> {
    let datagram = [0; DATAGRAM];
    let start = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent: u128 = 0;
    while start.elapsed() < duration {
        ticks.tick().await;
        let elapsed = start.elapsed().min(duration);
        let due = u128::from(rate) * elapsed.as_micros() / 8_000_000;
        while sent + DATAGRAM as u128 <= due {
            let done = match to {
                Some(to) => socket.send_to(&datagram, to).await,
                None => socket.send(&datagram).await,
            };
            match done {
                Ok(_) => {}
                // A full queue loses it, as any network may.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error).context("sending"),
            }
            sent += DATAGRAM as u128;
        }
    }
    Ok(())
}

/// Serves one connection.
pub async fn serve_tcp(stream: TcpStream, _: SocketAddr, _: Rc<str>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?;
    let mut words = request.split_whitespace();
    match (words.next(), words.next()) {
        (Some("up"), _) => {
            let tally = drain(&mut stream).await?;
            let answer = serde_json::to_vec(&tally)?;
            stream.get_mut().write_all(&answer).await?;
        }
        (Some("down"), Some(milliseconds)) => {
            let duration = Duration::from_millis(milliseconds.parse()?);
            pour(stream.get_mut(), duration).await?;
        }
        _ => bail!("nobody knows what {request:?} is"),
    }
    stream.get_mut().shutdown().await?;
    Ok(())
}

/// Serves datagrams.
pub async fn serve_udp(socket: UdpSocket, _: Rc<str>) {
    let socket = Rc::new(socket);
    let mut counts: BTreeMap<SocketAddr, Count> = BTreeMap::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                eprintln!("UDP: {error}");
                continue;
            }
        };
        let text = std::str::from_utf8(&buffer[..length]).unwrap_or_default();
        let words: Vec<_> = text.split(' ').collect();
        match words[..] {
            ["tally"] => {
                let tally = counts.get(&client).map(Count::tally).unwrap_or_default();
                let answer = serde_json::to_vec(&tally).unwrap_or_default();
                if let Err(error) = socket.send_to(&answer, client).await {
                    eprintln!("UDP to {client}: {error}");
                }
            }
            ["down", milliseconds, rate] => {
                let (Ok(milliseconds), Ok(rate)) = (milliseconds.parse(), rate.parse()) else {
                    continue;
                };
                let socket = Rc::clone(&socket);
                tokio::task::spawn_local(async move {
                    let duration = Duration::from_millis(milliseconds);
                    if let Err(error) = pace(&socket, Some(client), duration, rate).await {
                        eprintln!("UDP to {client}: {error:#}");
                    }
                });
            }
            _ => counts.entry(client).or_default().add(length),
        }
    }
}
