//! The validated configuration: what [`crate::cli`] gave, checked once and then trusted.
//!
//! Invariants: every path is absolute, capacities name known maps, and nothing else in the agent
//! reads flags or the environment.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use thiserror::Error;
use weft_abi::{ABI_VERSION, maps};

use crate::cli::{AttachMode, RunArgs};

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
    /// This node's underlay address, if given.
    pub node_address: Option<Ipv4Addr>,
    /// How long one request of a watch lasts, in seconds.
    pub watch_timeout: u32,
    /// How programs are attached.
    pub attach: AttachMode,
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
    /// The node's address is not of a family that the underlay supports.
    #[error("--node-address {0}: give an IPv4 address of this node")]
    NodeAddress(IpAddr),
    /// A capacity is not `name=entries` with a known map and a number above 0.
    #[error("--map-capacity {0:?}: give <map>=<entries>, with a map of \
        {known}", known = maps::PINNED.join(", "))]
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
        let node_address = match args.node_address {
            None => None,
            Some(IpAddr::V4(address)) if !address.is_unspecified() => Some(address),
            Some(other) => return Err(ConfigError::NodeAddress(other)),
        };
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
            node_address,
            watch_timeout: args.watch_timeout,
            attach: args.attach,
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

fn is_object_name(name: &str) -> bool {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    (1..=253).contains(&name.len()) && name.bytes().all(ok)
}

fn parse_capacity(text: &str) -> Option<(&'static str, u32)> {
    let (name, entries) = text.split_once('=')?;
    let name = maps::PINNED
        .iter()
        .copied()
        .find(|known| *known == name.trim())?;
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
        assert_eq!(config.map_dir(), Path::new("/sys/fs/bpf/weft/v2"));
        assert_eq!(config.cni_socket(), Path::new("/run/weft/cni.sock"));
        assert_eq!(
            config.cni_queue(),
            Path::new(weft_cni::config::DEFAULT_QUEUE_DIR)
        );
        assert_eq!(config.install, Install::default());
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
        assert!(matches!(
            config(&["--node-address", "::1"]),
            Err(ConfigError::NodeAddress(_))
        ));
        assert!(matches!(
            config(&["--state-dir", "here"]),
            Err(ConfigError::RelativePath {
                flag: "--state-dir",
                ..
            })
        ));
        for bad in ["flows4", "flows4=0", "flows4=x", "other=5", "=5"] {
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
