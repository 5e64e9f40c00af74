//! `/healthz` and `/livez`.

use std::sync::Arc;

use http::request::Parts;

use super::http::{Answer, not_found, probe};
use super::{Health, ProxyHealth};

/// Answers `/healthz` and `/livez`.
pub fn probes(
    health: Arc<ProxyHealth>,
) -> impl Fn(Parts) -> std::future::Ready<Answer> + Clone + Send + Sync + 'static {
    move |request| {
        std::future::ready(match request.uri.path() {
            "/healthz" => told(health.healthz()),
            "/livez" => told(health.livez()),
            _ => not_found(),
        })
    }
}

fn told((well, health): (bool, Health)) -> Answer {
    // Strings, times and flags have a form in JSON.
    probe(well, serde_json::to_string(&health).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::clock::tests::ManualClock;
    use crate::health::http::tests::{get, loopback};
    use crate::health::http::{listen, serve};
    use crate::health::{Family, TIMEOUT};

    #[tokio::test]
    async fn codes_tell_the_node_and_the_proxy_apart() {
        let clock = ManualClock::new();
        let health = Arc::new(ProxyHealth::new(clock.clone(), TIMEOUT));
        let listener = listen(loopback()).expect("listens");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(serve(listener, probes(health.clone())));

        let (head, body) = get(address, "/healthz").await;
        assert!(
            head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{head}"
        );
        assert!(body.contains(r#""nodeEligible":false"#), "{body}");
        let (head, body) = get(address, "/livez").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(!body.contains("nodeEligible"), "{body}");

        health.node(Some(true));
        let (head, body) = get(address, "/healthz").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let lower = head.to_lowercase();
        assert!(lower.contains("content-type: application/json"), "{head}");
        assert!(lower.contains("x-content-type-options: nosniff"), "{head}");
        assert!(body.contains(r#""lastUpdated":"2030-01-01T"#), "{body}");

        health.queued(Family::V6);
        clock.advance(TIMEOUT);
        for path in ["/healthz", "/livez"] {
            let (head, _) = get(address, path).await;
            assert!(head.starts_with("HTTP/1.1 503 "), "{path}: {head}");
        }
        assert!(get(address, "/other").await.0.starts_with("HTTP/1.1 404 "));
        server.abort();
    }
}
