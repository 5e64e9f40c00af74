//! Servers of `healthCheckNodePort`: how a load balancer finds the nodes that have endpoints of a
//! service whose `externalTrafficPolicy` is `Local`.
//!
//! The answer is the same at every path: 200 if this node has ready endpoints and its proxy is well,
//! else 503.
//!
//! Invariants:
//! - When a set was applied, what is not in it has no socket and no connection any more.
//! - A port that cannot be had is tried again as long as it is wanted, and holds nothing else up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderValue;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};
use weft_core::model::ObjectKey;

use super::http::{Answer, listen, probe, serve};
use super::{Family, ProxyHealth};
use crate::backoff::Backoff;

/// The header that weighted load balancers read.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// What load balancers may ask about, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// This node's addresses that have NodePorts.
    pub addresses: Addresses,
    /// The services.
    pub services: Vec<ServiceHealth>,
}

/// Addresses to listen at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// Whatever addresses the node has.
    #[default]
    All,
    /// These.
    Only(BTreeSet<IpAddr>),
}

impl Addresses {
    fn of(&self, family: Family) -> Vec<IpAddr> {
        match (self, family) {
            (Self::All, Family::V4) => vec![Ipv4Addr::UNSPECIFIED.into()],
            (Self::All, Family::V6) => vec![Ipv6Addr::UNSPECIFIED.into()],
            (Self::Only(addresses), family) => {
                let addresses = addresses.iter().copied();
                addresses.filter(|ip| Family::of(*ip) == family).collect()
            }
        }
    }
}

/// A service's endpoints on this node, of one family: kube-proxy counts each by itself, and a pod
/// with two addresses is not two pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceHealth {
    /// The service.
    pub service: ObjectKey,
    /// Whose endpoints these are, and at whose addresses to listen.
    pub family: Family,
    /// Its `healthCheckNodePort`.
    pub port: u16,
    /// Addresses of ready endpoints on this node.
    pub local_endpoints: usize,
}

/// A port that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The service it is for.
    pub service: ObjectKey,
    /// The port.
    pub port: u16,
    /// Where, and why not.
    pub error: String,
}

/// A listener: what it is for, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    service: ObjectKey,
    address: SocketAddr,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.service, self.address)
    }
}

/// A listener that is open.
#[derive(Debug)]
struct Open {
    #[cfg_attr(not(test), expect(dead_code, reason = "tests listen at port 0"))]
    bound: Option<SocketAddr>,
    local_endpoints: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl Open {
    /// Ends when its socket is closed.
    async fn close(self) {
        self.server.abort();
        // It ends as told.
        let _ = self.server.await;
    }
}

/// The servers.
#[derive(Debug)]
pub struct Servers {
    health: Arc<ProxyHealth>,
    failures: mpsc::Sender<Failure>,
    open: BTreeMap<Place, Open>,
    /// Why places are not open that should be, as it was told.
    failed: BTreeMap<Place, String>,
}

impl Servers {
    /// No servers yet. New failures are told on the channel.
    pub const fn new(health: Arc<ProxyHealth>, failures: mpsc::Sender<Failure>) -> Self {
        Self {
            health,
            failures,
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Opens, changes and closes servers so that there are these; whether there are all of them.
    /// Must be called within a tokio runtime.
    pub async fn apply(&mut self, checks: &HealthChecks) -> bool {
        let mut wanted = BTreeMap::new();
        for health in &checks.services {
            for address in checks.addresses.of(health.family) {
                let place = Place {
                    service: health.service.clone(),
                    address: SocketAddr::new(address, health.port),
                };
                wanted.insert(place, health.local_endpoints);
            }
        }
        self.failed.retain(|place, _| wanted.contains_key(place));
        // First of all what goes: its address may be wanted for something else.
        let gone: Vec<Place> = self
            .open
            .keys()
            .filter(|place| !wanted.contains_key(*place))
            .cloned()
            .collect();
        for place in gone {
            if let Some(open) = self.open.remove(&place) {
                open.close().await;
                debug!(%place, "a health check port is closed");
            }
        }
        for (place, local_endpoints) in wanted {
            if let Some(open) = self.open.get(&place) {
                open.local_endpoints
                    .store(local_endpoints, Ordering::Relaxed);
                continue;
            }
            match self.start(&place, local_endpoints) {
                Ok(open) => {
                    debug!(%place, "a health check port is open");
                    if self.failed.remove(&place).is_some() {
                        info!(%place, "a health check port is to be had after all");
                    }
                    self.open.insert(place, open);
                }
                // Without the family nobody can ask there either.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Err(error) => self.fail(place, &error),
            }
        }
        self.failed.is_empty()
    }

    fn start(&self, place: &Place, local_endpoints: usize) -> io::Result<Open> {
        let listener = listen(place.address)?;
        let bound = listener.local_addr().ok();
        let local_endpoints = Arc::new(AtomicUsize::new(local_endpoints));
        let (health, service) = (self.health.clone(), place.service.clone());
        let count = local_endpoints.clone();
        let server = tokio::spawn(serve(listener, move |_| {
            let local = count.load(Ordering::Relaxed);
            std::future::ready(told(&service, local, health.is_healthy()))
        }));
        Ok(Open {
            bound,
            local_endpoints,
            server,
        })
    }

    fn fail(&mut self, place: Place, error: &io::Error) {
        let error = error.to_string();
        if self.failed.get(&place) == Some(&error) {
            return;
        }
        warn!(%place, error, "cannot listen for health checks; trying again until it works");
        let failure = Failure {
            service: place.service.clone(),
            port: place.address.port(),
            error: format!("{}: {error}", place.address),
        };
        // What cannot be told for now is in the log.
        let _ = self.failures.try_send(failure);
        self.failed.insert(place, error);
    }
}

fn told(service: &ObjectKey, local_endpoints: usize, proxy_healthy: bool) -> Answer {
    let body = json!({
        "service": { "namespace": service.namespace, "name": service.name },
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    });
    let mut answer = probe(local_endpoints > 0 && proxy_healthy, body.to_string());
    let headers = answer.headers_mut();
    headers.insert(WEIGHT, HeaderValue::from(local_endpoints));
    answer
}

/// Keeps the servers as they are wanted, for ever.
pub async fn run(mut wanted: watch::Receiver<HealthChecks>, mut servers: Servers) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    loop {
        let checks = wanted.borrow_and_update().clone();
        let complete = servers.apply(&checks).await;
        let changed = if complete {
            backoff.reset();
            wanted.changed().await
        } else {
            match tokio::time::timeout(backoff.pause(), wanted.changed()).await {
                Ok(changed) => changed,
                Err(_) => continue,
            }
        };
        if changed.is_err() {
            // Nobody wants anything else any more: the agent ends.
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::health::TIMEOUT;
    use crate::health::clock::tests::ManualClock;
    use crate::health::http::tests::{get, loopback};

    fn servers() -> (
        Arc<ManualClock>,
        Arc<ProxyHealth>,
        Servers,
        mpsc::Receiver<Failure>,
    ) {
        let clock = ManualClock::new();
        let health = Arc::new(ProxyHealth::new(clock.clone(), TIMEOUT));
        let (sender, failures) = mpsc::channel(8);
        let servers = Servers::new(health.clone(), sender);
        (clock, health, servers, failures)
    }

    fn web(port: u16, local_endpoints: usize) -> ServiceHealth {
        ServiceHealth {
            service: ObjectKey::new("default", "web"),
            family: Family::V4,
            port,
            local_endpoints,
        }
    }

    fn checks(services: &[ServiceHealth]) -> HealthChecks {
        HealthChecks {
            addresses: Addresses::Only([loopback().ip(), [0_u16; 8].into()].into()),
            services: services.to_vec(),
        }
    }

    impl Servers {
        fn bound(&self) -> SocketAddr {
            let open = self.open.values().next().expect("one is open");
            open.bound.expect("bound")
        }
    }

    #[tokio::test]
    async fn answers_follow_endpoints_and_the_proxy() {
        let (clock, health, mut servers, _failures) = servers();
        assert!(servers.apply(&checks(&[web(0, 2)])).await);
        let address = servers.bound();
        let (head, body) = get(address, "/").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let lower = head.to_lowercase();
        assert!(lower.contains("content-type: application/json"), "{head}");
        assert!(lower.contains("x-content-type-options: nosniff"), "{head}");
        assert!(
            lower.contains("x-load-balancing-endpoint-weight: 2"),
            "{head}"
        );
        let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(
            body,
            json!({
                "service": { "namespace": "default", "name": "web" },
                "localEndpoints": 2,
                "serviceProxyHealthy": true,
            })
        );

        // Without endpoints; the socket stays.
        assert!(servers.apply(&checks(&[web(0, 0)])).await);
        assert_eq!(servers.bound(), address);
        let (head, body) = get(address, "/healthz").await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(body.contains(r#""localEndpoints":0"#), "{body}");

        // With endpoints, but behind.
        assert!(servers.apply(&checks(&[web(0, 1)])).await);
        assert!(get(address, "/").await.0.starts_with("HTTP/1.1 200 "));
        health.queued(Family::V6);
        clock.advance(TIMEOUT);
        let (head, body) = get(address, "/").await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(body.contains(r#""serviceProxyHealthy":false"#), "{body}");
    }

    #[tokio::test]
    async fn what_is_not_wanted_any_more_has_no_socket() {
        let (_, _, mut servers, _failures) = servers();
        assert!(servers.apply(&checks(&[web(0, 1)])).await);
        let address = servers.bound();
        assert!(servers.apply(&checks(&[])).await);
        let refused = TcpStream::connect(address).await.expect_err("closed");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // Nor has the service at an address that has no NodePorts any more.
        assert!(servers.apply(&checks(&[web(address.port(), 1)])).await);
        assert!(get(address, "/").await.0.starts_with("HTTP/1.1 200 "));
        let nowhere = HealthChecks {
            addresses: Addresses::Only(BTreeSet::new()),
            ..checks(&[web(address.port(), 1)])
        };
        assert!(servers.apply(&nowhere).await);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_once_and_tried_again() {
        let (_, _, mut servers, mut failures) = servers();
        let other = listen(loopback()).expect("listens");
        let taken = other.local_addr().expect("bound");
        let both = checks(&[web(taken.port(), 1), {
            let service = ObjectKey::new("default", "free");
            ServiceHealth {
                service,
                ..web(0, 1)
            }
        }]);
        assert!(!servers.apply(&both).await);
        assert!(!servers.apply(&both).await);
        let failure = failures.try_recv().expect("told");
        assert_eq!(failure.service, ObjectKey::new("default", "web"));
        assert_eq!(failure.port, taken.port());
        assert!(failure.error.contains("in use"), "{}", failure.error);
        assert!(failures.try_recv().is_err(), "told twice");
        // The others have theirs.
        assert!(
            get(servers.bound(), "/")
                .await
                .0
                .starts_with("HTTP/1.1 200 ")
        );

        drop(other);
        assert!(servers.apply(&both).await);
        assert!(get(taken, "/").await.1.contains(r#""name":"web""#));
        // And what is not wanted is not missed.
        let other = listen(loopback()).expect("listens");
        let taken = other.local_addr().expect("bound");
        assert!(!servers.apply(&checks(&[web(taken.port(), 1)])).await);
        assert!(servers.apply(&checks(&[])).await);
    }

    #[tokio::test]
    async fn a_set_that_changes_is_followed() {
        let (_, _, servers, mut failures) = servers();
        let (sender, receiver) = watch::channel(HealthChecks::default());
        let task = tokio::spawn(run(receiver, servers));
        let other = listen(loopback()).expect("listens");
        let taken = other.local_addr().expect("bound");
        sender.send_replace(checks(&[web(taken.port(), 1)]));
        assert!(failures.recv().await.is_some());
        drop(other);
        // It is tried again by itself.
        while TcpStream::connect(taken).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        task.abort();
        assert!(task.await.expect_err("aborted").is_cancelled());
    }

    #[test]
    fn addresses_are_of_one_family() {
        let text = |family| -> Vec<_> {
            let addresses = checks(&[]).addresses.of(family);
            addresses.iter().map(ToString::to_string).collect()
        };
        assert_eq!(text(Family::V4), ["127.0.0.1"]);
        assert_eq!(text(Family::V6), ["::"]);
        assert_eq!(
            Addresses::All.of(Family::V6),
            text(Family::V6)
                .iter()
                .map(|t| t.parse::<IpAddr>().expect("one"))
                .collect::<Vec<_>>()
        );
    }
}
