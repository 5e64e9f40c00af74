//! A playground's Kubernetes objects: what a test does to them, and waits for.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;

use super::wait::{PATIENCE, wait};
use super::{Playground, kubectl};

impl Playground {
    /// Applies the manifests of a YAML text, as `kubectl apply` does.
    ///
    /// # Errors
    ///
    /// When one is refused; those before it are in place.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.block_on(kubectl::apply(&self.client(), yaml))
            .map(drop)
    }

    /// Deletes the objects of a YAML text; pods go gracefully, so they may be there for a while.
    ///
    /// # Errors
    ///
    /// When one cannot be deleted.
    pub fn delete(&self, yaml: &str) -> Result<()> {
        self.block_on(kubectl::delete(&self.client(), yaml))
    }

    /// A pod's object; `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the API server does not say.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        self.block_on(api.get_opt(name))
            .with_context(|| format!("reading pod {namespace}/{name}"))
    }

    /// Waits until a pod is ready, and returns its address.
    ///
    /// # Errors
    ///
    /// When it takes too long; the error has the pod's own words.
    pub fn wait_pod_ready(&self, namespace: &str, name: &str) -> Result<IpAddr> {
        wait(
            &format!("pod {namespace}/{name} is ready"),
            PATIENCE,
            || {
                let Some(pod) = self.pod(namespace, name)? else {
                    bail!("there is no such pod")
                };
                ready_address(&pod)
            },
        )
    }

    /// Waits until every pod of a namespace is ready.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub fn wait_all_ready(&self, namespace: &str) -> Result<BTreeMap<String, IpAddr>> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        wait(
            &format!("the pods of {namespace} are ready"),
            PATIENCE,
            || {
                let pods = self.block_on(api.list(&kube::api::ListParams::default()))?;
                let address = |pod: Pod| {
                    let name = pod.metadata.name.clone().unwrap_or_default();
                    let address = ready_address(&pod).with_context(|| format!("pod {name}"))?;
                    Ok((name, address))
                };
                if pods.items.is_empty() {
                    bail!("there are no pods");
                }
                pods.items.into_iter().map(address).collect()
            },
        )
    }

    /// Deletes a pod and waits until it is gone, sandbox included.
    ///
    /// # Errors
    ///
    /// When it takes too long.
    pub fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        match self.block_on(api.delete(name, &DeleteParams::default())) {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            done => {
                done.with_context(|| format!("deleting pod {namespace}/{name}"))?;
            }
        }
        wait(
            &format!("pod {namespace}/{name} is gone"),
            PATIENCE,
            || match self.pod(namespace, name)? {
                None => Ok(()),
                Some(_) => bail!("its object is still there"),
            },
        )
    }
}

fn ready_address(pod: &Pod) -> Result<IpAddr> {
    let status = pod.status.as_ref().context("the pod has no status")?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    match ready {
        Some(condition) if condition.status == "True" => {
            let address = status.pod_ip.as_deref().context("the pod has no address")?;
            address
                .parse()
                .with_context(|| format!("the pod's address {address:?}"))
        }
        Some(condition) => bail!(
            "{}",
            condition.message.as_deref().unwrap_or("it is not ready")
        ),
        None => bail!("its node has not reported yet ({:?})", status.phase),
    }
}
