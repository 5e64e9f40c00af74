//! Load generators: one client and one server on blocking sockets, each inside its namespace.
//!
//! Invariants:
//! - Client and server are bound to CPUs: the scheduler's choice between one and two would be most
//!   of what is measured. Those that take turns share one ([`Cpus::Shared`]), so that no time is
//!   spent on waking an idle CPU; those that work at the same time have one each.
//! - Every wait has a limit: a path that does not work is an error, never a hang.
//! - Weft and the baseline are loaded by the same code.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::unistd::Pid;
use serde::Serialize;

use crate::netns::Netns;

/// How long anything on the wire may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a server waits before it looks whether the client is done.
const GLANCE: Duration = Duration::from_millis(100);
/// What runs before the clock starts: caches, neighbours, congestion windows.
const WARM_UP: Duration = Duration::from_millis(100);
/// Payload of a UDP packet: with headers, the smallest Ethernet frame.
const DATAGRAM: usize = 18;
/// Bytes that wait for the receiver of datagrams: a few thousand packets.
const RECEIVE_BUFFER: usize = 4 << 20;
/// What a stream counts as one operation: about one packet, as the kernel segments late.
pub const STREAM_UNIT: usize = 64 * 1024;

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// One byte there, one byte back, on one connection.
    RequestResponse,
    /// A connection for each byte there and back.
    ConnectRequestClose,
    /// Small packets one way, counted where they arrive.
    Datagrams,
    /// Bytes one way on one connection, in units of [`STREAM_UNIT`].
    Stream,
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// The client's namespace.
    pub client: &'a Netns,
    /// The server's namespace.
    pub server: &'a Netns,
    /// The address that the client uses: the server's, or a service's.
    pub address: Ipv4Addr,
    /// Whether it is a service's.
    pub service: bool,
}

impl Ends<'_> {
    fn server_port(&self, workload: Workload) -> u16 {
        if self.service {
            workload.backend_port()
        } else {
            workload.port()
        }
    }
}

/// How a client and a server that take turns share the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Cpus {
    /// On one CPU: warm caches, and all time is spent on the path.
    Shared,
    /// On a CPU each, if there are two: each sleeps while the other works, as two hosts would.
    Apart,
}

/// What one run achieved.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Operations begun, those of the warm-up included: what programs on the path have seen, also
    /// of packets that were lost at its end.
    pub total: f64,
    /// Operations completed while the clock ran.
    pub operations: f64,
    /// Packets sent and never seen, in per cent.
    pub lost: f64,
    /// How long the clock ran.
    pub elapsed: Duration,
}

impl Sample {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        self.operations / self.elapsed.as_secs_f64()
    }
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::RequestResponse,
        Self::ConnectRequestClose,
        Self::Datagrams,
        Self::Stream,
    ];

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestResponse => "TCP request/response",
            Self::ConnectRequestClose => "TCP connect/request/close",
            Self::Datagrams => "UDP packets",
            Self::Stream => "TCP stream",
        }
    }

    /// The port that the client uses.
    pub fn port(self) -> u16 {
        match self {
            Self::RequestResponse => 7001,
            Self::ConnectRequestClose => 7002,
            Self::Datagrams => 7003,
            Self::Stream => 7004,
        }
    }

    /// The port that a service's backend listens on. It differs from the other, lest the server see
    /// one client's tuple both directly and through the service: the two would have unrelated TCP
    /// timestamps, and a connection in TIME_WAIT would hold up its successor for a second.
    pub fn backend_port(self) -> u16 {
        self.port() + 1_000
    }

    /// The transport protocol, as a Service names it.
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Datagrams => "UDP",
            _ => "TCP",
        }
    }

    /// Generates this load for a while.
    ///
    /// # Errors
    ///
    /// When the path does not work.
    pub fn run(self, ends: Ends<'_>, cpus: Cpus, duration: Duration) -> Result<Sample> {
        let clock = Clock { duration };
        match self {
            Self::RequestResponse => request_response(ends, cpus, clock),
            Self::ConnectRequestClose => connect_request_close(ends, cpus, clock),
            Self::Datagrams => datagrams(ends, clock),
            Self::Stream => stream(ends, clock),
        }
        .with_context(|| format!("{} to {}:{}", self.name(), ends.address, self.port()))
    }
}

/// When a load generator starts to count and when it ends.
#[derive(Clone, Copy)]
struct Clock {
    duration: Duration,
}

/// How many iterations of a loop ran, and how many of them before the clock started.
struct Iterations {
    warm_up: u64,
    counted: u64,
    elapsed: Duration,
}

impl Clock {
    /// Repeats work through the warm-up and then while the clock runs. The work itself must not
    /// block for longer than [`PATIENCE`].
    fn repeat(self, mut work: impl FnMut() -> Result<()>) -> Result<Iterations> {
        let mut count_until = |deadline: Instant| -> Result<u64> {
            let mut count = 0;
            while Instant::now() < deadline {
                work()?;
                count += 1;
            }
            Ok(count)
        };
        let warm_up = count_until(Instant::now() + WARM_UP)?;
        let start = Instant::now();
        let counted = count_until(start + self.duration)?;
        Ok(Iterations {
            warm_up,
            counted,
            elapsed: start.elapsed(),
        })
    }
}

impl Iterations {
    fn sample(&self) -> Sample {
        Sample {
            total: (self.warm_up + self.counted) as f64,
            operations: self.counted as f64,
            lost: 0.0,
            elapsed: self.elapsed,
        }
    }
}

fn request_response(ends: Ends<'_>, cpus: Cpus, clock: Clock) -> Result<Sample> {
    let port = Workload::RequestResponse.port();
    let listener = listen(ends, Workload::RequestResponse)?;
    let client = || {
        let mut stream = connect(ends, port)?;
        let mut byte = [0];
        clock.repeat(|| {
            stream.write_all(&byte).context("sending a request")?;
            stream
                .read_exact(&mut byte)
                .context("waiting for a response")
        })
    };
    let server = |stop: &AtomicBool| {
        let Some(mut stream) = accept(&listener, stop)? else {
            return Ok(());
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 {
            stream.write_all(&byte)?;
        }
        Ok(())
    };
    let (iterations, ()) = pair(ends, cpus, client, server)?;
    Ok(iterations.sample())
}

fn connect_request_close(ends: Ends<'_>, cpus: Cpus, clock: Clock) -> Result<Sample> {
    let port = Workload::ConnectRequestClose.port();
    let listener = listen(ends, Workload::ConnectRequestClose)?;
    let client = || {
        let mut byte = [0];
        clock.repeat(|| {
            let mut stream = connect(ends, port)?;
            stream.write_all(&byte).context("sending a request")?;
            stream
                .read_exact(&mut byte)
                .context("waiting for a response")?;
            // The server closes first: its end keeps the port in TIME_WAIT, and the client's ports
            // do not run out.
            match stream.read(&mut byte).context("waiting for the end")? {
                0 => Ok(()),
                _ => bail!("the server said more than it was asked"),
            }
        })
    };
    let server = |stop: &AtomicBool| {
        let mut byte = [0];
        while let Some(mut stream) = accept(&listener, stop)? {
            stream.set_nodelay(true)?;
            if receive(&mut stream, &mut byte, stop)? == 1 {
                stream.write_all(&byte)?;
            }
        }
        Ok(())
    };
    let (iterations, ()) = pair(ends, cpus, client, server)?;
    Ok(iterations.sample())
}

fn datagrams(ends: Ends<'_>, clock: Clock) -> Result<Sample> {
    let port = ends.server_port(Workload::Datagrams);
    let receiver = ends
        .server
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?
        .with_context(|| format!("binding UDP port {port}"))?;
    // A receiver that has to wait for its CPU loses nothing.
    setsockopt(&receiver.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    let sender = ends.client.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((ends.address, Workload::Datagrams.port()))?;
        io::Result::Ok(socket)
    })??;
    let client = || clock.repeat(|| sender.send(&[0; DATAGRAM]).map(drop).context("sending"));
    let server = |stop: &AtomicBool| {
        receiver.set_read_timeout(Some(GLANCE))?;
        let mut buffer = [0; DATAGRAM];
        let mut received = 0_u64;
        loop {
            match receiver.recv(&mut buffer) {
                Ok(_) => received += 1,
                // Silence after the sender's end: nothing is under way any more.
                Err(error) if timed_out(&error) && stop.load(Ordering::Relaxed) => break,
                Err(error) if timed_out(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(received)
    };
    let (iterations, received) = pair(ends, Cpus::Apart, client, server)?;
    if received == 0 {
        bail!("no packet arrived");
    }
    let sent = iterations.warm_up + iterations.counted;
    let arrived = received as f64 / sent as f64;
    Ok(Sample {
        total: sent as f64,
        operations: iterations.counted as f64 * arrived,
        lost: 100.0 * (1.0 - arrived),
        elapsed: iterations.elapsed,
    })
}

fn stream(ends: Ends<'_>, clock: Clock) -> Result<Sample> {
    let port = Workload::Stream.port();
    let listener = listen(ends, Workload::Stream)?;
    let client = || {
        let mut stream = connect(ends, port)?;
        let chunk = vec![0; STREAM_UNIT];
        clock.repeat(|| stream.write_all(&chunk).context("sending"))
    };
    let server = |stop: &AtomicBool| {
        let Some(mut stream) = accept(&listener, stop)? else {
            return Ok(());
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = vec![0; 4 * STREAM_UNIT];
        while stream.read(&mut buffer)? > 0 {}
        Ok(())
    };
    // The sender is ahead of the receiver by the socket buffers only, a few MB at most.
    let (iterations, ()) = pair(ends, Cpus::Apart, client, server)?;
    Ok(iterations.sample())
}

/// Runs the client inside its namespace beside the server, and tells the server when it is done.
fn pair<C: Send, S: Send>(
    ends: Ends<'_>,
    cpus: Cpus,
    client: impl FnOnce() -> Result<C> + Send,
    server: impl FnOnce(&AtomicBool) -> Result<S> + Send,
) -> Result<(C, S)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            pin(match cpus {
                Cpus::Shared => 0,
                Cpus::Apart => 1,
            })?;
            server(&stop)
        });
        let client = ends.client.run(|| {
            pin(0)?;
            client()
        });
        stop.store(true, Ordering::Relaxed);
        let Ok(server) = server.join() else {
            bail!("the server panicked");
        };
        // Without a client the server has nothing of its own to tell.
        let client = client.context("entering the client's namespace")??;
        Ok((client, server.context("the server")?))
    })
}

/// Binds the calling thread to the n-th CPU that the process may use, counting around.
fn pin(n: usize) -> Result<()> {
    let allowed = nix::sched::sched_getaffinity(Pid::from_raw(std::process::id() as i32))?;
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .collect();
    let Some(cpu) = cpus.get(n % cpus.len().max(1)) else {
        return Ok(());
    };
    let mut one = CpuSet::new();
    one.set(*cpu)?;
    sched_setaffinity(Pid::from_raw(0), &one).context("binding to a CPU")
}

fn listen(ends: Ends<'_>, workload: Workload) -> Result<TcpListener> {
    let port = ends.server_port(workload);
    let listener = ends
        .server
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?
        .with_context(|| format!("listening on port {port}"))?;
    // Accepting, and reading on what is accepted, ends with this.
    let glance = TimeVal::milliseconds(GLANCE.as_millis() as i64);
    setsockopt(&listener.as_fd(), sockopt::ReceiveTimeout, &glance)?;
    Ok(listener)
}

/// The next connection; `None` when the client is done.
fn accept(listener: &TcpListener, stop: &AtomicBool) -> Result<Option<TcpStream>> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(Some(stream)),
            Err(error) if timed_out(&error) && stop.load(Ordering::Relaxed) => return Ok(None),
            Err(error) if timed_out(&error) => {}
            Err(error) => return Err(error).context("accepting"),
        }
    }
}

/// Reads on an accepted connection, whose patience is the listener's, for as long as there is a
/// client.
fn receive(stream: &mut TcpStream, buffer: &mut [u8], stop: &AtomicBool) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if timed_out(&error) && !stop.load(Ordering::Relaxed) => {}
            done => return done,
        }
    }
}

/// Connects, in the calling thread's namespace.
fn connect(ends: Ends<'_>, port: u16) -> Result<TcpStream> {
    let target = SocketAddr::from((ends.address, port));
    let stream = TcpStream::connect_timeout(&target, PATIENCE).context("connecting")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
