//! Readiness probes. They come from the node's own namespace, as a real kubelet's do: a pod that its
//! node cannot reach never becomes ready.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::blocking;
use crate::netns::Netns;

/// The shortest period between two probes while a container is not ready yet. A kubelet would wait
/// for the probe's whole period; waiting for readiness is most of what tests do.
const FIRST_PERIOD: Duration = Duration::from_millis(100);

/// A probe that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    target: SocketAddr,
    /// The path to GET; without one, a connection is enough.
    path: Option<String>,
    timeout: Duration,
    delay: Duration,
    period: Duration,
    failures: u32,
}

impl Check {
    /// The container's readiness probe; `None` without one.
    pub fn of(container: &Container, address: IpAddr) -> Result<Option<Self>> {
        let Some(probe) = &container.readiness_probe else {
            return Ok(None);
        };
        let (port, path) = match probe {
            Probe {
                http_get: Some(get),
                ..
            } => (
                &get.port,
                Some(get.path.clone().unwrap_or_else(|| "/".to_owned())),
            ),
            Probe {
                tcp_socket: Some(socket),
                ..
            } => (&socket.port, None),
            _ => bail!("the playground's readiness probes are httpGet and tcpSocket"),
        };
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|v| v.try_into().ok()).unwrap_or(default))
        };
        Ok(Some(Check {
            target: SocketAddr::new(address, port_of(container, port)?),
            path,
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            failures: probe
                .failure_threshold
                .and_then(|v| v.try_into().ok())
                .unwrap_or(3)
                .max(1),
        }))
    }

    /// Probes for ever, and says when the result changes.
    pub async fn run(
        self,
        netns: Arc<Netns>,
        container: usize,
        changes: UnboundedSender<(usize, bool)>,
    ) {
        sleep(self.delay).await;
        let mut ready = false;
        let mut failed = 0;
        let mut period = interval(FIRST_PERIOD.min(self.period));
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            let (check, inside) = (self.clone(), Arc::clone(&netns));
            let passed = blocking(move || inside.run(|| check.once())?).await.is_ok();
            failed = if passed { 0 } else { failed + 1 };
            let now = passed || (ready && failed < self.failures);
            if now != ready {
                ready = now;
                if changes.send((container, ready)).is_err() {
                    return;
                }
                period = interval(if ready { self.period } else { FIRST_PERIOD });
                period.set_missed_tick_behavior(MissedTickBehavior::Delay);
                period.reset();
            }
        }
    }

    fn once(&self) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.target, self.timeout)?;
        let Some(path) = &self.path else {
            return Ok(());
        };
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.target
        )?;
        let mut head = Vec::new();
        stream.take(1 << 16).read_to_end(&mut head)?;
        let head = String::from_utf8_lossy(&head);
        let status: u16 = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .with_context(|| format!("{} does not speak HTTP", self.target))?;
        if (200..400).contains(&status) {
            Ok(())
        } else {
            bail!("status {status}")
        }
    }
}

fn port_of(container: &Container, port: &IntOrString) -> Result<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_ref() == Some(name))
                .with_context(|| format!("the container has no port {name:?}"))?
                .container_port
        }
    };
    u16::try_from(number).with_context(|| format!("{number} is not a port"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(probe: &serde_json::Value) -> Result<Option<Check>> {
        let container = json!({"name": "a", "ports": [{"name": "web", "containerPort": 8080}],
                               "readinessProbe": probe});
        Check::of(
            &serde_json::from_value(container).unwrap(),
            "10.0.0.1".parse().unwrap(),
        )
    }

    #[test]
    fn probes_are_read_with_kubernetes_defaults() {
        let http = check(&json!({"httpGet": {"port": "web"}}))
            .unwrap()
            .unwrap();
        assert_eq!(http.target, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(http.path.as_deref(), Some("/"));
        assert_eq!(
            (http.period.as_secs(), http.timeout.as_secs(), http.failures),
            (10, 1, 3)
        );
        let tcp = check(&json!({"tcpSocket": {"port": 53}, "periodSeconds": 2}))
            .unwrap()
            .unwrap();
        assert_eq!(
            (tcp.target.port(), tcp.path, tcp.period.as_secs()),
            (53, None, 2)
        );
        assert_eq!(check(&json!(null)).unwrap(), None);
    }

    #[test]
    fn probes_that_cannot_be_run_are_refused() {
        for probe in [
            json!({"exec": {"command": ["true"]}}),
            json!({"httpGet": {"port": "no"}}),
            json!({"tcpSocket": {"port": 70000}}),
        ] {
            assert!(check(&probe).is_err(), "{probe}");
        }
    }
}
