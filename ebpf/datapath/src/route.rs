//! Ways that the node's own routes know: which uplink leads somewhere, and what address and port a
//! pod is masqueraded with there.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_TCP_LISTEN, bpf_fib_lookup, bpf_sock_tuple},
    helpers::{
        bpf_fib_lookup as fib_lookup, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
};
use weft_abi::flow::Tuple;

use crate::{
    family::Family,
    packet::protocol,
    skb::{self, Skb},
};

/// Results of the helper (`BPF_FIB_LKUP_RET_`): a neighbour was found, is not resolved yet (the
/// kernel does that when the packet goes there), or the packet is too big for the interface.
const SUCCESS: i64 = 0;
const NO_NEIGHBOUR: i64 = 7;
const TOO_BIG: i64 = 8;

/// `BPF_F_CURRENT_NETNS`: the namespace of the interface at which the program runs.
const THIS_NODE: u64 = u64::MAX;

/// The interface by which the node would forward a packet; `None` where it is not to be forwarded:
/// to the node itself, or nowhere. `params` is scratch space.
#[inline(always)]
pub fn interface<F: Family>(
    skb: &Skb,
    tuple: &Tuple<F::Addr>,
    protocol: u8,
    params: &mut bpf_fib_lookup,
) -> Option<u32> {
    *params = skb::zeroed();
    F::fib_addresses(params, tuple.source, tuple.destination);
    params.l4_protocol = protocol;
    params.sport = tuple.source_port.to_be();
    params.dport = tuple.destination_port.to_be();
    params.ifindex = skb.ifindex();
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the pointer and size describe `params`; the helper writes only there.
    let result = unsafe { fib_lookup(skb.raw().cast(), &raw mut *params, size, 0) };
    (result == SUCCESS || result == NO_NEIGHBOUR || result == TOO_BIG).then_some(params.ifindex)
}

/// Whether a socket of the node would take a packet that answers `tuple`: then its source port is
/// no port to masquerade with, and what comes to it is the node's. `socket` is scratch space.
#[inline(always)]
pub fn held_by_socket<F: Family>(
    skb: &Skb,
    tuple: &Tuple<F::Addr>,
    protocol: u8,
    socket: &mut bpf_sock_tuple,
) -> bool {
    found::<F>(skb, tuple, protocol, socket) != NONE
}

/// Whether a socket of the node is connected by `tuple`: what answers that is the socket's, whatever
/// else its port is good for. `socket` is scratch space.
#[inline(always)]
pub fn connected<F: Family>(
    skb: &Skb,
    tuple: &Tuple<F::Addr>,
    protocol: u8,
    socket: &mut bpf_sock_tuple,
) -> bool {
    found::<F>(skb, tuple, protocol, socket) == CONNECTED
}

/// What [`found`] found.
const NONE: u8 = 0;
const UNCONNECTED: u8 = 1;
const CONNECTED: u8 = 2;

/// What kind of socket would take a packet that answers `tuple`.
#[inline(always)]
fn found<F: Family>(
    skb: &Skb,
    tuple: &Tuple<F::Addr>,
    protocol: u8,
    socket: &mut bpf_sock_tuple,
) -> u8 {
    let size = F::answering_socket(tuple, socket);
    let context = skb.ctx().as_ptr();
    // The two know different types of sockets, which no instruction may have both of: so they are told
    // by different fields whether they are connected.
    let (found, connected) = match protocol {
        protocol::TCP => {
            // The one that also finds a socket that waits out its last connection.
            // SAFETY: the pointer and size describe `socket`; the reference is released below.
            let found =
                unsafe { bpf_skc_lookup_tcp(context, &raw mut *socket, size, THIS_NODE, 0) };
            if found.is_null() {
                return NONE;
            }
            // SAFETY: a socket that was just looked up.
            (found, unsafe { (*found).state } != BPF_TCP_LISTEN)
        }
        protocol::UDP => {
            // SAFETY: as above.
            let found = unsafe { bpf_sk_lookup_udp(context, &raw mut *socket, size, THIS_NODE, 0) };
            if found.is_null() {
                return NONE;
            }
            // SAFETY: as above.
            (found, unsafe { (*found).dst_port } != 0)
        }
        _ => return NONE,
    };
    // SAFETY: a socket that was just looked up, and is not used any more.
    let _ = unsafe { bpf_sk_release(found.cast()) };
    if connected { CONNECTED } else { UNCONNECTED }
}
