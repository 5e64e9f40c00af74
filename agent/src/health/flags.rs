//! Where the servers listen, as the command line says it.

use std::net::{IpAddr, SocketAddr};

use clap::Args;

/// kube-proxy's port of `/healthz`.
const HEALTHZ_PORT: u16 = 10_256;
/// kube-proxy's port of `/metrics`.
const METRICS_PORT: u16 = 10_249;

/// Flags of the servers, named as kube-proxy's.
#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// Addresses of `/healthz` and `/livez`, which load balancers ask; `none` for no such server.
    /// The port may be left out: 10256.
    #[arg(
        long,
        env = "WEFT_HEALTHZ_BIND_ADDRESS",
        value_name = "ADDRESS,...|none",
        default_value = "0.0.0.0:10256,[::]:10256",
        value_parser = healthz_addresses
    )]
    pub healthz_bind_address: BindAddresses,
    /// Addresses of `/metrics`, `/proxyMode` and `/configz`; `none` for no such server. The port may
    /// be left out: 10249.
    #[arg(
        long,
        env = "WEFT_METRICS_BIND_ADDRESS",
        value_name = "ADDRESS,...|none",
        default_value = "127.0.0.1:10249",
        value_parser = metrics_addresses
    )]
    pub metrics_bind_address: BindAddresses,
}

/// The addresses of one server; none when it is switched off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindAddresses(pub Vec<SocketAddr>);

fn healthz_addresses(text: &str) -> Result<BindAddresses, String> {
    parse(text, HEALTHZ_PORT)
}

fn metrics_addresses(text: &str) -> Result<BindAddresses, String> {
    parse(text, METRICS_PORT)
}

fn parse(text: &str, default_port: u16) -> Result<BindAddresses, String> {
    // kube-proxy switches its servers off by an empty address.
    if text.trim().is_empty() || text.trim() == "none" {
        return Ok(BindAddresses::default());
    }
    let one = |text: &str| {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        let with_port = || Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, default_port));
        text.parse().ok().or_else(with_port).ok_or_else(|| {
            format!("{text:?}: give addresses with or without a port, such as 0.0.0.0:{default_port}, or none")
        })
    };
    let addresses = text.split(',').map(|text| one(text.trim()));
    addresses.collect::<Result<_, _>>().map(BindAddresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_ports_or_get_the_usual_one() {
        let texts = |text: &str| {
            let addresses = parse(text, 7).expect(text).0;
            addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            texts("0.0.0.0:10256,[::]:10256"),
            "0.0.0.0:10256 [::]:10256"
        );
        assert_eq!(texts("127.0.0.1, ::1,[::1]"), "127.0.0.1:7 [::1]:7 [::1]:7");
        assert_eq!(texts(""), "");
        assert_eq!(texts("none"), "");
        for bad in ["localhost", "1.2.3.4:x", "1.2.3.4,none", ","] {
            assert!(parse(bad, 7).is_err(), "{bad}");
        }
    }
}
