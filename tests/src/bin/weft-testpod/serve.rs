//! The servers: each answer says who answered and whom it saw.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::ServeArgs;

/// Serves until a signal.
pub async fn run(args: &ServeArgs) -> Result<ExitCode> {
    if args.http.is_empty() && args.tcp.is_empty() && args.udp.is_empty() {
        bail!("nothing to serve: give at least one of --http, --tcp and --udp");
    }
    let name: Rc<str> = args.name.as_str().into();
    let servers = LocalSet::new();
    for &port in &args.http {
        let listener = listen(args, port).await?;
        servers.spawn_local(accept(listener, Rc::clone(&name), serve_http));
    }
    for &port in &args.tcp {
        let listener = listen(args, port).await?;
        servers.spawn_local(accept(listener, Rc::clone(&name), serve_tcp));
    }
    for &port in &args.udp {
        let address = SocketAddr::new(args.address, port);
        let socket = UdpSocket::bind(address)
            .await
            .with_context(|| format!("UDP {address}"))?;
        servers.spawn_local(serve_udp(socket, Rc::clone(&name)));
    }
    servers.run_until(terminated()).await?;
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

async fn listen(args: &ServeArgs, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(args.address, port);
    TcpListener::bind(address)
        .await
        .with_context(|| format!("TCP {address}"))
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
        let mut answer = format!("{name} {client} ").into_bytes();
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
        "/echo" => {
            let query = request.uri().query().unwrap_or_default();
            query.strip_prefix("msg=").unwrap_or_default().to_owned()
        }
        path => serde_json::json!({ "hostname": name, "client": client, "path": path }).to_string(),
    };
    Response::new(Full::new(Bytes::from(body)))
}
