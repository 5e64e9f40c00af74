//! The server of metrics: `/metrics`, `/proxyMode`, `/configz`, `/healthz`.

use std::sync::Arc;

use http::request::Parts;
use http::{StatusCode, header};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tracing::warn;

use super::text;
use crate::health::http::{Answer, answer, not_found};

/// What `/proxyMode` tells. kube-proxy's names (`iptables`, `nftables`, ...) say which rules of the
/// node to look at, and tests skip or check such rules by them: here there are none, so none of these
/// names would be true.
const PROXY_MODE: &str = "ebpf";

const PLAIN: &str = "text/plain; charset=utf-8";

/// What there is to ask.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    config: Value,
}

impl Metrics {
    /// Tells these metrics and this configuration.
    pub const fn new(registry: Registry, config: Value) -> Self {
        Self { registry, config }
    }

    /// Answers a request. Metrics are gathered out of maps, which may take a while: elsewhere than
    /// where others wait.
    pub async fn answer(self: Arc<Self>, request: Parts) -> Answer {
        match request.uri.path() {
            "/metrics" => {
                let gathered = tokio::task::spawn_blocking(move || self.metrics(&request));
                gathered.await.unwrap_or_else(|error| failed(&error))
            }
            "/proxyMode" => answer(StatusCode::OK, PLAIN, PROXY_MODE),
            // That there is an answer is the answer, as kube-proxy has it here.
            "/healthz" => answer(StatusCode::OK, PLAIN, "ok"),
            "/configz" => answer(StatusCode::OK, "application/json", self.config.to_string()),
            _ => not_found(),
        }
    }

    fn metrics(&self, request: &Parts) -> Answer {
        let accepted = request.headers.get_all(header::ACCEPT).iter();
        let open = accepted
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.contains("application/openmetrics-text"));
        let (content_type, text) = if open {
            (text::OPEN_METRICS, text::open_metrics(&self.registry))
        } else {
            (text::CLASSIC, text::classic(&self.registry))
        };
        match text {
            Ok(text) => answer(StatusCode::OK, content_type, text),
            Err(error) => failed(&error),
        }
    }
}

fn failed(error: &dyn std::error::Error) -> Answer {
    warn!(%error, "cannot gather metrics");
    answer(
        StatusCode::INTERNAL_SERVER_ERROR,
        PLAIN,
        format!("cannot gather metrics: {error}\n"),
    )
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use serde_json::json;

    use super::*;
    use crate::health::http::tests::{get, get_with, loopback};
    use crate::health::http::{listen, serve};

    #[tokio::test]
    async fn every_path_has_its_answer() {
        let mut registry = Registry::default();
        registry.register("asked", "How often", Counter::<u64>::default());
        let metrics = Arc::new(Metrics::new(registry, json!({ "weft": { "node": "a" } })));
        let listener = listen(loopback()).expect("listens");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(serve(listener, move |request| {
            metrics.clone().answer(request)
        }));
        for (path, code, expected) in [
            ("/proxyMode", "200", "ebpf"),
            ("/healthz", "200", "ok"),
            ("/configz", "200", r#"{"weft":{"node":"a"}}"#),
            ("/", "404", "404 page not found\n"),
        ] {
            let (head, body) = get(address, path).await;
            assert!(
                head.starts_with(&format!("HTTP/1.1 {code} ")),
                "{path}: {head}"
            );
            assert_eq!(body, expected, "{path}");
        }
        let (head, body) = get(address, "/metrics").await;
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        assert!(
            body.contains("\n# TYPE asked_total counter\nasked_total 0\n"),
            "{body}"
        );
        let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1\r\n";
        let (head, body) = get_with(address, "/metrics", accept).await;
        assert!(head.contains("application/openmetrics-text"), "{head}");
        assert!(body.ends_with("# EOF\n"), "{body}");
        server.abort();
    }
}
