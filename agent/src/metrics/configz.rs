//! `/configz`: the configuration that is in effect.

use serde_json::{Value, json};
use weft_core::model::Routing;

use crate::config::Config;

/// The configuration, by the names of its flags where it has flags.
pub fn configz(config: &Config) -> Value {
    let Config {
        settings,
        masquerade,
        ..
    } = config;
    let addresses = |addresses: &crate::health::BindAddresses| {
        let addresses = addresses.0.iter();
        addresses.map(ToString::to_string).collect::<Vec<_>>()
    };
    let families = [(masquerade.v4, "ipv4"), (masquerade.v6, "ipv6")];
    let families = families.iter().filter(|(on, _)| *on);
    json!({ "weft": {
        "nodeName": config.node_name,
        "kubeconfig": config.kubeconfig,
        "bpfRoot": config.bpf_root,
        "stateDir": config.state_dir,
        "runDir": config.run_dir,
        "cniConfDir": config.install.conf_dir,
        "mtu": config.mtu,
        "trace": config.trace,
        "nodeAddresses": config.node_addresses,
        "uplinks": config.uplinks,
        "routing": match settings.routing {
            Routing::Vxlan => "vxlan",
            Routing::Native => "native",
        },
        "nonMasqueradeCIDRs": settings.non_masquerade,
        "masquerade": families.map(|(_, family)| family).collect::<Vec<_>>(),
        "masqueradePorts": format!("{}-{}", masquerade.first_port, masquerade.last_port),
        "loadBalancing": text(&settings.load_balancing),
        "loadBalancingReturn": text(&settings.load_balancing_return),
        "nodePortAddresses": match &settings.nodeport_addresses {
            weft_core::model::NodePortAddresses::All => json!("all"),
            weft_core::model::NodePortAddresses::Primary => json!("primary"),
            weft_core::model::NodePortAddresses::Cidrs(cidrs) => json!(cidrs),
        },
        "bandwidth": text(&config.bandwidth),
        "cgroupRoot": config.cgroup_root,
        "watchTimeout": config.watch_timeout,
        "attach": text(&config.attach),
        "mapCapacities": config.capacities,
        "healthzBindAddress": addresses(&config.servers.healthz_bind_address),
        "metricsBindAddress": addresses(&config.servers.metrics_bind_address),
    } })
}

/// A choice as flags have it: these have one word each.
fn text(choice: &impl std::fmt::Debug) -> String {
    format!("{choice:?}").to_lowercase()
}
