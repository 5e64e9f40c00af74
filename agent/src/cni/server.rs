//! The CNI server: one request and one answer per connection, over a socket that only root can use.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use weft_cni::protocol::{self, Command, MAX_LINE, Request, Response};
use weft_cni::queue::Queue;

use super::attachments::Attachments;

/// How long a plugin may take to send its request, or to take the answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens on a socket that replaces whatever is at the path. It appears with its mode; there is no
/// moment at which others could connect.
///
/// # Errors
///
/// When the socket cannot be made.
pub fn listen(path: &Path) -> Result<UnixListener> {
    let fresh = path.with_extension("new");
    let context = || format!("cannot listen on {}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(context)?;
    }
    if fresh.exists() {
        fs::remove_file(&fresh).with_context(context)?;
    }
    let listener = UnixListener::bind(&fresh).with_context(context)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600)).with_context(context)?;
    fs::rename(&fresh, path).with_context(context)?;
    Ok(listener)
}

/// Does what the plugin left on disk while there was no agent. Call it between listening and
/// serving: a plugin that finds a listener leaves nothing more.
pub async fn replay(attachments: &Attachments, queue: &Queue) {
    let entries = match queue.entries() {
        Ok(entries) => entries,
        Err(error) => {
            warn!(%error, "cannot read the queue of DELs; pods that were removed while the \
                agent was away keep their addresses until the next start");
            return;
        }
    };
    for entry in entries {
        match entry.request {
            Ok(request) if request.command == Command::Del => {
                info!(
                    container = request.container_id,
                    "doing a DEL that was waiting for the agent"
                );
                if let Err(error) = attachments.del(&request).await {
                    warn!(container = request.container_id, %error, "a waiting DEL failed; it \
                        stays for the next start");
                    continue;
                }
            }
            Ok(request) => {
                warn!(file = %entry.path.display(), command = %request.command, "only DELs can \
                    wait; dropped");
            }
            Err(error) => warn!(%error, "unreadable DEL in the queue; dropped"),
        }
        if let Err(error) = queue.remove(&entry.path) {
            warn!(%error, "a DEL that was done stays in the queue; doing it again does no harm");
        }
    }
}

/// Serves for ever. Requests run as tasks of the tracker, so that a shutdown can wait for them.
pub async fn serve(listener: UnixListener, attachments: Arc<Attachments>, tasks: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let attachments = attachments.clone();
                tasks.spawn(async move {
                    if let Err(error) = serve_one(stream, &attachments).await {
                        debug!(error = format!("{error:#}"), "a CNI connection failed");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: a pause lets some be closed.
                warn!(%error, "cannot accept a CNI connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(mut stream: UnixStream, attachments: &Attachments) -> Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    let mut reader = BufReader::new(reader).take(MAX_LINE as u64);
    timeout(PEER_TIMEOUT, reader.read_until(b'\n', &mut line))
        .await
        .context("no request in time")?
        .context("cannot read the request")?;
    if line.is_empty() {
        return Ok(());
    }
    let response = match protocol::decode_request(&line) {
        Ok(request) => handle(&request, attachments).await,
        Err(error) => {
            warn!(%error, "a CNI request makes no sense");
            Err(error.into())
        }
    };
    let answer = protocol::encode_response(&response).context("cannot encode the answer")?;
    timeout(PEER_TIMEOUT, writer.write_all(&answer))
        .await
        .context("the plugin does not take the answer")?
        .context("cannot send the answer")
}

async fn handle(request: &Request, attachments: &Attachments) -> Response {
    let response = match request.command {
        Command::Add => attachments.add(request).await,
        Command::Del => attachments.del(request).await,
        Command::Check => attachments.check(request).await,
        Command::Gc => attachments.gc(request).await,
        Command::Status => attachments.status().await,
    };
    if let Err(error) = &response {
        let pod = request.args.pod_name.as_deref().unwrap_or_default();
        let namespace = request.args.pod_namespace.as_deref().unwrap_or_default();
        warn!(
            command = %request.command, container = request.container_id, pod, namespace, %error,
            "CNI request failed"
        );
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_roots_and_replaces_a_stale_one() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("run/cni.sock");
        drop(listen(&path).expect("listens"));
        let listener = listen(&path).expect("listens again");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let client = UnixStream::connect(&path);
        let (client, server) = tokio::join!(client, listener.accept());
        client.expect("connects");
        server.expect("accepts");
    }
}
