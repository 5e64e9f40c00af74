//! Addresses and networks as Kubernetes has accepted them: IPv4 octets may have leading zeros
//! (decimal all the same), IPv6 may embed or map IPv4, networks may have host bits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::canonical;

/// An address, leniently.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text
            .parse::<Ipv6Addr>()
            .ok()
            .map(|address| canonical(address.into()));
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_octet(parts.next()?)?;
    }
    parts
        .next()
        .is_none()
        .then(|| Ipv4Addr::from(octets).into())
}

/// A network, leniently; the result has no host bits.
pub fn parse_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let mut prefix = parse_decimal(length, 3).and_then(|length| u8::try_from(length).ok())?;
    let parsed = parse_address(address)?;
    if parsed.is_ipv4() && address.contains(':') {
        // A mapped address counts its prefix from the start of the IPv6 address.
        prefix = prefix.checked_sub(96)?;
    }
    IpNet::new(parsed, prefix)
        .ok()
        .map(|network| network.trunc())
}

/// Decimal with any leading zeros, as Go's `ParseIPSloppy` reads it.
fn parse_octet(text: &str) -> Option<u8> {
    parse_decimal(text, 16).and_then(|number| u8::try_from(number).ok())
}

/// Digits only: neither sign nor space; `longest` bounds the length.
fn parse_decimal(text: &str, longest: usize) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !text.is_empty() && text.len() <= longest)
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let table = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.01", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("10.0..1", None),
            (" 10.0.0.1", None),
            ("", None),
            ("example.org", None),
            ("fe80::1%eth0", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|text| text.parse().expect("a valid address"));
            assert_eq!(parse_address(text), expected, "{text:?}");
        }
    }

    #[test]
    fn networks() {
        let table = [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("010.0.0.0/8", Some("10.0.0.0/8")),
            ("10.0.0.5/24", Some("10.0.0.0/24")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.1/32", Some("10.0.0.1/32")),
            ("fd00::5/64", Some("fd00::/64")),
            ("::/0", Some("::/0")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:10.0.0.0/24", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/-1", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
            ("fd00::/129", None),
            ("/8", None),
            ("", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|text| text.parse().expect("a valid network"));
            assert_eq!(parse_network(text), expected, "{text:?}");
        }
    }
}
