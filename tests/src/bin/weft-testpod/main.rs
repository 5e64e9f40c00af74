//! What runs in the playground's pods: servers that say who they are and whom they see, and clients
//! that say exactly how a connection went.
//!
//! A client's exit code is its result, see [`outcome::Outcome`]; what the server said goes to stdout.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

mod bulk;
mod connect;
mod count;
mod fragments;
mod many;
mod options;
mod outcome;
mod path_mtu;
mod ping;
mod sctp;
mod serve;
mod stream;
mod trace;

/// The program of the playground's pods.
#[derive(Parser)]
#[command(name = "weft-testpod", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Wait for a signal.
    Pause,
    /// Serve HTTP, TCP and UDP, and answer with this server's name and the client's address.
    Serve(ServeArgs),
    /// Make one connection, and say how it went.
    Connect(ConnectArgs),
    /// Send ICMP echo requests.
    Ping(PingArgs),
    /// Send numbered messages at a steady rate, and count what does not come back.
    Stream(StreamArgs),
    /// Make connections one after the other, and count the answers of each server.
    Count(CountArgs),
    /// Hold many connections at once, and say how the server sees them.
    Many(ManyArgs),
    /// Send or receive as much as goes, and say how much arrived.
    Bulk(BulkArgs),
    /// Send one datagram in fragments, in any order, and print the answer.
    Fragments(FragmentsArgs),
    /// Show the routers on the way.
    Trace(TraceArgs),
    /// Send datagrams that must not be fragmented, and say what is learnt of the path.
    PathMtu(PathMtuArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// Ports for HTTP: /hostname, /clientip, /echo?msg=TEXT, /healthz, /readyz; anything else answers
    /// JSON. /readyz answers 200 or 503, as /ready or /unready said last.
    #[arg(long, value_delimiter = ',')]
    http: Vec<u16>,
    /// Ports for TCP: the server greets with its name and the client's address, and repeats both
    /// before each line that it sends back.
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<u16>,
    /// Ports for UDP: each datagram is sent back with the name and the client's address before it.
    #[arg(long, value_delimiter = ',')]
    udp: Vec<u16>,
    /// Ports for SCTP: an INIT is answered, and the answer says the name and the client's address.
    #[arg(long, value_delimiter = ',')]
    sctp: Vec<u16>,
    /// Ports for `bulk`, TCP and UDP both.
    #[arg(long, value_delimiter = ',')]
    bulk: Vec<u16>,
    /// The addresses to listen on; by default every one of both families. A UDP server on a machine
    /// with several addresses needs them, to answer from the one that was asked.
    #[arg(long, value_delimiter = ',')]
    address: Vec<IpAddr>,
    /// The name to answer with.
    #[arg(long, env = "HOSTNAME", default_value = "nameless")]
    name: String,
    /// Let /readyz answer 503 at first.
    #[arg(long)]
    unready: bool,
    /// Seconds to go on serving after the signal to end.
    #[arg(long, default_value = "0", value_parser = seconds)]
    linger: Duration,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    /// Connect, and print the greeting.
    Tcp,
    /// Send a datagram, and print the answer.
    Udp,
    /// GET, and print the body.
    Http,
    /// Send an INIT, and print what its answer says.
    Sctp,
}

#[derive(Args)]
struct ConnectArgs {
    /// What to speak.
    protocol: Protocol,
    /// Address and port of the server.
    target: SocketAddr,
    /// Seconds until the attempt counts as timed out.
    #[arg(long, default_value = "2", value_parser = seconds)]
    timeout: Duration,
    /// The local port; any free one by default.
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// The local address; the one that the route prefers by default.
    #[arg(long)]
    source: Option<IpAddr>,
    /// The path to GET.
    #[arg(long, default_value = "/hostname")]
    path: String,
    /// HTTP: take any status for success, and print it, the header and the body as they came.
    #[arg(long)]
    whole: bool,
    /// Bytes of payload to have sent back (TCP, UDP): what differs is a failure, and only what the
    /// server put before it is printed.
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// UDP: take an answer from anyone.
    #[arg(long)]
    unconnected: bool,
    /// First print, as a line of JSON, what the socket believes: `local`, `peer` (none of an
    /// unconnected one), and, for UDP, whom the answer came `from`.
    #[arg(long)]
    ends: bool,
}

#[derive(Args)]
struct CountArgs {
    /// What to speak; over HTTP the path is /hostname, and clients are not reported.
    protocol: Protocol,
    /// Address and port of the server.
    target: SocketAddr,
    /// How many connections to make.
    #[arg(long, default_value_t = 20)]
    count: usize,
    /// Stop early once so many different servers have answered.
    #[arg(long)]
    servers: Option<usize>,
    /// Seconds that each may take.
    #[arg(long, default_value = "2", value_parser = seconds)]
    timeout: Duration,
    /// The local port of all of them; another for each by default.
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// The local address; the one that the route prefers by default.
    #[arg(long)]
    source: Option<IpAddr>,
}

#[derive(Args)]
struct PingArgs {
    /// Whom to ask.
    target: IpAddr,
    /// How many requests to send; one answer is enough for success.
    #[arg(long, default_value_t = 1)]
    count: u16,
    /// Seconds to wait for each answer.
    #[arg(long, default_value = "2", value_parser = seconds)]
    timeout: Duration,
    /// Bytes of payload.
    #[arg(long, default_value_t = 56)]
    size: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StreamProtocol {
    /// One connection to a `serve --tcp` port.
    Tcp,
    /// Datagrams to a `serve --udp` port.
    Udp,
}

#[derive(Args)]
struct StreamArgs {
    /// What to speak.
    protocol: StreamProtocol,
    /// Address and port of the server.
    target: SocketAddr,
    /// Messages per second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// The local port; any free one by default.
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// The local address; the one that the route prefers by default.
    #[arg(long)]
    source: Option<IpAddr>,
    /// UDP: take answers from anyone.
    #[arg(long)]
    unconnected: bool,
    /// UDP: print `sending` at the start, go on after errors, and print each change as it comes: the
    /// name of a server that answers, or `Refused`, `TimedOut`, `Unreachable` or `Failed`.
    #[arg(long)]
    persistent: bool,
    /// Seconds to send for; a signal to end ends it earlier, with a report.
    #[arg(long, default_value = "5", value_parser = seconds)]
    duration: Duration,
    /// Seconds to wait for the last answers, and for the connection.
    #[arg(long, default_value = "2", value_parser = seconds)]
    timeout: Duration,
}

#[derive(Args)]
struct ManyArgs {
    /// What to speak.
    protocol: StreamProtocol,
    /// Address and port of a `serve --tcp` or `serve --udp`.
    target: SocketAddr,
    /// How many connections to hold.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// How many to open at the same time.
    #[arg(long, default_value_t = 100)]
    concurrency: usize,
    /// Seconds that each may take.
    #[arg(long, default_value = "5", value_parser = seconds)]
    timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// From this client to the server.
    Up,
    /// From the server to this client.
    Down,
}

#[derive(Args)]
struct BulkArgs {
    /// What to speak.
    protocol: StreamProtocol,
    /// Which way.
    direction: Direction,
    /// Address and port of a `serve --bulk`.
    target: SocketAddr,
    /// Seconds to send for.
    #[arg(long, default_value = "2", value_parser = seconds)]
    duration: Duration,
    /// UDP: bits of payload per second that are sent.
    #[arg(long, default_value_t = 100_000_000)]
    bitrate: u64,
    /// Seconds that everything else may take.
    #[arg(long, default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Extension {
    /// A hop-by-hop options header.
    HopByHop,
    /// A destination options header.
    Destination,
}

#[derive(Args)]
struct FragmentsArgs {
    /// Address and port of a `serve --udp`.
    target: SocketAddr,
    /// Bytes of payload.
    #[arg(long, default_value_t = 3000)]
    size: usize,
    /// Bytes of UDP in each fragment but the last, a multiple of 8; the first has the UDP header.
    #[arg(long, default_value_t = 1200)]
    fragment_size: u16,
    /// Which fragments to send, from 0, in this order; by default all in theirs. One may be left out
    /// or come twice.
    #[arg(long, value_delimiter = ',')]
    order: Vec<usize>,
    /// Seconds between two fragments.
    #[arg(long, default_value = "0", value_parser = seconds)]
    gap: Duration,
    /// The fragments' common id: 16 bits in IPv4, 32 in IPv6.
    #[arg(long, default_value_t = 4711)]
    id: u32,
    /// The local port; any free one by default.
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// IPv6: an extension header before the fragment header.
    #[arg(long)]
    extension: Option<Extension>,
    /// Do not wait for an answer.
    #[arg(long)]
    no_answer: bool,
    /// Seconds to wait for the answer.
    #[arg(long, default_value = "2", value_parser = seconds)]
    timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProbeProtocol {
    /// Datagrams to a port that nobody should have.
    Udp,
    /// Echo requests.
    Icmp,
}

#[derive(Args)]
struct TraceArgs {
    /// What the probes are.
    protocol: ProbeProtocol,
    /// Whom to reach.
    target: IpAddr,
    /// UDP: the target's port.
    #[arg(long, default_value_t = 33434)]
    port: u16,
    /// UDP: the local port; any free one by default.
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// The last hop to probe.
    #[arg(long, default_value_t = 8)]
    max_hops: u8,
    /// Seconds to wait for each answer.
    #[arg(long, default_value = "1", value_parser = seconds)]
    timeout: Duration,
}

#[derive(Args)]
struct PathMtuArgs {
    /// Address and port of a `serve --udp`.
    target: SocketAddr,
    /// Bytes of the IP packets.
    #[arg(long, default_value_t = 1500)]
    size: usize,
    /// How many to send at most: the first ones may only teach this machine.
    #[arg(long, default_value_t = 3)]
    tries: u32,
    /// Seconds to wait for each answer.
    #[arg(long, default_value = "1", value_parser = seconds)]
    timeout: Duration,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(code) => code,
        Err(error) => outcome::report(&error),
    }
}

fn run(command: &Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Pause => {
                serve::terminated().await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Serve(args) => serve::run(args).await,
            Command::Connect(args) => connect::run(args).await,
            Command::Count(args) => count::run(args).await,
            Command::Stream(args) => stream::run(args).await,
            Command::Many(args) => many::run(args).await,
            Command::Bulk(args) => bulk::run(args).await,
            Command::Ping(args) => ping::run(args),
            Command::Fragments(args) => fragments::run(args),
            Command::Trace(args) => trace::run(args),
            Command::PathMtu(args) => path_mtu::run(args),
        }
    })
}

/// A flag's value in seconds, fractions allowed.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
