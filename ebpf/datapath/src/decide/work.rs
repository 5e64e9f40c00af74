//! What is being decided: the scratch space that the steps share.

use aya_ebpf::bindings::{bpf_fib_lookup, bpf_sock_tuple};
use weft_abi::{
    drop::DropReason,
    flow::{Flow, Tuple},
    service::Frontend,
};

use crate::{
    addresses::End, checksum::Difference, drops::Drop, family::Family, icmp::Quoted,
    packet::Packet, policy::Allowed,
};

/// What is being decided: the slow path's scratch space, one per CPU and family.
///
/// The kernel gives a program 512 bytes of stack, which this would fill. Programs of these hooks run
/// with softirqs off and never interrupt each other on a CPU, so one suffices.
#[repr(C)]
pub struct Work<A> {
    /// The packet.
    pub packet: Packet<A>,
    /// The hook: one of the `POINT_` constants.
    pub(super) point: u8,
    /// The entry being written.
    pub(super) flow: Flow<A>,
    /// Where the packet comes from.
    pub source: End,
    /// Where it goes.
    pub(super) destination: End,
    /// The flow as the other end sees it, in the direction of this packet.
    pub(super) real: Tuple<A>,
    /// The service port; 0 without a service.
    pub(super) service: u32,
    /// The backend.
    pub(super) backend: u32,
    /// As what it asks services for a backend: a `SCOPE_`, or [`ASKS_NONE`].
    pub(super) asks: u8,
    /// The frontend that it goes to, if it does.
    pub(super) frontend: Frontend,
    /// Where the packet goes in the end.
    pub(super) target: A,
    /// Whether another node forwards it for a client, whom the backend answers directly.
    pub(super) forwarded: bool,
    /// Whether this node forwards it as it is to the backend's node, which answers the client directly.
    pub(super) direct: bool,
    /// The rules that allow it.
    pub(super) allowed: Allowed,
    /// The epoch of the decision, read before anything that it rests on.
    pub(super) epoch: u32,
    /// The same of the services' backends.
    pub(super) backends_epoch: u16,
    /// Now, in kernel ticks.
    pub(super) now: u32,
    /// Whether the packet goes in the direction in which its flow was opened.
    pub(super) initiates: bool,
    /// Whether a process of this node opened the flow.
    pub(super) own_node: bool,
    /// What comes of it.
    pub(super) fate: Fate,
    /// Whether the flow is translated: its two ends see different tuples.
    pub(super) translated: bool,
    /// Whether the packet is a reply of a translated flow, to be rewritten to the client's view.
    pub(super) reply: bool,
    /// Whether the flow leaves the node with the node's address.
    pub(super) masquerade: bool,
    /// Whether the flow has its source port already, and keeps it if it can.
    pub(super) keeps_port: bool,
    /// Whether the other end's view is the flow's.
    pub(super) claimed: bool,
    /// How many backends were asked, or other ports tried.
    pub(super) tries: u32,
    /// Whether there are more backends to be asked.
    pub(super) searches: bool,
    /// Whether the packet's flow lives.
    pub(super) known: bool,
    /// The side of the packet's source under its key.
    pub(super) from: usize,
    /// The entry of the packet's flow as it was, if it lives.
    pub(super) before: Flow<A>,
    /// Whether an ICMP error quotes a packet that can be read.
    pub(super) quotes: bool,
    /// That packet.
    pub(super) quoted: Quoted<A>,
    /// What translating it changes of the error's checksum.
    pub(super) change: Difference,
    /// The addresses of an ICMP error when what it quotes was translated; what a backend that is asked
    /// would see; what an answer to the packet has.
    pub outer: Tuple<A>,
    /// The header of an answer to the packet.
    pub header: [u8; 20],
    /// What the kernel is asked about routes.
    pub(super) fib: bpf_fib_lookup,
    /// What the kernel is asked about sockets.
    pub(super) socket: bpf_sock_tuple,
}

/// [`Work::asks`]: it does not.
pub(super) const ASKS_NONE: u8 = u8::MAX;

/// What comes of a packet that may pass.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is of a flow: the decision is remembered.
    Flow,
    /// It is delivered if policy allows it, and nothing remembered.
    Once,
    /// It is an ICMP error about a flow, and delivered as it is.
    Error,
    /// It is an ICMP error about a flow, and what it quotes is translated.
    Quoting,
    /// It is none of Weft's business.
    NotOurs,
}

/// Where a packet is parsed into. Not onto the stack, whose contents the verifier knows so well that it
/// walks what follows once for every kind of packet.
#[inline(always)]
pub fn scratch_packet<F: Family>() -> Result<&'static mut Packet<F::Addr>, Drop> {
    scratch::<F>().map(|work| &mut work.packet)
}

/// This CPU's scratch space.
#[inline(always)]
pub fn scratch<F: Family>() -> Result<&'static mut Work<F::Addr>, Drop> {
    match F::scratch().get_ptr_mut(0) {
        // SAFETY: this CPU's own slot, nothing interrupts (see `Work`), and no step keeps it.
        Some(work) => Ok(unsafe { &mut *work }),
        None => Err(Drop::because(DropReason::NotConfigured)),
    }
}
