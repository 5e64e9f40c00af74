//! The embedded API server as its clients see it: over TCP, with `kube-rs` and with `kubectl`.

#![expect(
    clippy::unwrap_used,
    reason = "a failed set-up of a test shall fail the test, with its location"
)]

#[path = "api/controllers.rs"]
mod controllers;
#[path = "api/kubectl.rs"]
mod kubectl;
#[path = "api/objects.rs"]
mod objects;
#[path = "api/services.rs"]
mod services;
#[path = "api/watches.rs"]
mod watches;

use std::net::TcpListener;
use std::time::Duration;

use kube::{Client, Config};
use weft_tests::api::ApiServer;
use weft_tests::controllers::{Controllers, Settings};

/// A server of its own for each test.
struct Cluster {
    // Controllers go before the server they work on.
    controllers: Option<Controllers>,
    server: ApiServer,
    url: String,
}

impl Cluster {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = ApiServer::start(vec![listener]).unwrap();
        Cluster {
            controllers: None,
            server,
            url,
        }
    }

    fn with_controllers() -> Self {
        Cluster::controlled(Settings::default())
    }

    fn controlled(settings: Settings) -> Self {
        let mut cluster = Cluster::start();
        let registry = cluster.server.registry().clone();
        cluster.controllers = Some(Controllers::start(registry, settings).unwrap());
        cluster
    }

    fn client(&self) -> Client {
        let mut config = Config::new(self.url.parse().unwrap());
        config.read_timeout = None;
        Client::try_from(config).unwrap()
    }
}

/// Waits for a condition; the test fails when it does not come.
async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let found = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// The code of an answer that must be a refusal.
#[track_caller]
fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("expected a Status, found {other:?}"),
    }
}
