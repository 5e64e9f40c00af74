//! Watches as streams of events, one JSON object per line.

use std::time::Duration;

use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{self, Instant, MissedTickBehavior};

use super::super::faults::Interruption;
use super::super::registry::{Event, WatchOptions};
use super::super::resources::Resource;
use super::super::status::Status;
use super::super::table::Include;
use super::Context;
use super::respond::{Accept, Response};

/// How often a watch is told how far it has come, when it wants to know and nothing was sent.
const BOOKMARK_EVERY: Duration = Duration::from_secs(5);
/// How long a watch lasts that does not say.
const LONGEST: u64 = 1800;
/// How many pieces may wait for a slow client.
const QUEUE: usize = 64;

/// How events are written.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// What is watched.
    pub resource: &'static Resource,
    /// The form of the objects.
    pub accept: Accept,
    /// What goes into rows, when they are tables.
    pub include: Include,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// Whether a bookmark tells the end of the initial events.
    pub tell_initial_end: bool,
}

impl Form {
    fn event(&self, event: &Event, is_first: bool) -> Value {
        let mut object = self.accept.one(self.resource, &event.object, self.include);
        if self.accept == Accept::Table && !is_first {
            // Columns are told once.
            object["columnDefinitions"] = json!([]);
        }
        json!({ "type": event.kind.name(), "object": object })
    }

    fn bookmark(&self, version: u64, ends_initial: bool) -> Value {
        let mut metadata =
            json!({ "resourceVersion": version.to_string(), "creationTimestamp": null });
        if ends_initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.accept {
            Accept::Object => json!({
                "kind": self.resource.kind,
                "apiVersion": self.resource.api_version(),
                "metadata": metadata,
            }),
            Accept::Metadata => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
            }),
            Accept::Table => json!({
                "kind": "Table",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": { "resourceVersion": version.to_string() },
                "columnDefinitions": [],
                "rows": [{ "cells": [], "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                } }],
            }),
        };
        json!({ "type": "BOOKMARK", "object": object })
    }
}

fn error(status: &Status) -> Value {
    json!({ "type": "ERROR", "object": status.to_value() })
}

/// Starts a watch; the response's body is its events. Failing to start is its first and only event.
pub fn start(
    context: Context,
    options: WatchOptions,
    form: Form,
    timeout: Option<u64>,
) -> Response {
    let (sender, receiver) = mpsc::channel::<Value>(QUEUE);
    let deadline = Instant::now() + Duration::from_secs(timeout.unwrap_or(LONGEST).min(86_400));
    tokio::spawn(async move {
        // The client is gone when sending fails, and there is nobody left to tell.
        let _ = run(context, options, form, deadline, &sender).await;
    });
    let lines = stream::unfold(receiver, |mut receiver| async {
        let mut text = receiver.recv().await?.to_string();
        text.push('\n');
        // What has gathered meanwhile goes out in one piece.
        while let Ok(event) = receiver.try_recv() {
            text.push_str(&event.to_string());
            text.push('\n');
        }
        Some((Ok(Frame::data(Bytes::from(text))), receiver))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(lines)));
    let json = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    response
}

async fn run(
    context: Context,
    options: WatchOptions,
    form: Form,
    deadline: Instant,
    sender: &mpsc::Sender<Value>,
) -> Result<(), mpsc::error::SendError<Value>> {
    let mut interruptions = context.faults.interruptions();
    let (initial, mut watch) = match context.registry.watch(form.resource, options) {
        Ok(started) => started,
        Err(status) => return sender.send(error(&status)).await,
    };
    let mut is_first = true;
    for event in &initial {
        sender.send(form.event(event, is_first)).await?;
        is_first = false;
    }
    if form.bookmarks && form.tell_initial_end {
        sender.send(form.bookmark(watch.version(), true)).await?;
    }
    let mut told = watch.version();
    let mut bookmarks = time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            events = watch.next() => {
                context.faults.unstalled().await;
                let events = match events {
                    Ok(events) => events,
                    Err(status) => return sender.send(error(&status)).await,
                };
                for event in &events {
                    sender.send(form.event(event, is_first)).await?;
                    is_first = false;
                }
                if !events.is_empty() {
                    told = watch.version();
                }
            }
            _ = bookmarks.tick() => {
                if form.bookmarks && watch.version() > told && !context.faults.is_stalled() {
                    told = watch.version();
                    sender.send(form.bookmark(told, false)).await?;
                }
            }
            interruption = interruptions.recv() => match interruption {
                Ok(Interruption::Expire) => {
                    let status = Status::expired("the watch was told to expire");
                    return sender.send(error(&status)).await;
                }
                _ => return Ok(()),
            },
            () = time::sleep_until(deadline) => {
                if form.bookmarks && watch.version() > told {
                    sender.send(form.bookmark(watch.version(), false)).await?;
                }
                return Ok(());
            }
            () = sender.closed() => return Ok(()),
        }
    }
}
