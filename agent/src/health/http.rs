//! A small HTTP/1.1 server: one short answer per connection.
//!
//! Invariants:
//! - A client holds a connection for a bounded time, and all clients together a bounded number of
//!   them.
//! - What serves ends with its future: the listener and every connection are closed then.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::backoff::Backoff;

/// Connections of one listener at a time; more wait in the kernel.
const MAX_CONNECTIONS: usize = 256;
/// Of those that wait.
const BACKLOG: u32 = 128;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest pause before an address is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// An answer.
pub type Answer = Response<Full<Bytes>>;

/// An answer of this type.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    answer
}

/// An answer in JSON, with the code of a probe.
pub fn probe(well: bool, body: String) -> Answer {
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer(status, "application/json", body)
}

/// There is nothing at this path.
pub fn not_found() -> Answer {
    answer(
        StatusCode::NOT_FOUND,
        "text/plain; charset=utf-8",
        "404 page not found\n",
    )
}

/// Listens on an address, of IPv6 on none of IPv4 besides. Must be called within a tokio runtime.
///
/// # Errors
///
/// When the address is another's, or is not there.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        socket
    };
    // Connections of an earlier listener that still linger do not keep this one away.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves for ever.
pub async fn serve<H, A>(listener: TcpListener, handler: H)
where
    H: Fn(Parts) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_one(stream, handler.clone()));
                }
                Err(error) => {
                    debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_one<H, A>(stream: TcpStream, handler: H)
where
    H: Fn(Parts) -> A + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let answer = handler(request.into_parts().0);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        // A connection that is kept could be closed under the next request, which a load balancer
        // would take for a failure.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection failed"),
        Err(_) => debug!("a connection took too long"),
    }
}

/// Listens on the address and serves, for ever; an address that is not to be had yet is tried again.
pub async fn keep<H, A>(what: &'static str, address: SocketAddr, handler: H)
where
    H: Fn(Parts) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let mut backoff = Backoff::new(Duration::from_millis(100), RETRY);
    let mut told = None;
    loop {
        match listen(address) {
            Ok(listener) => {
                info!(%address, "serving {what}");
                return serve(listener, handler).await;
            }
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                info!(%address, "the kernel has no such family; not serving {what} there");
                return std::future::pending().await;
            }
            Err(error) => {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    warn!(%address, error = text, "cannot serve {what}; trying again until it works");
                    told = Some(text);
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::IpAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What a server answers to a GET: head and body.
    pub async fn get(address: SocketAddr, path: &str) -> (String, String) {
        get_with(address, path, "").await
    }

    /// The same, with these header lines.
    pub async fn get_with(address: SocketAddr, path: &str, lines: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        (head.to_owned(), body.to_owned())
    }

    pub fn loopback() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[tokio::test]
    async fn the_families_have_a_port_each() {
        let v4 = listen(([0, 0, 0, 0], 0).into()).expect("listens");
        let port = v4.local_addr().expect("bound").port();
        let v6 = listen(SocketAddr::new(IpAddr::from([0_u16; 8]), port));
        match v6 {
            Ok(_) => {}
            // A kernel without IPv6.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EAFNOSUPPORT)),
        }
        let again = listen(SocketAddr::new(IpAddr::from([0; 4]), port)).expect_err("taken");
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn an_answer_ends_its_connection_and_the_server_its_socket() {
        let listener = listen(loopback()).expect("listens");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(serve(listener, |parts: Parts| async move {
            answer(StatusCode::OK, "text/plain", parts.uri.path().to_owned())
        }));
        let (head, body) = get(address, "/a?b").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("connection: close"), "{head}");
        assert_eq!(body, "/a");
        server.abort();
        assert!(server.await.expect_err("aborted").is_cancelled());
        let refused = TcpStream::connect(address).await.expect_err("closed");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
