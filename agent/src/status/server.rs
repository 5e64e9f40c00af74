//! The socket that answers the operator's queries.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{Query, report};
use crate::bpf::events::DropLog;
use crate::reconcile::Shared;

/// The longest query, in bytes.
const MAX_QUERY: u64 = 64;
/// How long a client may take.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves for ever.
pub async fn serve(listener: UnixListener, shared: Arc<Shared>, drops: DropLog) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (shared, drops) = (shared.clone(), drops.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve_one(stream, shared, drops).await {
                        debug!(error = format!("{error:#}"), "a status connection failed");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a status connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(mut stream: UnixStream, shared: Arc<Shared>, drops: DropLog) -> Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = Vec::new();
    timeout(
        PEER_TIMEOUT,
        BufReader::new(reader.take(MAX_QUERY)).read_until(b'\n', &mut line),
    )
    .await
    .context("no query in time")?
    .context("cannot read the query")?;
    let word = String::from_utf8_lossy(&line);
    let answer = match Query::from_word(word.trim()) {
        Some(query) => tokio::task::spawn_blocking(move || report::answer(query, &shared, &drops))
            .await
            .context("the answer failed")?,
        None => json!({ "error": format!("unknown query {:?}", word.trim()) }),
    };
    let answer = serde_json::to_vec(&answer).context("cannot encode the answer")?;
    timeout(PEER_TIMEOUT, writer.write_all(&answer))
        .await
        .context("the client does not take the answer")?
        .context("cannot send the answer")
}
