//! The application of the demonstration, as its manifests in `tests/demo` describe it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};

use crate::interrupt::Interrupt;
use crate::playground::{PATIENCE, Playground, wait};

/// A manifest: where it is in the repository, and what it says.
#[derive(Clone, Copy, Debug)]
pub struct Manifest {
    /// Its path below the repository's root.
    pub path: &'static str,
    /// Its text.
    pub yaml: &'static str,
}

macro_rules! manifest {
    ($name:literal) => {
        Manifest {
            path: concat!("tests/demo/", $name),
            yaml: include_str!(concat!("../../demo/", $name)),
        }
    };
}

/// What runs, in the order of application.
pub const APPLICATION: [Manifest; 3] = [
    manifest!("10-namespaces.yaml"),
    manifest!("20-shop.yaml"),
    manifest!("30-neighbours.yaml"),
];

/// What stops traffic.
pub const POLICIES: Manifest = manifest!("40-policies.yaml");

/// The pods of one Deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workload {
    /// Its namespace.
    pub namespace: &'static str,
    /// The name of its Deployment and its Service, and the value of its pods' label `app`.
    pub name: &'static str,
}

/// What customers see.
pub const FRONTEND: Workload = Workload {
    namespace: "shop",
    name: "frontend",
};
/// What the front end calls.
pub const API: Workload = Workload {
    namespace: "shop",
    name: "api",
};
/// What the API stores things in.
pub const DATABASE: Workload = Workload {
    namespace: "shop",
    name: "database",
};
/// Answers UDP on port 53.
pub const NAMESERVER: Workload = Workload {
    namespace: "dns",
    name: "nameserver",
};
/// Collects metrics.
pub const PROMETHEUS: Workload = Workload {
    namespace: "monitoring",
    name: "prometheus",
};
/// Has no business in the shop.
pub const VISITOR: Workload = Workload {
    namespace: "guests",
    name: "visitor",
};

/// Every workload.
pub const WORKLOADS: [Workload; 6] = [FRONTEND, API, DATABASE, NAMESERVER, PROMETHEUS, VISITOR];

/// One pod as it runs.
#[derive(Clone, Debug)]
pub struct RunningPod {
    /// Whose it is.
    pub workload: Workload,
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub node: String,
    /// Its address.
    pub address: IpAddr,
}

/// The application as it runs.
#[derive(Debug, Default)]
pub struct Application {
    /// All pods.
    pub pods: Vec<RunningPod>,
    services: BTreeMap<Workload, IpAddr>,
}

impl Application {
    /// Waits until every Deployment has all its pods, all ready, and every Service its address.
    ///
    /// # Errors
    ///
    /// When it takes too long; the error says what is missing.
    pub fn wait_ready(playground: &Playground, interrupt: &Interrupt) -> Result<Self> {
        wait("the application is ready", PATIENCE, || {
            interrupt.check()?;
            let mut application = Application::default();
            for workload in WORKLOADS {
                application.read(playground, workload)?;
            }
            Ok(application)
        })
    }

    /// The pods of a workload.
    pub fn pods_of(&self, workload: Workload) -> impl Iterator<Item = &RunningPod> {
        self.pods.iter().filter(move |pod| pod.workload == workload)
    }

    /// A service's address with a port.
    ///
    /// # Errors
    ///
    /// When the workload has no service.
    pub fn service(&self, workload: Workload, port: u16) -> Result<SocketAddr> {
        let address = self.services.get(&workload);
        let address = address.with_context(|| format!("there is no service {}", workload.name))?;
        Ok(SocketAddr::new(*address, port))
    }

    /// Whose address it is: a workload's pod, or its service.
    pub fn name_of(&self, address: IpAddr) -> Option<String> {
        let pod = self
            .pods
            .iter()
            .find(|pod| pod.address == address)
            .map(|pod| pod.workload);
        if let Some(Workload { namespace, name }) = pod {
            return Some(format!("{namespace}/{name}"));
        }
        let service = self
            .services
            .iter()
            .find(|(_, of_service)| **of_service == address);
        service.map(|(Workload { namespace, name }, _)| format!("service {namespace}/{name}"))
    }

    fn read(&mut self, playground: &Playground, workload: Workload) -> Result<()> {
        let Workload { namespace, name } = workload;
        let deployments: Api<Deployment> = Api::namespaced(playground.client(), namespace);
        let pods: Api<Pod> = Api::namespaced(playground.client(), namespace);
        let services: Api<Service> = Api::namespaced(playground.client(), namespace);
        let selector = ListParams::default().labels(&format!("app={name}"));
        let (deployment, pods, service) = playground.block_on(async {
            let deployment = deployments.get(name).await?;
            anyhow::Ok((
                deployment,
                pods.list(&selector).await?,
                services.get_opt(name).await?,
            ))
        })?;
        let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let found = pods.items.len();
        ensure!(
            usize::try_from(wanted) == Ok(found),
            "the Deployment {namespace}/{name} has {found} of its {wanted} pods"
        );
        for pod in &pods.items {
            self.pods.push(running(workload, pod)?);
        }
        if let Some(service) = service {
            let address = service
                .spec
                .and_then(|spec| spec.cluster_ip)
                .unwrap_or_default();
            let address = address.parse().with_context(|| {
                format!("the Service {namespace}/{name} has the cluster IP {address:?}")
            })?;
            self.services.insert(workload, address);
        }
        Ok(())
    }
}

fn running(workload: Workload, pod: &Pod) -> Result<RunningPod> {
    let name = pod.name_any();
    let status = pod.status.as_ref();
    let conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    let (Some(status), Some(ready)) = (status, ready) else {
        bail!(
            "pod {}/{name} has not been reported by a node",
            workload.namespace
        );
    };
    if ready.status != "True" {
        let why = ready.message.as_deref().unwrap_or("no reason is given");
        bail!("pod {}/{name} is not ready: {why}", workload.namespace);
    }
    let address = status.pod_ip.as_deref().unwrap_or_default();
    let node = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone())
        .unwrap_or_default();
    let address = address.parse().with_context(|| {
        format!(
            "pod {}/{name} has the address {address:?}",
            workload.namespace
        )
    })?;
    Ok(RunningPod {
        workload,
        name,
        node,
        address,
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use serde::de::DeserializeOwned;
    use serde::{Deserialize as _, Serialize};
    use serde_json::Value;

    use super::*;

    /// The object as Kubernetes' own types hold it.
    fn through<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
        let typed: T = serde_json::from_value(object.clone()).expect("an object of its kind");
        serde_json::to_value(typed).expect("JSON")
    }

    /// What the types dropped: fields that Kubernetes does not know.
    fn lost(path: &str, before: &Value, after: &Value) -> Vec<String> {
        match (before, after) {
            (Value::Object(before), Value::Object(after)) => before
                .iter()
                .flat_map(|(name, value)| {
                    lost(
                        &format!("{path}.{name}"),
                        value,
                        after.get(name).unwrap_or(&Value::Null),
                    )
                })
                .collect(),
            (Value::Array(before), Value::Array(after)) if before.len() == after.len() => before
                .iter()
                .zip(after)
                .flat_map(|(a, b)| lost(path, a, b))
                .collect(),
            _ if before == after => Vec::new(),
            _ => vec![path.to_owned()],
        }
    }

    #[test]
    fn the_manifests_say_only_what_kubernetes_knows() {
        let mut kinds = Vec::new();
        for manifest in APPLICATION.iter().chain([&POLICIES]) {
            for document in serde_norway::Deserializer::from_str(manifest.yaml) {
                let object = Value::deserialize(document).expect("YAML");
                let kind = object["kind"].as_str().expect("a kind").to_owned();
                let known = match kind.as_str() {
                    "Namespace" => through::<Namespace>(&object),
                    "Deployment" => through::<Deployment>(&object),
                    "Service" => through::<Service>(&object),
                    "NetworkPolicy" => through::<NetworkPolicy>(&object),
                    other => panic!("{}: {other}", manifest.path),
                };
                assert_eq!(lost(&kind, &object, &known), Vec::<String>::new());
                kinds.push(kind);
            }
        }
        let count = |wanted: &str| kinds.iter().filter(|kind| *kind == wanted).count();
        assert_eq!(count("Deployment"), WORKLOADS.len());
        assert_eq!(count("NetworkPolicy"), 5);
    }
}
