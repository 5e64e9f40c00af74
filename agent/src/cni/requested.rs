//! What a runtime asks for beyond a network: host ports, limits of bandwidth, a MAC address,
//! addresses. Pure; it comes in `runtimeConfig` for the capabilities that the conflist declares, and
//! for MAC and addresses in `CNI_ARGS` as well.
//!
//! Keys that Weft does not know are left alone. A value that it does know and that makes no sense
//! fails the ADD: a pod without the port or limit that its owner asked for is worse than none.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use weft_cni::Request;
use weft_cni::error::{CniError, code};
use weft_core::model::{HostPort, Limit, Protocol, canonical};

/// What a bucket holds at least when it is Weft's to choose, in bytes: four of the largest packets
/// that the datapath sees at once (64 KiB, before segmentation), so that one of them never waits for
/// an empty bucket.
const BURST_MIN: u64 = 4 * LARGEST_PACKET;
/// The largest packet that the datapath sees, in bytes. A bucket that cannot hold it lets nothing
/// through, whatever its owner meant.
const LARGEST_PACKET: u64 = 64 * 1024;
/// A chosen bucket holds what the rate allows in this part of a second, 50 ms: short enough for a
/// limit to show at once, long enough for TCP to reach it.
const BURST_PART: u64 = 20;

/// The annotations of the pod, as containerd and CRI-O pass them on.
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// The annotation that limits what a pod receives, in bits per second.
const INGRESS_ANNOTATION: &str = "kubernetes.io/ingress-bandwidth";
/// The annotation that limits what a pod sends, in bits per second.
const EGRESS_ANNOTATION: &str = "kubernetes.io/egress-bandwidth";

/// What the runtime asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    /// Ports of the node that are to lead to the pod, sorted, each once.
    pub host_ports: Vec<HostPort>,
    /// What the pod may send.
    pub egress_limit: Option<Limit>,
    /// What the pod may receive.
    pub ingress_limit: Option<Limit>,
    /// The MAC address of the pod's interface.
    pub mac: Option<[u8; 6]>,
    /// Addresses of the pod, in the order they were asked for.
    pub addresses: Vec<IpAddr>,
}

/// An entry of `portMappings`. Numbers are wide, so that one out of range can be named. Its keys, and
/// those of `bandwidth`, are read in lower case: the conventions have `hostPort`, containerd's go-cni
/// sends `HostPort`, and plugins in Go do not see the difference.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
struct PortMapping {
    #[serde(default, rename = "hostport")]
    host_port: i64,
    #[serde(default, rename = "containerport")]
    container_port: i64,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default, rename = "hostip")]
    host_ip: Option<String>,
}

/// `bandwidth`: rates in bits per second, bursts in bits; 0 is none.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Bandwidth {
    #[serde(rename = "ingressrate")]
    ingress_rate: Option<u64>,
    #[serde(rename = "ingressburst")]
    ingress_burst: Option<u64>,
    #[serde(rename = "egressrate")]
    egress_rate: Option<u64>,
    #[serde(rename = "egressburst")]
    egress_burst: Option<u64>,
}

/// The object with its keys in lower case; other values as they are.
fn lower_case_keys(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let lower = |(key, value): (&String, &Value)| (key.to_ascii_lowercase(), value.clone());
            Value::Object(object.iter().map(lower).collect())
        }
        other => other.clone(),
    }
}

impl Requested {
    /// Reads what a request asks for.
    ///
    /// # Errors
    ///
    /// Code 7 for a value of `runtimeConfig`, code 4 for one of `CNI_ARGS`, that makes no sense; the
    /// message names it.
    pub fn of(request: &Request) -> Result<Self, CniError> {
        let none = Value::Null;
        let config = request.config.runtime_config.as_ref().unwrap_or(&none);
        let (egress_limit, ingress_limit) = limits(config)?;
        let args = &request.args.other;
        let arg = |name: &str| args.get(name).map(String::as_str).filter(|s| !s.is_empty());
        let mac = match (&config["mac"], arg("MAC")) {
            (Value::Null, None) => None,
            (Value::Null, Some(text)) => Some(mac(text).ok_or_else(|| bad_arg("MAC", text))?),
            (value, _) => match value.as_str() {
                Some("") => None,
                text => {
                    let mac = text.and_then(mac);
                    Some(mac.ok_or_else(|| invalid("mac", value, MAC_RULE))?)
                }
            },
        };
        let mut addresses = Vec::new();
        for value in list("ips", &config["ips"])? {
            let address = value.as_str().and_then(address);
            addresses.push(address.ok_or_else(|| invalid("ips", value, ADDRESS_RULE))?);
        }
        if addresses.is_empty()
            && let Some(text) = arg("IP")
        {
            for part in text.split(',') {
                addresses.push(address(part.trim()).ok_or_else(|| bad_arg("IP", text))?);
            }
        }
        Ok(Self {
            host_ports: host_ports(&config["portMappings"])?,
            egress_limit,
            ingress_limit,
            mac,
            addresses,
        })
    }
}

const MAC_RULE: &str = "give the six octets of a unicast MAC address that is not Weft's own";
const ADDRESS_RULE: &str = "give an address, with or without a prefix length";

fn host_ports(value: &Value) -> Result<Vec<HostPort>, CniError> {
    let mut ports = Vec::new();
    for value in list("portMappings", value)? {
        let refused = |why: &str| invalid("portMappings", value, why);
        let mapping = PortMapping::deserialize(lower_case_keys(value))
            .map_err(|error| refused(&error.to_string()))?;
        if mapping.host_port == 0 {
            // A container port that is only told.
            continue;
        }
        let port = |number: i64, name: &str| {
            u16::try_from(number)
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| refused(&format!("{name} must be from 1 to 65535")))
        };
        let protocol = match mapping.protocol.as_deref().map(str::to_ascii_uppercase) {
            None => Protocol::Tcp,
            Some(name) if name.is_empty() => Protocol::Tcp,
            Some(name) => Protocol::from_name(&name)
                .ok_or_else(|| refused("the protocol must be tcp, udp or sctp"))?,
        };
        let host_ip = match mapping.host_ip.as_deref().unwrap_or_default() {
            "" => None,
            text => {
                let ip: IpAddr = text
                    .parse()
                    .map_err(|_| refused("hostIP must be an address"))?;
                Some(canonical(ip)).filter(|ip| !ip.is_unspecified())
            }
        };
        ports.push(HostPort {
            host_ip,
            host_port: port(mapping.host_port, "hostPort")?,
            protocol,
            container_port: port(mapping.container_port, "containerPort")?,
        });
    }
    ports.sort();
    ports.dedup();
    Ok(ports)
}

/// Limits of egress and ingress.
fn limits(config: &Value) -> Result<(Option<Limit>, Option<Limit>), CniError> {
    let value = &config["bandwidth"];
    if value.is_null() {
        return Ok((
            annotated(config, EGRESS_ANNOTATION)?,
            annotated(config, INGRESS_ANNOTATION)?,
        ));
    }
    let bandwidth = Bandwidth::deserialize(lower_case_keys(value))
        .map_err(|error| invalid("bandwidth", value, &error.to_string()))?;
    Ok((
        limit(bandwidth.egress_rate, bandwidth.egress_burst),
        limit(bandwidth.ingress_rate, bandwidth.ingress_burst),
    ))
}

fn annotated(config: &Value, name: &str) -> Result<Option<Limit>, CniError> {
    let value = &config[ANNOTATIONS][name];
    if value.is_null() {
        return Ok(None);
    }
    let rate = value.as_str().and_then(quantity).filter(|rate| *rate > 0);
    let Some(rate) = rate else {
        let why = "give bits per second as a quantity, as in 10M";
        return Err(invalid(name, value, why));
    };
    Ok(limit(Some(rate), None))
}

/// A limit of bits per second and bits of burst. Runtimes without an opinion on the burst give 0 or
/// the largest number that they know; what is more than a second's worth is taken for that.
fn limit(rate: Option<u64>, burst: Option<u64>) -> Option<Limit> {
    let rate = rate.filter(|rate| *rate > 0)?;
    let bytes_per_second = rate.div_ceil(8);
    let meant = burst.filter(|burst| *burst > 0 && *burst <= rate && *burst < u32::MAX.into());
    let burst = match meant {
        Some(burst) => (burst / 8).max(LARGEST_PACKET),
        None => (bytes_per_second / BURST_PART).max(BURST_MIN),
    };
    Some(Limit {
        bytes_per_second,
        burst,
    })
}

/// A Kubernetes quantity as a whole number, rounded down.
fn quantity(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        "Ei" => 1024.0_f64.powi(6),
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
            10.0_f64.powi(exponent)
        }
    };
    let value = number * factor;
    // The conversion saturates; far more than any link has is as good as the most that is known.
    value.is_finite().then_some(value as u64)
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut octets = [0; 6];
    let mut parts = text.split(separator);
    for octet in &mut octets {
        let part = parts.next()?;
        if part.len() != 2 {
            return None;
        }
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    let unicast = octets[0] & 1 == 0;
    let ours = octets == weft_abi::GATEWAY_MAC || octets == weft_abi::OVERLAY_MAC;
    (parts.next().is_none() && unicast && octets != [0; 6] && !ours).then_some(octets)
}

fn address(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok();
    let address = address.or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()));
    address.map(canonical)
}

fn list<'a>(key: &str, value: &'a Value) -> Result<&'a [Value], CniError> {
    match value {
        Value::Null => Ok(&[]),
        Value::Array(list) => Ok(list),
        other => Err(invalid(key, other, "a list is expected")),
    }
}

fn invalid(key: &str, value: &Value, why: &str) -> CniError {
    CniError::new(
        code::INVALID_CONFIG,
        format!("runtimeConfig {key:?}: {value} is invalid"),
    )
    .with_details(why)
}

fn bad_arg(name: &str, value: &str) -> CniError {
    CniError::new(
        code::INVALID_ENVIRONMENT,
        format!("CNI_ARGS: {name}={value:?} is invalid"),
    )
    .with_details(if name == "MAC" {
        MAC_RULE
    } else {
        ADDRESS_RULE
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_cni::protocol::CniArgs;
    use weft_cni::{Command, NetConf};

    use super::*;

    fn request(runtime_config: Value, args: &str) -> Request {
        Request {
            command: Command::Add,
            container_id: "c1".to_owned(),
            netns: None,
            ifname: "eth0".to_owned(),
            args: CniArgs::parse(args).expect("args"),
            config: NetConf {
                runtime_config: Some(runtime_config),
                ..NetConf::default()
            },
        }
    }

    fn of(runtime_config: Value) -> Result<Requested, CniError> {
        Requested::of(&request(runtime_config, ""))
    }

    #[test]
    fn nothing_is_asked_for_by_nothing_and_by_what_is_not_known() {
        for config in [
            Value::Null,
            json!({}),
            json!({"aliases": {"a": 1}, "dns": {}, "portMappings": null, "ips": [], "mac": ""}),
        ] {
            assert_eq!(of(config).expect("valid"), Requested::default());
        }
        let mut request = request(Value::Null, "");
        request.config.runtime_config = None;
        assert_eq!(
            Requested::of(&request).expect("valid"),
            Requested::default()
        );
    }

    #[test]
    fn go_structs_without_tags_are_read_as_well() {
        let requested = of(json!({
            "portMappings": [
                {"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": "127.0.0.1"},
            ],
            "bandwidth": {"IngressRate": 8_000_000, "IngressBurst": 4_294_967_295_u64},
        }))
        .expect("valid");
        let [port] = requested.host_ports.as_slice() else {
            panic!("{requested:?}");
        };
        assert_eq!((port.host_port, port.container_port), (80, 8080));
        assert_eq!(port.host_ip, Some([127, 0, 0, 1].into()));
        let limit = requested.ingress_limit.expect("a limit");
        assert_eq!(limit.bytes_per_second, 1_000_000);
        assert_eq!(requested.egress_limit, None);
    }

    #[test]
    fn port_mappings_of_every_runtime() {
        let requested = of(json!({"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
            {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"},
            {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "127.0.0.1"},
            {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "::"},
            {"hostPort": 9, "containerPort": 9, "protocol": "sctp", "hostIP": "2001:db8::1"},
            {"hostPort": 0, "containerPort": 99},
            {"containerPort": 98},
            {"hostPort": 443, "containerPort": 443, "new": true},
        ]}));
        let ports: Vec<_> = requested
            .expect("valid")
            .host_ports
            .into_iter()
            .map(|p| {
                (
                    p.host_ip.map(|ip| ip.to_string()),
                    p.host_port,
                    p.protocol.name(),
                )
            })
            .collect();
        let ip = |text: &str| Some(text.to_owned());
        assert_eq!(
            ports,
            [
                (None, 53, "UDP"),
                (None, 443, "TCP"),
                (None, 8080, "TCP"),
                (ip("127.0.0.1"), 53, "UDP"),
                (ip("2001:db8::1"), 9, "SCTP"),
            ]
        );
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (config, named) in [
            (
                json!({"portMappings": [{"hostPort": 65536, "containerPort": 1}]}),
                "65536",
            ),
            (
                json!({"portMappings": [{"hostPort": -1, "containerPort": 1}]}),
                "-1",
            ),
            (
                json!({"portMappings": [{"hostPort": 1, "containerPort": 0}]}),
                "hostPort",
            ),
            (
                json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}),
                "icmp",
            ),
            (
                json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "here"}]}),
                "here",
            ),
            (json!({"portMappings": [{"hostPort": "80"}]}), "80"),
            (json!({"portMappings": {}}), "portMappings"),
            (json!({"bandwidth": {"ingressRate": -5}}), "-5"),
            (json!({"bandwidth": "much"}), "much"),
            (json!({"mac": "01:00:5e:00:00:01"}), "01:00:5e"),
            (json!({"mac": "00:00:00:00:00:00"}), "00:00:00"),
            (json!({"mac": "2:0:0:0:0:1"}), "2:0:0"),
            (json!({"mac": 7}), "7"),
            (json!({"ips": ["10.0.0"]}), "10.0.0"),
            (json!({"ips": "10.0.0.1"}), "10.0.0.1"),
            (json!({ANNOTATIONS: {INGRESS_ANNOTATION: "fast"}}), "fast"),
            (
                json!({ANNOTATIONS: {EGRESS_ANNOTATION: "0"}}),
                EGRESS_ANNOTATION,
            ),
        ] {
            let error = of(config.clone()).expect_err(named);
            assert_eq!(error.code, code::INVALID_CONFIG, "{config}");
            assert!(error.msg.contains(named), "{config}: {}", error.msg);
        }
        for args in ["MAC=x", "IP=1.2.3", "IP=10.0.0.1,x"] {
            let error = Requested::of(&request(Value::Null, args)).expect_err(args);
            assert_eq!(error.code, code::INVALID_ENVIRONMENT, "{args}");
        }
    }

    #[test]
    fn limits_are_bytes_and_their_bursts_are_sensible() {
        let limit_of = |rate: u64, burst: u64| {
            let config = json!({"bandwidth": {"egressRate": rate, "egressBurst": burst}});
            let requested = of(config).expect("valid");
            assert_eq!(requested.ingress_limit, None);
            requested
                .egress_limit
                .map(|limit| (limit.bytes_per_second, limit.burst))
        };
        let mbit = 1_000_000;
        assert_eq!(limit_of(0, 5), None);
        // No opinion: none, all of a 32-bit number, all of a 64-bit one, more than a second's worth.
        for burst in [0, u32::MAX.into(), u64::MAX, 10 * mbit + 1] {
            assert_eq!(limit_of(10 * mbit, burst), Some((1_250_000, 262_144)));
        }
        assert_eq!(limit_of(1000 * mbit, 0), Some((125_000_000, 6_250_000)));
        assert_eq!(limit_of(10 * mbit, 8 * mbit), Some((1_250_000, 1_000_000)));
        // Less than the largest packet would let nothing through.
        assert_eq!(limit_of(10 * mbit, 8), Some((1_250_000, 65_536)));
        assert_eq!(limit_of(1, 0), Some((1, 262_144)));
    }

    #[test]
    fn annotations_count_without_bandwidth() {
        let annotations = json!({INGRESS_ANNOTATION: "10M", EGRESS_ANNOTATION: "1Gi", "a": "b"});
        let requested = of(json!({ANNOTATIONS: annotations})).expect("valid");
        let rate = |limit: Option<Limit>| limit.expect("a limit").bytes_per_second;
        assert_eq!(rate(requested.ingress_limit), 1_250_000);
        assert_eq!(rate(requested.egress_limit), 134_217_728);
        let both = json!({ANNOTATIONS: annotations, "bandwidth": {"ingressRate": 8000}});
        let requested = of(both).expect("valid");
        assert_eq!(rate(requested.ingress_limit), 1000);
        assert_eq!(requested.egress_limit, None);
    }

    #[test]
    fn quantities() {
        for (text, value) in [
            ("1", Some(1)),
            ("1.5k", Some(1500)),
            ("1e3", Some(1000)),
            ("2E", Some(2_000_000_000_000_000_000)),
            ("1Ki", Some(1024)),
            ("5000m", Some(5)),
            ("", None),
            ("M", None),
            ("1MB", None),
            ("-1", None),
        ] {
            assert_eq!(quantity(text), value, "{text}");
        }
    }

    #[test]
    fn mac_and_addresses_from_either_place() {
        let config = json!({"mac": "02:00:00:00:00:aa", "ips": ["10.0.0.5/24", "fd00::5"]});
        let addresses: Vec<IpAddr> = vec![
            "10.0.0.5".parse().expect("an address"),
            "fd00::5".parse().expect("an address"),
        ];
        let by_config = Requested::of(&request(config, "MAC=02:00:00:00:00:bb;IP=10.0.0.9"));
        let by_config = by_config.expect("valid");
        assert_eq!(by_config.mac, Some([2, 0, 0, 0, 0, 0xaa]));
        assert_eq!(by_config.addresses, addresses);
        let by_args = Requested::of(&request(
            Value::Null,
            "MAC=02-00-00-00-00-AA;IP=10.0.0.5,fd00::5/64",
        ));
        let by_args = by_args.expect("valid");
        assert_eq!(by_args.mac, by_config.mac);
        assert_eq!(by_args.addresses, addresses);
    }
}
