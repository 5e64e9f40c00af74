//! The command line, as typed. [`crate::config`] turns it into a validated configuration.
//!
//! One binary is both the node agent (`run`) and the operator's tool: the other commands ask the
//! running agent over its status socket.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::health::ServerArgs;

/// The Weft node agent and its operator's tool.
#[derive(Debug, Parser)]
#[command(name = "weft-agent", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node agent.
    Run(Box<RunArgs>),
    /// Show the agent's health: watches, map fill, last apply, warnings.
    Status(QueryArgs),
    /// Show the pods of this node.
    Endpoints(QueryArgs),
    /// Show service frontends and their backends.
    Services(QueryArgs),
    /// Show the policy set of each endpoint, and its rules.
    Policy(QueryArgs),
    /// Show drop counters and the last dropped packets.
    Drops(QueryArgs),
    /// Remove everything that Weft made on this node. No agent may be running.
    Cleanup(CleanupArgs),
}

/// Flags of `cleanup`: where `run` was told to put things.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Mount point of the BPF file system.
    #[arg(long, env = "WEFT_BPF_ROOT", default_value = "/sys/fs/bpf")]
    pub bpf_root: PathBuf,
    /// Directory of what survived reboots.
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "/var/lib/weft")]
    pub state_dir: PathBuf,
    /// Directory of the sockets.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
    /// Where the plugin was installed.
    #[arg(long, env = "WEFT_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// Where the conflist was installed.
    #[arg(long, env = "WEFT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Only say what would be removed.
    #[arg(long)]
    pub dry_run: bool,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Name of this node's Node object.
    #[arg(long, env = "WEFT_NODE_NAME")]
    pub node_name: String,
    /// Kubeconfig of the Kubernetes API; without it, the service account of the agent's own pod.
    #[arg(long, env = "WEFT_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Mount point of the BPF file system that keeps maps and links.
    #[arg(long, env = "WEFT_BPF_ROOT", default_value = "/sys/fs/bpf")]
    pub bpf_root: PathBuf,
    /// Directory of what must survive a reboot: addresses, endpoints, queued deletions.
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "/var/lib/weft")]
    pub state_dir: PathBuf,
    /// Directory of the sockets.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
    /// Where container runtimes look for CNI plugins; the plugin is installed there.
    #[arg(long, env = "WEFT_CNI_BIN_DIR", requires = "cni_binary")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Where container runtimes look for CNI configurations; the conflist is installed there.
    #[arg(long, env = "WEFT_CNI_CONF_DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// The plugin binary to install.
    #[arg(long, env = "WEFT_CNI_BINARY")]
    pub cni_binary: Option<PathBuf>,
    /// What to log, as a tracing filter: `info`, `weft_agent=debug`, ...
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log: String,
    /// MTU of pod interfaces; by default what every uplink takes, less the overlay's 50 bytes (70
    /// over IPv6).
    #[arg(long, env = "WEFT_MTU")]
    pub mtu: Option<u32>,
    /// How packets get to the pods of other nodes.
    #[arg(long, env = "WEFT_ROUTING", value_enum, default_value_t = RoutingMode::Vxlan)]
    pub routing: RoutingMode,
    /// An interface by which packets leave the node; may be repeated. By default those that carry the
    /// node's address, a default route, or a route to another node.
    #[arg(long = "uplink", env = "WEFT_UPLINKS", value_delimiter = ',')]
    pub uplinks: Vec<String>,
    /// Families whose packets out of the cluster leave with the node's address, or `none`.
    #[arg(long, env = "WEFT_MASQUERADE", value_enum, value_delimiter = ',',
        default_values_t = [MasqueradeFamily::Ipv4, MasqueradeFamily::Ipv6])]
    pub masquerade: Vec<MasqueradeFamily>,
    /// A network that pods talk to with their own addresses although it is outside; may be repeated.
    #[arg(
        long = "non-masquerade-cidr",
        env = "WEFT_NON_MASQUERADE_CIDRS",
        value_delimiter = ','
    )]
    pub non_masquerade: Vec<IpNet>,
    /// How a backend is chosen for a new connection, of services without the annotation
    /// `weft.dev/load-balancing`.
    #[arg(long, env = "WEFT_LOAD_BALANCING", value_enum,
        default_value_t = LoadBalancingMode::Random)]
    pub load_balancing: LoadBalancingMode,
    /// How a backend on another node answers clients from outside, of services without the annotation
    /// `weft.dev/load-balancing-return`: through this node, whose address it sees, or by itself. The
    /// latter needs the overlay, and a network that lets nodes send with a service's address.
    #[arg(long, env = "WEFT_LOAD_BALANCING_RETURN", value_enum, default_value_t = ReturnMode::Snat)]
    pub load_balancing_return: ReturnMode,
    /// Where this node has the NodePorts: `all` of its addresses, the `primary` ones of its Node object,
    /// or those in some networks.
    #[arg(
        long,
        env = "WEFT_NODEPORT_ADDRESSES",
        value_delimiter = ',',
        default_value = "all"
    )]
    pub nodeport_addresses: Vec<String>,
    /// The source ports of masqueraded packets. What of them the node's own sockets would pick by
    /// themselves is reserved (net.ipv4.ip_local_reserved_ports).
    #[arg(
        long,
        env = "WEFT_MASQUERADE_PORTS",
        value_name = "FIRST-LAST",
        default_value = "1024-29999"
    )]
    pub masquerade_ports: String,
    /// How limits on what pods send are kept.
    #[arg(long, env = "WEFT_BANDWIDTH", value_enum, default_value_t = BandwidthMode::Auto)]
    pub bandwidth: BandwidthMode,
    /// The cgroup whose processes reach services and host ports by their sockets; by default the
    /// mount point of the cgroup2 file system.
    #[arg(long, env = "WEFT_CGROUP_ROOT")]
    pub cgroup_root: Option<PathBuf>,
    /// Log the datapath's debug traces, one line per packet and step. For debugging only.
    #[arg(long, env = "WEFT_TRACE")]
    pub trace: bool,
    /// This node's underlay address; may be given once per family. By default the InternalIPs of its
    /// Node object.
    #[arg(
        long = "node-address",
        env = "WEFT_NODE_ADDRESS",
        value_delimiter = ','
    )]
    pub node_addresses: Vec<IpAddr>,
    /// Seconds after which a watch is asked for again, so that a connection that died in silence is
    /// found out: until then the node does not follow the cluster.
    #[arg(long, env = "WEFT_WATCH_TIMEOUT", default_value_t = 60,
        value_parser = clap::value_parser!(u32).range(1..=240))]
    pub watch_timeout: u32,
    /// How programs are attached to interfaces.
    #[arg(long, env = "WEFT_ATTACH", value_enum, default_value_t = AttachMode::Auto)]
    pub attach: AttachMode,
    /// Capacity of a map, `name=entries`; what the map holds stays.
    #[arg(
        long = "map-capacity",
        env = "WEFT_MAP_CAPACITY",
        value_delimiter = ','
    )]
    pub map_capacity: Vec<String>,
    /// Where health and metrics are served.
    #[command(flatten)]
    pub servers: ServerArgs,
}

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachMode {
    /// tcx where the kernel has it, else clsact.
    Auto,
    /// BPF links (kernel 6.6 and newer).
    Tcx,
    /// Classifiers on a clsact qdisc.
    Clsact,
}

/// How packets get to the pods of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoutingMode {
    /// Through a VXLAN overlay.
    Vxlan,
    /// By routes: this agent's to nodes on the same link, the underlay's to all others.
    Native,
}

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoadBalancingMode {
    /// At random.
    Random,
    /// By the client's address and port, the same on every node; few clients move when a backend goes.
    Maglev,
}

/// How a backend on another node answers clients from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReturnMode {
    /// Through the node that the client talks to.
    Snat,
    /// By itself.
    Direct,
}

/// What is masqueraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MasqueradeFamily {
    /// IPv4 packets.
    Ipv4,
    /// IPv6 packets.
    Ipv6,
    /// Nothing.
    None,
}

/// How limits on what pods send are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BandwidthMode {
    /// By departure times where every uplink's queueing discipline is fq, else as `bucket`.
    Auto,
    /// By token buckets in the datapath, which drop what is too much.
    Bucket,
}

/// Flags of the commands that ask a running agent.
#[derive(Clone, Debug, Args)]
pub struct QueryArgs {
    /// Directory of the sockets.
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
    /// How to print the answer.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
