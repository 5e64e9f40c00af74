//! What Cilium costs: measured elsewhere, on the kind of machine Weft is developed on.
//!
//! Cilium 1.17-dev with kube-proxy replacement, BPF host routing and BPF masquerade, VXLAN between
//! nodes that are network namespaces, kernel 6.18, two cores; medians of twelve alternating runs.
//! Absolute rates differ from machine to machine, so only ratios to bare namespaces and nanoseconds
//! of BPF are kept. "Bare" there were two veth hops through a bridge.

use serde::Serialize;

use super::cluster::Path;
use super::load::Workload;

/// What is said beside every reference figure.
pub const NOTE: &str = "Cilium's figures were measured elsewhere (1.17-dev, VXLAN, same kind of \
                        machine): compare ratios and BPF ns, not rates";

/// Cilium's cost of one path and workload.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reference {
    /// Operations per second, relative to bare namespaces.
    pub ratio: f64,
    /// What the BPF programs cost per operation.
    pub bpf: Option<BpfCost>,
}

/// Time in BPF programs per operation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BpfCost {
    /// Nanoseconds, the smallest that was measured.
    pub least: f64,
    /// Nanoseconds, the largest.
    pub most: f64,
    /// Program runs; not known for UDP.
    pub runs: Option<f64>,
}

/// Cilium's figures, where there are any.
pub fn cilium(path: Path, workload: Workload) -> Option<Reference> {
    use Path::{Other, Same, ServiceOther, ServiceSame};
    use Workload::{ConnectRequestClose, Datagrams, RequestResponse, Stream};
    let bpf = |least, most, runs| Some(BpfCost { least, most, runs });
    let (ratio, bpf) = match (path, workload) {
        (Same, RequestResponse) => (1.24, bpf(1_780.0, 1_900.0, Some(2.0))),
        (Same, ConnectRequestClose) => (1.24, bpf(13_500.0, 13_500.0, Some(11.0))),
        (Same, Datagrams) => (1.54, bpf(920.0, 920.0, None)),
        (Same, Stream) => (1.06, None),
        (Other, RequestResponse) => (0.63, bpf(4_900.0, 4_900.0, Some(10.0))),
        (Other, ConnectRequestClose) => (0.55, bpf(28_000.0, 31_000.0, Some(51.0))),
        (Other, Datagrams) => (0.71, bpf(2_000.0, 2_300.0, None)),
        (Other, Stream) => (0.69, None),
        (ServiceOther, RequestResponse) => (0.62, bpf(4_600.0, 4_600.0, Some(10.0))),
        (ServiceOther, ConnectRequestClose) => (0.54, bpf(31_000.0, 31_000.0, Some(51.0))),
        (ServiceOther, Datagrams) => (0.58, bpf(2_230.0, 2_230.0, None)),
        (ServiceOther, Stream) => (0.70, None),
        (ServiceSame, _) => return None,
    };
    Some(Reference { ratio, bpf })
}
