//! What runs in the playground's pods: servers that say who they are and whom they see, and clients
//! that say exactly how a connection went.
//!
//! A client's exit code is its result, see [`outcome::Outcome`]; what the server said goes to stdout.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

mod connect;
mod outcome;
mod ping;
mod serve;
mod stream;

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
}

#[derive(Args)]
struct ServeArgs {
    /// Ports for HTTP: /hostname, /clientip, /echo?msg=TEXT, /healthz; anything else answers JSON.
    #[arg(long, value_delimiter = ',')]
    http: Vec<u16>,
    /// Ports for TCP: the server greets with its name and the client's address, and repeats both
    /// before each line that it sends back.
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<u16>,
    /// Ports for UDP: each datagram is sent back with the name and the client's address before it.
    #[arg(long, value_delimiter = ',')]
    udp: Vec<u16>,
    /// The address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    address: IpAddr,
    /// The name to answer with.
    #[arg(long, env = "HOSTNAME", default_value = "nameless")]
    name: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    /// Connect, and print the greeting.
    Tcp,
    /// Send a datagram, and print the answer.
    Udp,
    /// GET, and print the body.
    Http,
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
    /// The path to GET.
    #[arg(long, default_value = "/hostname")]
    path: String,
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
    /// Seconds to send for.
    #[arg(long, default_value = "5", value_parser = seconds)]
    duration: Duration,
    /// Seconds to wait for the last answers, and for the connection.
    #[arg(long, default_value = "2", value_parser = seconds)]
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
    if let Command::Ping(args) = command {
        return ping::run(args);
    }
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
            Command::Stream(args) => stream::run(args).await,
            Command::Ping(args) => ping::run(args),
        }
    })
}

/// A flag's value in seconds, fractions allowed.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
