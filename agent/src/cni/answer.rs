//! The result of ADD.

use std::net::IpAddr;

use ipnet::IpNet;
use weft_cni::CniResult;
use weft_cni::result::{Interface, IpConfig, Route};

use crate::endpoints::Record;
use crate::netlink::veth::{self, Pair};

/// What the runtime gets: what the plugins before this one made (`previous`), and what Weft added.
/// Nothing of the previous result is dropped; its interfaces keep their indices.
pub fn result(record: &Record, pair: &Pair, netns: &str, previous: Option<CniResult>) -> CniResult {
    let mut result = previous.unwrap_or_default();
    let own = result.interfaces.len() + 1;
    result.interfaces.push(Interface {
        name: pair.host.clone(),
        mac: mac_text(weft_abi::GATEWAY_MAC),
        mtu: Some(pair.mtu),
        ..Interface::default()
    });
    result.interfaces.push(Interface {
        name: pair.pod.clone(),
        mac: mac_text(pair.mac),
        mtu: Some(pair.mtu),
        sandbox: Some(netns.to_owned()),
        ..Interface::default()
    });
    for address in &record.addresses {
        result.ips.push(IpConfig {
            address: IpNet::from(*address),
            gateway: Some(veth::gateway(*address)),
            interface: Some(own),
        });
        let route = Route {
            dst: default_route(*address),
            gw: Some(veth::gateway(*address)),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        };
        if !result.routes.contains(&route) {
            result.routes.push(route);
        }
    }
    result
}

/// A MAC address as CNI writes it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The default route of an address's family.
pub fn default_route(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::tests::record;

    fn pair() -> Pair {
        Pair::new("c1", "eth0", 1450)
    }

    #[test]
    fn the_result_says_what_runtimes_read() {
        let dual = Record {
            addresses: vec![
                "10.0.0.1".parse().expect("v4"),
                "fd00::1".parse().expect("v6"),
            ],
            ..record(1)
        };
        let result = result(&dual, &pair(), "/run/netns/1", None);
        assert_eq!(result.interfaces[1].name, "eth0");
        assert_eq!(
            result.interfaces[1].sandbox.as_deref(),
            Some("/run/netns/1")
        );
        assert_eq!(result.interfaces[0].sandbox, None);
        let ips: Vec<_> = result
            .ips
            .iter()
            .map(|ip| (ip.address.to_string(), ip.interface))
            .collect();
        assert_eq!(
            ips,
            [
                ("10.0.0.1/32".to_owned(), Some(1)),
                ("fd00::1/128".to_owned(), Some(1))
            ]
        );
        assert_eq!(result.ips[0].gateway, Some([169, 254, 1, 1].into()));
        assert_eq!(result.routes[0].dst.to_string(), "0.0.0.0/0");
        assert_eq!(result.routes[1].dst.to_string(), "::/0");
        assert_eq!(
            result.routes[1].gw.expect("a gateway").to_string(),
            "fe80::1"
        );
    }

    #[test]
    fn what_came_before_stays() {
        let alone = result(&record(1), &pair(), "/run/netns/1", None);
        let mut previous = CniResult {
            interfaces: vec![Interface {
                name: "net1".to_owned(),
                ..Interface::default()
            }],
            ips: vec![IpConfig {
                address: "192.0.2.1/24".parse().expect("a network"),
                gateway: None,
                interface: Some(0),
            }],
            ..CniResult::default()
        };
        previous.dns.nameservers = vec!["192.0.2.53".to_owned()];
        previous.routes.clone_from(&alone.routes);
        let both = result(&record(1), &pair(), "/run/netns/1", Some(previous.clone()));
        assert_eq!(both.interfaces[0], previous.interfaces[0]);
        assert_eq!(both.interfaces[1..], alone.interfaces);
        assert_eq!(both.ips[0], previous.ips[0]);
        assert_eq!(both.ips[1].interface, Some(2));
        assert_eq!(both.routes, alone.routes, "each once");
        assert_eq!(both.dns, previous.dns);
    }
}
