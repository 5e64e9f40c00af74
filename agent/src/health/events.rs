//! Kubernetes Events: what the owner of a service should read where they look at it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use super::checks::Failure;
use crate::errors::chain;

/// How long the API may take.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// How many failures may wait to be told; the log has them all.
pub const WAITING: usize = 256;

/// Tells of failures, for ever.
pub async fn run(client: Client, node: Arc<str>, mut failures: mpsc::Receiver<Failure>) {
    let reporter = Reporter {
        controller: "weft".to_owned(),
        instance: Some(node.to_string()),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    while let Some(failure) = failures.recv().await {
        let service = reference(&client, &failure).await;
        let event = event(&node, &failure);
        let told = match timeout(API_TIMEOUT, recorder.publish(&event, &service)).await {
            Ok(told) => told.map_err(|error| chain(&error)),
            Err(_) => Err("no answer".to_owned()),
        };
        if let Err(error) = told {
            warn!(service = %failure.service, error, "cannot make an Event of a failed health check port");
        }
    }
    // The agent's parts do not end.
    std::future::pending::<()>().await;
}

/// kube-proxy's event.
fn event(node: &str, failure: &Failure) -> Event {
    let Failure {
        service,
        port,
        error,
    } = failure;
    Event {
        type_: EventType::Warning,
        reason: "FailedToStartServiceHealthcheck".to_owned(),
        action: "Listen".to_owned(),
        note: Some(format!(
            "node {node} failed to start healthcheck {:?} on port {port}: {error}",
            service.to_string()
        )),
        secondary: None,
    }
}

/// The service. Its UID, by which `kubectl describe` finds its events, is asked for; an event without
/// it is better than none.
async fn reference(client: &Client, failure: &Failure) -> ObjectReference {
    let key = &failure.service;
    let services = Api::<Service>::namespaced(client.clone(), &key.namespace);
    match timeout(API_TIMEOUT, services.get_metadata_opt(&key.name)).await {
        Ok(Ok(Some(service))) => ObjectReference {
            resource_version: None,
            ..service.object_ref(&())
        },
        _ => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            ..ObjectReference::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use weft_core::model::ObjectKey;

    use super::*;

    #[test]
    fn the_event_is_that_of_kube_proxy() {
        let failure = Failure {
            service: ObjectKey::new("shop", "web"),
            port: 30_000,
            error: "0.0.0.0:30000: Address already in use (os error 98)".to_owned(),
        };
        let event = event("node-1", &failure);
        assert_eq!(event.reason, "FailedToStartServiceHealthcheck");
        assert_eq!(
            event.note.as_deref(),
            Some(
                "node node-1 failed to start healthcheck \"shop/web\" on port 30000: \
                0.0.0.0:30000: Address already in use (os error 98)"
            )
        );
    }
}
