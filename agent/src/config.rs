//! The validated configuration: what [`crate::cli`] gave, checked once and then trusted.
//!
//! Invariants: every path is absolute, capacities name known maps, and nothing else in the agent
//! reads flags or the environment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use thiserror::Error;
use weft_abi::config::{CONFIG_MASQUERADE_V4, CONFIG_MASQUERADE_V6};
use weft_abi::{ABI_VERSION, maps};
use weft_core::model::{LoadBalancing, LoadBalancingReturn, NodePortAddresses, Routing, Settings};

use crate::bpf::resize::is_resizable;
use crate::cli::{
    AttachMode, BandwidthMode, LoadBalancingMode, MasqueradeFamily, ReturnMode, RoutingMode,
    RunArgs,
};
use crate::health::ServerArgs;

/// The smallest MTU of pod interfaces: what every IPv4 host must take.
pub const MTU_MIN: u32 = 576;
/// The largest MTU that the kernel gives a veth.
pub const MTU_MAX: u32 = 65_535;

/// The agent's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node's Node object.
    pub node_name: String,
    /// Kubeconfig of the Kubernetes API; without it, the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Mount point of the BPF file system.
    pub bpf_root: PathBuf,
    /// What must survive a reboot.
    pub state_dir: PathBuf,
    /// Directory of the sockets.
    pub run_dir: PathBuf,
    /// What to install for container runtimes.
    pub install: Install,
    /// MTU of pod interfaces, if given.
    pub mtu: Option<u32>,
    /// Whether the datapath traces packets.
    pub trace: bool,
    /// This node's underlay addresses, if given: at most one per family.
    pub node_addresses: Vec<IpAddr>,
    /// The uplinks, if given; else they are found.
    pub uplinks: Vec<String>,
    /// What the compiler must know.
    pub settings: Settings,
    /// Masquerading of what leaves the cluster.
    pub masquerade: Masquerade,
    /// How limits on what pods send are kept.
    pub bandwidth: BandwidthMode,
    /// The cgroup of the socket programs, if given.
    pub cgroup_root: Option<PathBuf>,
    /// How long one request of a watch lasts, in seconds.
    pub watch_timeout: u32,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Where health and metrics are served.
    pub servers: ServerArgs,
    /// Capacities of maps that differ from the ELF's, by map name.
    pub capacities: BTreeMap<&'static str, u32>,
}

/// What to install for container runtimes, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Install {
    /// The plugin binary, and the directory it goes to.
    pub plugin: Option<(PathBuf, PathBuf)>,
    /// The directory that the conflist goes to.
    pub conf_dir: Option<PathBuf>,
}

/// Masquerading of what leaves the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// IPv4 packets get their node's address.
    pub v4: bool,
    /// IPv6 packets do.
    pub v6: bool,
    /// The first source port that is given out.
    pub first_port: u16,
    /// The last one.
    pub last_port: u16,
}

impl Masquerade {
    /// As flags of the datapath's configuration.
    pub const fn flags(self) -> u16 {
        let v4 = if self.v4 { CONFIG_MASQUERADE_V4 } else { 0 };
        let v6 = if self.v6 { CONFIG_MASQUERADE_V6 } else { 0 };
        v4 | v6
    }

    /// Whether anything is masqueraded.
    pub const fn is_on(self) -> bool {
        self.v4 || self.v6
    }

    /// How many ports are given out.
    pub const fn ports(self) -> u16 {
        // One less than all: neither end is port 0.
        self.last_port - self.first_port + 1
    }
}

/// Why a command line is no configuration.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The node name is empty or no object name.
    #[error(
        "--node-name {0:?} is not the name of a Node: give lower-case letters, digits, '-', '.'"
    )]
    NodeName(String),
    /// A path is relative, so that its meaning would depend on where the agent was started.
    #[error("{flag} {path}: give an absolute path")]
    RelativePath {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        path: String,
    },
    /// The MTU is out of range.
    #[error("--mtu {0}: give a value from {MTU_MIN} to {MTU_MAX}")]
    Mtu(u32),
    /// The node's address is not one that other nodes can send to, or its family has one already.
    #[error("--node-address {0}: give a unicast address of this node, one per family")]
    NodeAddress(IpAddr),
    /// No name of an interface.
    #[error("--uplink {0:?}: give the name of an interface")]
    Uplink(String),
    /// `none` beside a family.
    #[error("--masquerade: give families, or none")]
    Masquerade,
    /// Neither a word that is known nor networks.
    #[error("--nodeport-addresses {0:?}: give `all`, `primary`, or networks as in 192.0.2.0/24")]
    NodePortAddresses(String),
    /// The ports make no range.
    #[error("--masquerade-ports {0:?}: give FIRST-LAST, with 1 <= FIRST <= LAST <= 65535")]
    MasqueradePorts(String),
    /// A capacity is not `name=entries` with a known map and a number above 0.
    #[error("--map-capacity {0:?}: give <map>=<entries>, with a map of \
        {known}", known = resizable())]
    Capacity(String),
}

impl Config {
    /// Checks the command line.
    ///
    /// # Errors
    ///
    /// The first flag that makes no sense.
    pub fn new(args: RunArgs) -> Result<Self, ConfigError> {
        if !is_object_name(&args.node_name) {
            return Err(ConfigError::NodeName(args.node_name));
        }
        if let Some(mtu) = args.mtu.filter(|mtu| !(MTU_MIN..=MTU_MAX).contains(mtu)) {
            return Err(ConfigError::Mtu(mtu));
        }
        let node_addresses = node_addresses(args.node_addresses)?;
        if let Some(bad) = args.uplinks.iter().find(|name| !is_interface_name(name)) {
            return Err(ConfigError::Uplink(bad.clone()));
        }
        let mut capacities = BTreeMap::new();
        for text in args.map_capacity.iter().filter(|text| !text.is_empty()) {
            let (name, entries) =
                parse_capacity(text).ok_or_else(|| ConfigError::Capacity(text.clone()))?;
            capacities.insert(name, entries);
        }
        let plugin = match (args.cni_binary, args.cni_bin_dir) {
            (Some(binary), Some(dir)) => Some((
                absolute("--cni-binary", binary)?,
                absolute("--cni-bin-dir", dir)?,
            )),
            _ => None,
        };
        let conf_dir = args
            .cni_conf_dir
            .map(|dir| absolute("--cni-conf-dir", dir))
            .transpose()?;
        Ok(Self {
            node_name: args.node_name,
            kubeconfig: args.kubeconfig,
            bpf_root: absolute("--bpf-root", args.bpf_root)?,
            state_dir: absolute("--state-dir", args.state_dir)?,
            run_dir: absolute("--run-dir", args.run_dir)?,
            install: Install { plugin, conf_dir },
            mtu: args.mtu,
            trace: args.trace,
            node_addresses,
            uplinks: args.uplinks,
            settings: Settings {
                routing: match args.routing {
                    RoutingMode::Vxlan => Routing::Vxlan,
                    RoutingMode::Native => Routing::Native,
                },
                maglev_blocks: capacities.get("maglev").map(|blocks| *blocks as usize),
                non_masquerade: args.non_masquerade.iter().map(IpNet::trunc).collect(),
                load_balancing: match args.load_balancing {
                    LoadBalancingMode::Random => LoadBalancing::Random,
                    LoadBalancingMode::Maglev => LoadBalancing::Maglev,
                },
                load_balancing_return: match args.load_balancing_return {
                    ReturnMode::Snat => LoadBalancingReturn::Snat,
                    ReturnMode::Direct => LoadBalancingReturn::Direct,
                },
                nodeport_addresses: nodeport_addresses(&args.nodeport_addresses)?,
            },
            masquerade: masquerade(&args.masquerade, &args.masquerade_ports)?,
            bandwidth: args.bandwidth,
            cgroup_root: args
                .cgroup_root
                .map(|path| absolute("--cgroup-root", path))
                .transpose()?,
            watch_timeout: args.watch_timeout,
            attach: args.attach,
            servers: args.servers,
            capacities,
        })
    }

    /// Where the maps of this agent's ABI version are pinned.
    pub fn map_dir(&self) -> PathBuf {
        self.bpf_root.join("weft").join(format!("v{ABI_VERSION}"))
    }

    /// Where links are pinned. They outlive ABI versions: the next agent swaps the programs in
    /// them.
    pub fn link_dir(&self) -> PathBuf {
        self.bpf_root.join("weft").join("links")
    }

    /// The socket of the CNI server.
    pub fn cni_socket(&self) -> PathBuf {
        self.run_dir.join("cni.sock")
    }

    /// The socket that the operator's commands ask.
    pub fn status_socket(&self) -> PathBuf {
        status_socket(&self.run_dir)
    }

    /// Where the plugin leaves DELs while the agent is away.
    pub fn cni_queue(&self) -> PathBuf {
        self.state_dir.join("cni-queue")
    }
}

/// The status socket in a run directory.
pub fn status_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("weft.sock")
}

fn absolute(flag: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(ConfigError::RelativePath {
            flag,
            path: path.display().to_string(),
        })
    }
}

fn node_addresses(given: Vec<IpAddr>) -> Result<Vec<IpAddr>, ConfigError> {
    for (index, address) in given.iter().enumerate() {
        let again = given[..index]
            .iter()
            .any(|other| other.is_ipv4() == address.is_ipv4());
        if again
            || address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || weft_core::model::canonical(*address) != *address
        {
            return Err(ConfigError::NodeAddress(*address));
        }
    }
    Ok(given)
}

fn is_interface_name(name: &str) -> bool {
    let ok = |c: u8| c != b'/' && !c.is_ascii_whitespace() && c != 0;
    (1..libc::IF_NAMESIZE).contains(&name.len())
        && name.bytes().all(ok)
        && name != "."
        && name != ".."
}

fn masquerade(families: &[MasqueradeFamily], ports: &str) -> Result<Masquerade, ConfigError> {
    let has = |family| families.contains(&family);
    let (v4, v6) = (has(MasqueradeFamily::Ipv4), has(MasqueradeFamily::Ipv6));
    if has(MasqueradeFamily::None) && (v4 || v6) {
        return Err(ConfigError::Masquerade);
    }
    let (first_port, last_port) = parse_ports(ports)
        .filter(|(first, last)| 0 < *first && first <= last)
        .ok_or_else(|| ConfigError::MasqueradePorts(ports.to_owned()))?;
    Ok(Masquerade {
        v4,
        v6,
        first_port,
        last_port,
    })
}

fn nodeport_addresses(given: &[String]) -> Result<NodePortAddresses, ConfigError> {
    let given: Vec<_> = given.iter().map(|text| text.trim()).collect();
    match given.as_slice() {
        [] | ["" | "all"] => Ok(NodePortAddresses::All),
        ["primary"] => Ok(NodePortAddresses::Primary),
        cidrs => {
            let parse = |text: &&str| {
                let bad = || ConfigError::NodePortAddresses((*text).to_owned());
                text.parse::<IpNet>()
                    .map(|cidr| cidr.trunc())
                    .map_err(|_| bad())
            };
            let cidrs: Result<Vec<_>, _> = cidrs.iter().map(parse).collect();
            Ok(NodePortAddresses::Cidrs(cidrs?))
        }
    }
}

fn parse_ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-')?;
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

fn is_object_name(name: &str) -> bool {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    (1..=253).contains(&name.len()) && name.bytes().all(ok)
}

fn resizable() -> String {
    let names = maps::PINNED.iter().copied();
    let names: Vec<_> = names.filter(|name| is_resizable(name)).collect();
    names.join(", ")
}

fn parse_capacity(text: &str) -> Option<(&'static str, u32)> {
    let (name, entries) = text.split_once('=')?;
    let name = maps::PINNED
        .iter()
        .copied()
        .find(|known| *known == name.trim() && is_resizable(known))?;
    let entries = entries.trim().parse().ok().filter(|entries| *entries > 0)?;
    Some((name, entries))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn config(extra: &[&str]) -> Result<Config, ConfigError> {
        let mut args = vec!["weft-agent", "run"];
        if !extra.contains(&"--node-name") {
            args.extend(["--node-name", "n1"]);
        }
        args.extend(extra);
        match Cli::try_parse_from(args).expect("parses").command {
            Command::Run(args) => Config::new(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_a_cluster_node() {
        let config = config(&[]).expect("valid");
        assert_eq!(
            config.map_dir(),
            Path::new(&format!("/sys/fs/bpf/weft/v{ABI_VERSION}"))
        );
        assert_eq!(config.cni_socket(), Path::new("/run/weft/cni.sock"));
        assert_eq!(
            config.cni_queue(),
            Path::new(weft_cni::config::DEFAULT_QUEUE_DIR)
        );
        assert_eq!(config.install, Install::default());
        assert_eq!(config.settings, Settings::default());
        assert_eq!(config.masquerade.flags(), 3);
        let masquerade = config.masquerade;
        assert_eq!((masquerade.first_port, masquerade.ports()), (1024, 28_976));
    }

    #[test]
    fn what_the_network_is_like_can_be_said() {
        let config = config(&[
            "--routing=native",
            "--uplink=eth0,eth1",
            "--uplink=bond0",
            "--masquerade=ipv6",
            "--masquerade-ports=2000-2000",
            "--non-masquerade-cidr=10.1.2.3/8",
            "--node-address=192.0.2.1,2001:db8::1",
            "--bandwidth=bucket",
            "--cgroup-root=/sys/fs/cgroup",
        ])
        .expect("valid");
        assert_eq!(config.settings.routing, Routing::Native);
        assert_eq!(config.uplinks, ["eth0", "eth1", "bond0"]);
        assert_eq!(config.masquerade.flags(), CONFIG_MASQUERADE_V6);
        assert_eq!(config.masquerade.ports(), 1);
        assert_eq!(
            config.settings.non_masquerade,
            ["10.0.0.0/8".parse::<IpNet>().expect("a network")]
        );
        assert_eq!(config.node_addresses.len(), 2);
        assert_eq!(config.bandwidth, BandwidthMode::Bucket);
    }

    #[test]
    fn senseless_flags_are_refused() {
        assert!(matches!(
            config(&["--mtu", "100"]),
            Err(ConfigError::Mtu(100))
        ));
        assert!(matches!(
            config(&["--node-name", "No"]),
            Err(ConfigError::NodeName(_))
        ));
        for bad in [
            "::1",
            "0.0.0.0",
            "224.0.0.1",
            "192.0.2.1,192.0.2.2",
            "::ffff:192.0.2.1",
        ] {
            assert!(
                matches!(
                    config(&["--node-address", bad]),
                    Err(ConfigError::NodeAddress(_))
                ),
                "{bad}"
            );
        }
        for bad in ["a/b", "..", "sixteen-letters-"] {
            assert!(
                matches!(config(&["--uplink", bad]), Err(ConfigError::Uplink(_))),
                "{bad}"
            );
        }
        for bad in ["0-5", "5-4", "5", "5-65536", ""] {
            assert!(
                matches!(
                    config(&["--masquerade-ports", bad]),
                    Err(ConfigError::MasqueradePorts(_))
                ),
                "{bad}"
            );
        }
        assert_eq!(
            config(&["--masquerade", "none,ipv4"]).expect_err("both"),
            ConfigError::Masquerade
        );
        assert!(matches!(
            config(&["--state-dir", "here"]),
            Err(ConfigError::RelativePath {
                flag: "--state-dir",
                ..
            })
        ));
        for bad in [
            "flows4", "flows4=0", "flows4=x", "other=5", "=5", "config=5",
        ] {
            assert_eq!(
                config(&["--map-capacity", bad]).unwrap_err(),
                ConfigError::Capacity(bad.to_owned())
            );
        }
    }

    #[test]
    fn capacities_are_by_map() {
        let config = config(&["--map-capacity", "flows4=1024,policy=7"]).expect("valid");
        assert_eq!(
            config.capacities,
            BTreeMap::from([("flows4", 1024), ("policy", 7)])
        );
    }
}
