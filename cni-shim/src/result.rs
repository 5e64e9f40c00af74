//! What ADD returns, and its shapes through the versions of the specification.
//!
//! [`CniResult`] has the shape of 1.1.0. [`CniResult::to_json`] writes the shape of any version,
//! [`CniResult::parse`] reads one (a `prevResult`).

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{CniError, code};
use crate::version::Version;

/// The result of ADD in the shape of CNI 1.1.0, without its version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces that exist because of this attachment, on the host and in the container.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub interfaces: Vec<Interface>,
    /// Addresses, the pod's first one first.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub routes: Vec<Route>,
    /// Name resolution; kept for other plugins, Weft sets none.
    #[serde(
        skip_serializing_if = "Dns::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub dns: Dns,
}

/// An interface of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the namespace it is in; absent for the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// Path of a socket file associated with it.
    #[serde(
        default,
        rename = "socketPath",
        skip_serializing_if = "Option::is_none"
    )]
    pub socket_path: Option<String>,
    /// Its PCI device.
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Address and prefix length.
    pub address: IpNet,
    /// The address of its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index into [`CniResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Path MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// TCP maximum segment size to advertise, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric; the lower wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope, as the kernel numbers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

/// Name resolution of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers' addresses.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search domains.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub options: Vec<String>,
}

impl Dns {
    fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

/// Go writes an empty list as `null`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// One family's half of a result of 0.1.0 or 0.2.0.
#[derive(Serialize, Deserialize)]
struct LegacyIp {
    ip: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_default"
    )]
    routes: Vec<Route>,
}

/// A result of 0.1.0 or 0.2.0.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct LegacyResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<LegacyIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<LegacyIp>,
    #[serde(deserialize_with = "null_is_default")]
    dns: Dns,
}

impl CniResult {
    /// The result as the given version writes it, `cniVersion` included.
    ///
    /// # Errors
    ///
    /// Code 999 for a result without an address in a version that cannot say that.
    pub fn to_json(&self, version: Version) -> Result<Value, CniError> {
        let body = if version < Version::V0_3_0 {
            serde_json::to_value(self.to_legacy(version)?)
        } else {
            serde_json::to_value(self.trimmed(version))
        };
        let mut body = body.map_err(|error| {
            CniError::new(code::INTERNAL, "cannot write the result").with_details(error.to_string())
        })?;
        if (Version::V0_3_0..Version::V1_0_0).contains(&version) {
            for (ip, config) in body["ips"]
                .as_array_mut()
                .into_iter()
                .flatten()
                .zip(&self.ips)
            {
                ip["version"] = json!(if config.address.addr().is_ipv4() {
                    "4"
                } else {
                    "6"
                });
            }
        }
        let mut object = Map::from_iter([("cniVersion".to_owned(), json!(version.as_str()))]);
        if let Value::Object(body) = body {
            object.extend(body);
        }
        // The specification has `dns` in every result, if only as an empty object.
        object.entry("dns").or_insert_with(|| json!({}));
        Ok(Value::Object(object))
    }

    /// Reads a result. Its own `cniVersion` says how; `fallback` does when it has none.
    ///
    /// # Errors
    ///
    /// Code 1 when its version is not supported, code 6 when it has not the form of its version.
    pub fn parse(value: &Value, fallback: Version) -> Result<Self, CniError> {
        let version = match value.get("cniVersion").and_then(Value::as_str) {
            Some(text) => text.parse()?,
            None => fallback,
        };
        let result = if version < Version::V0_3_0 {
            LegacyResult::deserialize(value).map(CniResult::from)
        } else {
            CniResult::deserialize(value)
        };
        result.map_err(|error| {
            CniError::new(
                code::DECODE,
                format!("the result is not one of CNI {version}"),
            )
            .with_details(error.to_string())
        })
    }

    /// Without the fields that the version does not know.
    fn trimmed(&self, version: Version) -> CniResult {
        let mut result = self.clone();
        if version < Version::V1_1_0 {
            for interface in &mut result.interfaces {
                interface.mtu = None;
                interface.socket_path = None;
                interface.pci_id = None;
            }
            for route in &mut result.routes {
                *route = bare(route);
            }
        }
        result
    }

    fn to_legacy(&self, version: Version) -> Result<LegacyResult, CniError> {
        let family = |v4: bool| {
            self.ips
                .iter()
                .find(|ip| ip.address.addr().is_ipv4() == v4)
                .map(|ip| LegacyIp {
                    ip: ip.address,
                    gateway: ip.gateway,
                    routes: self
                        .routes
                        .iter()
                        .filter(|route| route.dst.addr().is_ipv4() == v4)
                        .map(bare)
                        .collect(),
                })
        };
        let legacy = LegacyResult {
            ip4: family(true),
            ip6: family(false),
            dns: self.dns.clone(),
        };
        if legacy.ip4.is_none() && legacy.ip6.is_none() {
            return Err(CniError::new(
                code::INTERNAL,
                format!("a result of CNI {version} must have an address, and this one has none"),
            ));
        }
        Ok(legacy)
    }
}

impl From<LegacyResult> for CniResult {
    fn from(legacy: LegacyResult) -> Self {
        let mut result = CniResult {
            dns: legacy.dns,
            ..CniResult::default()
        };
        for half in [legacy.ip4, legacy.ip6].into_iter().flatten() {
            let address = half.ip;
            result.ips.push(IpConfig {
                address,
                gateway: half.gateway,
                interface: None,
            });
            result.routes.extend(half.routes);
        }
        result
    }
}

/// A route as versions before 1.1.0 know it.
fn bare(route: &Route) -> Route {
    Route {
        dst: route.dst,
        gw: route.gw,
        mtu: None,
        advmss: None,
        priority: None,
        table: None,
        scope: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> CniResult {
        CniResult {
            interfaces: vec![
                Interface {
                    name: "weft0".into(),
                    mac: "0e:57:45:46:54:01".into(),
                    ..Interface::default()
                },
                Interface {
                    name: "eth0".into(),
                    mac: "02:00:00:00:00:01".into(),
                    mtu: Some(1450),
                    sandbox: Some("/var/run/netns/a".into()),
                    socket_path: Some("/s".into()),
                    pci_id: Some("0:1".into()),
                },
            ],
            ips: vec![
                IpConfig {
                    address: "10.0.1.5/32".parse().unwrap(),
                    gateway: Some("169.254.1.1".parse().unwrap()),
                    interface: Some(1),
                },
                IpConfig {
                    address: "fd00::5/128".parse().unwrap(),
                    gateway: None,
                    interface: Some(1),
                },
            ],
            routes: vec![Route {
                mtu: Some(1450),
                scope: Some(0),
                ..bare(&Route {
                    dst: "0.0.0.0/0".parse().unwrap(),
                    gw: Some("169.254.1.1".parse().unwrap()),
                    mtu: None,
                    advmss: None,
                    priority: None,
                    table: None,
                    scope: None,
                })
            }],
            dns: Dns {
                nameservers: vec!["10.96.0.10".into()],
                ..Dns::default()
            },
        }
    }

    #[test]
    fn the_newest_shape_has_everything() {
        assert_eq!(
            full().to_json(Version::V1_1_0).unwrap(),
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [
                    {"name": "weft0", "mac": "0e:57:45:46:54:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 1450,
                     "sandbox": "/var/run/netns/a", "socketPath": "/s", "pciID": "0:1"},
                ],
                "ips": [
                    {"address": "10.0.1.5/32", "gateway": "169.254.1.1", "interface": 1},
                    {"address": "fd00::5/128", "interface": 1},
                ],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1450, "scope": 0}],
                "dns": {"nameservers": ["10.96.0.10"]},
            })
        );
    }

    #[test]
    fn version_1_0_0_loses_the_newer_fields() {
        let json = full().to_json(Version::V1_0_0).unwrap();
        assert_eq!(
            json["interfaces"][1],
            json!({
                "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/var/run/netns/a"
            })
        );
        assert_eq!(
            json["routes"],
            json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}])
        );
        assert_eq!(json["ips"][0].get("version"), None);
    }

    #[test]
    fn versions_0_3_and_0_4_name_the_family_of_addresses() {
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let json = full().to_json(version).unwrap();
            assert_eq!(json["cniVersion"], version.as_str());
            assert_eq!(
                json["ips"],
                json!([
                    {"version": "4", "address": "10.0.1.5/32", "gateway": "169.254.1.1", "interface": 1},
                    {"version": "6", "address": "fd00::5/128", "interface": 1},
                ])
            );
        }
    }

    #[test]
    fn versions_0_1_and_0_2_have_one_address_of_each_family() {
        for version in [Version::V0_1_0, Version::V0_2_0] {
            assert_eq!(
                full().to_json(version).unwrap(),
                json!({
                    "cniVersion": version.as_str(),
                    "ip4": {"ip": "10.0.1.5/32", "gateway": "169.254.1.1",
                            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]},
                    "ip6": {"ip": "fd00::5/128"},
                    "dns": {"nameservers": ["10.96.0.10"]},
                })
            );
            assert_eq!(
                CniResult::default().to_json(version).unwrap_err().code,
                code::INTERNAL
            );
        }
    }

    #[test]
    fn every_version_reads_what_it_writes() {
        for version in Version::ALL {
            let json = full().to_json(version).unwrap();
            let back = CniResult::parse(&json, Version::LATEST).unwrap();
            assert_eq!(back.to_json(version).unwrap(), json, "{version}");
        }
        let json = full().to_json(Version::LATEST).unwrap();
        assert_eq!(CniResult::parse(&json, Version::V0_1_0).unwrap(), full());
    }

    #[test]
    fn a_result_without_version_has_the_configurations() {
        let json = json!({"ip4": {"ip": "10.0.0.1/24"}});
        let result = CniResult::parse(&json, Version::V0_2_0).unwrap();
        assert_eq!(result.ips[0].address, "10.0.0.1/24".parse().unwrap());
    }

    #[test]
    fn nulls_of_go_are_empty_and_rubbish_is_refused() {
        let json = json!({"interfaces": null, "ips": null, "routes": null, "dns": null});
        assert_eq!(
            CniResult::parse(&json, Version::LATEST).unwrap(),
            CniResult::default()
        );
        for (json, expected) in [
            (json!({"cniVersion": "7.0.0"}), code::INCOMPATIBLE_VERSION),
            (json!({"ips": [{"address": "300.0.0.1/24"}]}), code::DECODE),
            (
                json!({"ips": [{"address": "10.0.0.1/24", "interface": -1}]}),
                code::DECODE,
            ),
            (json!("text"), code::DECODE),
        ] {
            assert_eq!(
                CniResult::parse(&json, Version::LATEST).unwrap_err().code,
                expected,
                "{json}"
            );
        }
    }
}
