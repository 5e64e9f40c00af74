//! The servers: each answer says who answered and whom it saw.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::{ServeArgs, bulk, options, sctp};

/// What /readyz says.
static READY: AtomicBool = AtomicBool::new(true);

/// Serves until a signal.
pub async fn run(args: &ServeArgs) -> Result<ExitCode> {
    let ports = [&args.http, &args.tcp, &args.udp, &args.sctp, &args.bulk];
    if ports.iter().all(|ports| ports.is_empty()) {
        bail!("nothing to serve: give at least one of --http, --tcp, --udp, --sctp and --bulk");
    }
    options::allow_many_sockets()?;
    READY.store(!args.unready, Ordering::Relaxed);
    let name: Rc<str> = args.name.as_str().into();
    let servers = LocalSet::new();
    for address in addresses(args) {
        let at = |port: &u16| SocketAddr::new(address, *port);
        for target in args.http.iter().map(at) {
            servers.spawn_local(accept(listen(target).await?, Rc::clone(&name), serve_http));
        }
        for target in args.tcp.iter().map(at) {
            servers.spawn_local(accept(listen(target).await?, Rc::clone(&name), serve_tcp));
        }
        for target in args.udp.iter().map(at) {
            servers.spawn_local(serve_udp(bind(target).await?, Rc::clone(&name)));
        }
        for target in args.bulk.iter().map(at) {
            let listener = listen(target).await?;
            servers.spawn_local(accept(listener, Rc::clone(&name), bulk::serve_tcp));
            servers.spawn_local(bulk::serve_udp(bind(target).await?, Rc::clone(&name)));
        }
    }
    sctp::serve(args)?;
    println!("serving");
    let end = async {
        let told = terminated().await;
        tokio::time::sleep(args.linger).await;
        told
    };
    servers.run_until(end).await?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for SIGTERM or SIGINT.
pub async fn terminated() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// The addresses to listen on; by default every one of both families, or of IPv4 where the kernel
/// has no IPv6.
fn addresses(args: &ServeArgs) -> Vec<IpAddr> {
    if !args.address.is_empty() {
        return args.address.clone();
    }
    let everything = (Ipv6Addr::UNSPECIFIED, 0);
    vec![match std::net::UdpSocket::bind(everything) {
        Ok(_) => everything.0.into(),
        Err(_) => Ipv4Addr::UNSPECIFIED.into(),
    }]
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("TCP {address}"))
}

async fn bind(address: SocketAddr) -> Result<UdpSocket> {
    let what = || format!("UDP {address}");
    let socket = UdpSocket::bind(address).await.with_context(what)?;
    options::keep_datagrams(&socket).with_context(what)?;
    Ok(socket)
}

/// The client as the network knows it: a socket of both families sees IPv4 ones in IPv6's clothes.
fn plain(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

/// Hands each connection to a task of its own.
async fn accept<F: Future<Output = Result<()>> + 'static>(
    listener: TcpListener,
    name: Rc<str>,
    serve: fn(TcpStream, SocketAddr, Rc<str>) -> F,
) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let client = plain(client);
                let served = serve(stream, client, Rc::clone(&name));
                tokio::task::spawn_local(async move {
                    if let Err(error) = served.await {
                        eprintln!("{client}: {error:#}");
                    }
                });
            }
            // The client gave up before it was accepted, or descriptors ran out: go on.
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn serve_tcp(stream: TcpStream, client: SocketAddr, name: Rc<str>) -> Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    writer
        .write_all(format!("{name} {client}\n").as_bytes())
        .await?;
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        writer
            .write_all(format!("{name} {client} {line}\n").as_bytes())
            .await?;
    }
    Ok(())
}

async fn serve_udp(socket: UdpSocket, name: Rc<str>) {
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // The ICMP error of an earlier answer: the client is gone, others are not.
            Err(error) => {
                eprintln!("UDP: {error}");
                continue;
            }
        };
        let mut answer = format!("{name} {} ", plain(client)).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        if let Err(error) = socket.send_to(&answer, client).await {
            eprintln!("UDP to {client}: {error}");
        }
    }
}

async fn serve_http(stream: TcpStream, client: SocketAddr, name: Rc<str>) -> Result<()> {
    stream.set_nodelay(true)?;
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, client, &name);
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

fn answer(request: &Request<Incoming>, client: SocketAddr, name: &str) -> Response<Full<Bytes>> {
    let body = match request.uri().path() {
        "/hostname" => name.to_owned(),
        "/clientip" => client.to_string(),
        "/healthz" => "ok".to_owned(),
        path @ ("/ready" | "/unready") => {
            READY.store(path == "/ready", Ordering::Relaxed);
            "ok".to_owned()
        }
        "/readyz" if !READY.load(Ordering::Relaxed) => {
            let mut response = Response::new(Full::new(Bytes::from("not ready")));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return response;
        }
        "/readyz" => "ok".to_owned(),
        "/echo" => {
            let query = request.uri().query().unwrap_or_default();
            query.strip_prefix("msg=").unwrap_or_default().to_owned()
        }
        path => serde_json::json!({ "hostname": name, "client": client, "path": path }).to_string(),
    };
    Response::new(Full::new(Bytes::from(body)))
}
