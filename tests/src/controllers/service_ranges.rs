//! Publishes the range of ClusterIPs as the object that a cluster has for it.

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::OnceCell;

use super::cluster::Cluster;
use super::pass::Controller;

/// The object's name in every cluster.
const NAME: &str = "kubernetes";

/// Makes the ServiceCIDR `kubernetes`.
pub struct ServiceRanges {
    range: IpNet,
    published: OnceCell<()>,
}

impl ServiceRanges {
    /// ClusterIPs come out of `range`.
    pub fn new(range: IpNet) -> Self {
        ServiceRanges {
            range,
            published: OnceCell::new(),
        }
    }

    async fn publish(&self, cluster: &Cluster) -> Result<()> {
        let api = cluster.global_api::<ServiceCIDR>();
        let object = ServiceCIDR {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(ServiceCIDRSpec {
                cidrs: Some(vec![self.range.to_string()]),
            }),
            status: None,
        };
        let done = match api.create(&PostParams::default(), &object).await {
            // Somebody else made it: it is theirs.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            done => done.map(drop),
        };
        done.with_context(|| format!("publishing the Service range {}", self.range))
    }
}

impl Controller for ServiceRanges {
    const NAME: &'static str = "service-ranges";

    async fn pass(&self, cluster: &Cluster) -> Result<()> {
        self.published
            .get_or_try_init(|| self.publish(cluster))
            .await
            .copied()
    }
}
