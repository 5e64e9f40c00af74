//! The API over HTTP/1.1.

mod discovery;
mod objects;
mod openapi;
mod protobuf;
mod query;
mod respond;
mod route;
mod stream;

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::objects::Call;
use self::query::Query;
use self::respond::{Accept, Response};
use self::route::Route;
use super::faults::Faults;
use super::registry::Registry;
use super::status::Status;

/// The largest body that is read.
const MAX_BODY: usize = 8 << 20;

/// What every request needs.
#[derive(Debug, Clone)]
pub struct Context {
    /// The objects.
    pub registry: Arc<Registry>,
    /// How to misbehave.
    pub faults: Faults,
}

/// Accepts connections until it is cancelled; connections end with it.
pub async fn serve(
    listener: TcpListener,
    context: Context,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (context, stop) = (context.clone(), stop.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = connection(stream, context) => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of file descriptors, most likely: give others time to close theirs.
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, context: Context) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let context = context.clone();
        async move { Ok::<_, Infallible>(answer(request, &context).await) }
    });
    let server = hyper::server::conn::http1::Builder::new();
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn answer(request: Request<Incoming>, context: &Context) -> Response {
    context.faults.unstalled().await;
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match handle(request, context).await {
        Ok(response) => response,
        Err(status) => respond::failure(&status),
    };
    tracing::trace!(%method, path, status = response.status().as_u16(), "answered");
    response
}

async fn handle(request: Request<Incoming>, context: &Context) -> Result<Response, Status> {
    let header = |name: http::HeaderName| {
        let value = request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let accept = header(http::header::ACCEPT);
    let target = match route::parse(request.uri().path())? {
        Route::Object(target) => target,
        Route::Description(_) if request.method() != Method::GET => {
            return Err(Status::method_not_allowed());
        }
        Route::Description(parts) => return describe(&parts),
    };
    let agent = header(http::header::USER_AGENT);
    let content_type = header(http::header::CONTENT_TYPE);
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let method = request.method().clone();
    let accept = Accept::parse(&accept)?;
    let body = read(request.into_body()).await?;
    let call = Call {
        context,
        target,
        query,
        accept,
        agent,
        content_type,
        body,
    };
    call.answer(&method)
}

/// Everything that is no object.
fn describe(parts: &[String]) -> Result<Response, Status> {
    let words: Vec<&str> = parts.iter().map(String::as_str).collect();
    let value = match words.as_slice() {
        [] => discovery::paths(),
        ["healthz" | "readyz" | "livez", ..] => return Ok(respond::plain("ok")),
        ["version"] => discovery::version(),
        ["api"] => discovery::core_versions(),
        ["apis"] => discovery::groups(),
        ["api", version] => discovery::resources("", version)?,
        ["apis", group] => discovery::group(group)?,
        ["apis", group, version] => discovery::resources(group, version)?,
        ["openapi", "v3"] => openapi::index(),
        ["openapi", "v3", "api", version] => openapi::group_version("", version)?,
        ["openapi", "v3", "apis", group, version] => openapi::group_version(group, version)?,
        _ => return Err(Status::no_such_path()),
    };
    Ok(respond::json(200, &value))
}

async fn read(body: Incoming) -> Result<Bytes, Status> {
    let limited = http_body_util::Limited::new(body, MAX_BODY);
    let collected = limited
        .collect()
        .await
        .map_err(|error| Status::bad_request(format!("cannot read the request's body: {error}")))?;
    Ok(collected.to_bytes())
}
