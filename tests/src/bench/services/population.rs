//! The services and endpoints that are measured: which there are, and as objects of the API.
//!
//! Everything follows from the numbers of a service and an endpoint, so that what the maps and the
//! other proxy's rules should hold is known without keeping it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use crate::api::registry::{Part, WriteOptions};
use crate::api::resources::{ENDPOINTSLICES, NAMESPACES, Resource, SERVICES};
use crate::api::{Key, Registry};
use crate::playground::{Families, Family};

/// Services of one namespace: controllers walk all slices of a namespace.
const PER_NAMESPACE: u32 = 100;
/// The port of every service, and of every endpoint.
pub const PORT: u16 = 80;
pub const TARGET: u16 = 8080;

/// How many there are.
#[derive(Clone, Copy, Debug)]
pub struct Population {
    pub services: u32,
    /// Of each service, in each family.
    pub endpoints: u32,
    pub families: Families,
}

/// What the API gave to services: the addresses of each, in the families' order.
pub type ClusterIps = Vec<Vec<IpAddr>>;

impl Population {
    /// Endpoints in all.
    pub fn total(self) -> u64 {
        let families = self.families.each().iter().count() as u64;
        u64::from(self.services) * u64::from(self.endpoints) * families
    }

    /// The name of a service.
    pub fn name(service: u32) -> String {
        format!("service-{service}")
    }

    /// The address of an endpoint: those of all services follow one another.
    pub fn address(self, family: Family, service: u32, endpoint: u32) -> IpAddr {
        let number = service * self.endpoints + endpoint;
        match family {
            // Neither pods of the playground's nodes nor services have these.
            Family::V4 => Ipv4Addr::from_bits(0x0a40_0000 + number).into(),
            Family::V6 => {
                let network = Ipv6Addr::new(0xfd00, 0x10, 0x64, 0, 0, 0, 0, 0);
                Ipv6Addr::from_bits(network.to_bits() + u128::from(number)).into()
            }
        }
    }

    /// The address of the endpoint that comes in the place of another: new with every change.
    pub fn replacement(family: Family, change: u32) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::from_bits(0x0a7f_0000 + change).into(),
            Family::V6 => {
                let network = Ipv6Addr::new(0xfd00, 0x10, 0x7f, 0, 0, 0, 0, 0);
                Ipv6Addr::from_bits(network.to_bits() + u128::from(change)).into()
            }
        }
    }

    /// Makes the objects, as fast as the API server takes them.
    ///
    /// # Errors
    ///
    /// When it refuses one.
    pub fn create(
        self,
        registry: &Registry,
        mut go_on: impl FnMut() -> Result<()>,
    ) -> Result<ClusterIps> {
        let options = WriteOptions::by("bench");
        let create = |resource: &'static Resource, namespace: &str, object: Value| {
            let written = registry.create(resource, namespace, object, &options);
            written.map_err(|status| anyhow!("the API server refuses an object: {status:?}"))
        };
        let mut all = Vec::new();
        for service in 0..self.services {
            go_on()?;
            let namespace = namespace(service);
            if service % PER_NAMESPACE == 0 {
                let object = json!({ "metadata": { "name": namespace } });
                create(&NAMESPACES, "", object)?;
            }
            let written = create(&SERVICES, &namespace, self.service(service))?;
            all.push(cluster_ips(&written.object)?);
            for family in self.families.each() {
                create(&ENDPOINTSLICES, &namespace, self.slice(*family, service))?;
            }
        }
        Ok(all)
    }

    /// Puts an endpoint with this address in the place of the first one of a service.
    ///
    /// # Errors
    ///
    /// When the API server refuses.
    pub fn replace_first(
        self,
        registry: &Registry,
        family: Family,
        service: u32,
        address: IpAddr,
    ) -> Result<()> {
        let name = slice_name(family, service);
        let key = Key::new(&ENDPOINTSLICES, &namespace(service), &name);
        let options = WriteOptions::by("bench");
        let written = registry.modify(&key, Part::Main, &options, |live| {
            let mut slice = live.clone();
            slice["endpoints"][0]["addresses"] = json!([address]);
            Ok(slice)
        });
        written
            .map(drop)
            .map_err(|status| anyhow!("the API server refuses {name}: {status:?}"))
    }

    fn service(self, service: u32) -> Value {
        let families: Vec<_> = self
            .families
            .each()
            .iter()
            .map(|family| family.name())
            .collect();
        let policy = if families.len() > 1 {
            "RequireDualStack"
        } else {
            "SingleStack"
        };
        json!({
            "metadata": { "name": Self::name(service), "labels": { "app": Self::name(service) } },
            "spec": {
                "ipFamilyPolicy": policy,
                "ipFamilies": families,
                "ports": [{
                    "name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET,
                }],
            },
        })
    }

    /// A slice as the controller of a real cluster writes it, in full.
    fn slice(self, family: Family, service: u32) -> Value {
        let endpoints: Vec<_> = (0..self.endpoints)
            .map(|endpoint| {
                let pod = format!("{}-7d4b9c6f58-{endpoint:05}", Self::name(service));
                json!({
                    "addresses": [self.address(family, service, endpoint)],
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "nodeName": format!("elsewhere-{}", (service + endpoint) % 1000),
                    "zone": format!("zone-{}", endpoint % 3),
                    "targetRef": {
                        "kind": "Pod", "namespace": namespace(service), "name": pod,
                        "uid": format!("{service:08x}-0000-4000-8000-{endpoint:012x}"),
                    },
                })
            })
            .collect();
        json!({
            "metadata": {
                "name": slice_name(family, service),
                "labels": {
                    "kubernetes.io/service-name": Self::name(service),
                    "endpointslice.kubernetes.io/managed-by": "bench",
                },
            },
            "addressType": family.name(),
            "ports": [{ "name": "http", "protocol": "TCP", "port": TARGET }],
            "endpoints": endpoints,
        })
    }
}

fn namespace(service: u32) -> String {
    format!("bench-{}", service / PER_NAMESPACE)
}

fn slice_name(family: Family, service: u32) -> String {
    format!(
        "{}-{}",
        Population::name(service),
        family.name().to_lowercase()
    )
}

fn cluster_ips(service: &Value) -> Result<Vec<IpAddr>> {
    let given = service["spec"]["clusterIPs"].as_array();
    let given = given.into_iter().flatten().filter_map(Value::as_str);
    given.map(|text| Ok(text.parse::<IpAddr>()?)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_endpoint_has_an_address_of_its_own() {
        let population = Population {
            services: 300,
            endpoints: 25,
            families: Families::Dual,
        };
        let mut addresses = BTreeSet::new();
        for family in Family::BOTH {
            for service in 0..population.services {
                for endpoint in 0..population.endpoints {
                    addresses.insert(population.address(family, service, endpoint));
                }
            }
            addresses.extend((0..1000).map(|change| Population::replacement(family, change)));
        }
        assert_eq!(addresses.len() as u64, population.total() + 2000);
    }
}
