//! What differs between IPv4 and IPv6: the header, the maps, and nothing else.
//!
//! The pipeline is written once over [`Family`]. A family parses its header, rewrites its addresses,
//! and names its maps.

mod v4;
mod v6;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, bpf_fib_lookup, bpf_sock_tuple},
    btf_maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray},
};
use weft_abi::{
    addr::Addr6,
    config::{Config, Uplink},
    endpoint::Endpoint,
    flow::{Flow, FlowKey, Tuple},
    ipcache::IpcacheEntry,
    maps,
    service::{Backend, Frontend, FrontendKey},
};

pub use self::{v4::V4, v6::V6};
use crate::{
    checksum::Difference,
    decide::{Steps, Work},
    drops::Drop,
    fragments::FragmentTable,
    icmp::Quoted,
    packet::{Icmp, Packet},
    services::{AffinityTable, SourceRangeTable},
    skb::Skb,
};

/// Map flag of what only the agent writes: memory is taken per entry, not for the whole capacity.
pub const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// The flow table of a family. Preallocated: programs insert where memory cannot be waited for.
pub type FlowTable<A> = LruHashMap<FlowKey<A>, Flow<A>, { maps::FLOWS }>;
/// The local endpoints of a family.
pub type EndpointTable<A> = HashMap<A, Endpoint, { maps::ENDPOINTS }, ON_DEMAND>;
/// The ipcache of a family.
pub type Ipcache<A> = LpmTrie<A, IpcacheEntry, { maps::IPCACHE }>;
/// The service frontends of a family.
pub type FrontendTable<A> = HashMap<FrontendKey<A>, Frontend, { maps::FRONTENDS }, ON_DEMAND>;
/// The service backends of a family.
pub type BackendTable<A> = HashMap<u32, Backend<A>, { maps::BACKENDS }, ON_DEMAND>;

/// The scratch space of a family's slow path.
pub type Scratch<A> = PerCpuArray<Work<A>, 1>;

/// IPv4 or IPv6.
pub trait Family: Steps {
    /// An address.
    type Addr: Copy + PartialEq + 'static;
    /// The EtherType.
    const ETHER_TYPE: u16;
    /// No address.
    const ZERO: Self::Addr;
    /// Bytes of the IP header without options.
    const HEADER: usize;
    /// The type and code of "port unreachable".
    const PORT_UNREACHABLE: [u8; 2];
    /// Bits of an address.
    const BITS: u32;
    /// The number of its ICMP.
    const ICMP: u8;
    /// The source that a pod sees when it reaches itself through a service.
    const HAIRPIN: Self::Addr;
    /// The bit of [`weft_abi::config::Config::flags`] that says that pods are masqueraded.
    const MASQUERADE: u16;
    /// Whether the protocol is a part of what makes the fragments of a datagram one.
    const FRAGMENTS_BY_PROTOCOL: bool;

    /// Parses Ethernet, IP and transport headers.
    fn parse(skb: &Skb, packet: &mut Packet<Self::Addr>) -> Result<(), Drop>;
    /// Source, destination and protocol, whatever follows the IP header.
    fn ends(skb: &Skb) -> Option<(Self::Addr, Self::Addr, u8)>;
    /// What an ICMP message of this type is.
    fn icmp(kind: u8) -> Icmp;
    /// Reads the packet that an ICMP error quotes at `offset`; whether there is one.
    fn quoted(skb: &Skb, offset: usize, quoted: &mut Quoted<Self::Addr>) -> bool;
    /// Writes addresses into the quoted IP header at `offset`; `addresses` is their difference. Returns
    /// what that changes of the checksum of the message around it.
    fn requote(
        skb: &Skb,
        offset: usize,
        new: &Tuple<Self::Addr>,
        addresses: Difference,
    ) -> Result<Difference, Drop>;
    /// Whether the checksum of its ICMP covers a pseudo-header.
    const ICMP_PSEUDO_HEADER: bool;
    /// Whether (`a`, `a_port`) sorts before (`b`, `b_port`).
    fn sorts_first(a: Self::Addr, a_port: u16, b: Self::Addr, b_port: u16) -> bool;
    /// The address in the form of an event or a tunnel.
    fn widen(address: Self::Addr) -> Addr6;
    /// Whether no router forwards packets to this address: of many, of one link, of the own host.
    fn stays_on_link(address: Self::Addr) -> bool;
    /// What the checksum of a pseudo-header changes by when `old` becomes `new`.
    fn difference(old: Self::Addr, new: Self::Addr) -> Difference;
    /// Writes the addresses of `tuple` into the IP header and mends its checksum.
    fn write_addresses(skb: &Skb, tuple: &Tuple<Self::Addr>) -> Result<(), Drop>;
    /// Decrements the time to live; the caller has seen that it is above 1.
    fn decrement_ttl(skb: &Skb) -> Result<(), Drop>;
    /// The number of a flow that every node computes the same. It is of the client and the ports alone:
    /// a NodePort has another address at every node, and a service may have several.
    fn hash(tuple: &Tuple<Self::Addr>, protocol: u8) -> u32;
    /// The sum of an address's words, for a checksum from scratch.
    fn sum(address: Self::Addr) -> Difference;
    /// Writes a fresh IP header.
    fn write_header(
        skb: &Skb,
        tuple: &Tuple<Self::Addr>,
        protocol: u8,
        payload: u16,
    ) -> Result<(), Drop>;
    /// This node's own address.
    fn node_address(config: &Config) -> Option<Self::Addr>;
    /// What pods that leave by this uplink are masqueraded with.
    fn uplink_address(uplink: &Uplink) -> Option<Self::Addr>;
    /// Fills in who wants to go where.
    fn fib_addresses(params: &mut bpf_fib_lookup, source: Self::Addr, destination: Self::Addr);
    /// The tuple of what answers `tuple`, as a socket lookup takes it; returns its size in bytes.
    fn answering_socket(tuple: &Tuple<Self::Addr>, socket: &mut bpf_sock_tuple) -> u32;

    /// The flow table.
    fn flows() -> &'static FlowTable<Self::Addr>;
    /// The local endpoints.
    fn endpoints() -> &'static EndpointTable<Self::Addr>;
    /// The ipcache.
    fn ipcache() -> &'static Ipcache<Self::Addr>;
    /// The service frontends.
    fn frontends() -> &'static FrontendTable<Self::Addr>;
    /// The sources that services let in.
    fn source_ranges() -> &'static SourceRangeTable<Self::Addr>;
    /// The backends that clients had.
    fn affinity() -> &'static AffinityTable<Self::Addr>;
    /// The service backends.
    fn backends() -> &'static BackendTable<Self::Addr>;
    /// The datagrams whose first fragment passed.
    fn fragments() -> &'static FragmentTable<Self::Addr>;
    /// The scratch space of the slow path.
    fn scratch() -> &'static Scratch<Self::Addr>;
}

/// The maps of a family, and the methods that name them.
macro_rules! tables {
    ($addr:ty, $flows:literal, $endpoints:literal, $ipcache:literal, $frontends:literal,
     $backends:literal, $source_ranges:literal, $affinity:literal, $fragments:literal, $scratch:literal) => {
        use aya_ebpf::macros::btf_map;

        use $crate::{
            family::{BackendTable, EndpointTable, FlowTable, FrontendTable, Ipcache, Scratch},
            fragments::FragmentTable,
            services::{AffinityTable, SourceRangeTable},
        };

        #[btf_map(name = $flows)]
        static FLOWS: FlowTable<$addr> = FlowTable::new();
        #[btf_map(name = $endpoints)]
        static ENDPOINTS: EndpointTable<$addr> = EndpointTable::new();
        #[btf_map(name = $ipcache)]
        static IPCACHE: Ipcache<$addr> = Ipcache::new();
        #[btf_map(name = $frontends)]
        static FRONTENDS: FrontendTable<$addr> = FrontendTable::new();
        #[btf_map(name = $backends)]
        static BACKENDS: BackendTable<$addr> = BackendTable::new();
        #[btf_map(name = $source_ranges)]
        static SOURCE_RANGES: SourceRangeTable<$addr> = SourceRangeTable::new();
        #[btf_map(name = $affinity)]
        static AFFINITY: AffinityTable<$addr> = AffinityTable::new();
        #[btf_map(name = $fragments)]
        static FRAGMENTS: FragmentTable<$addr> = FragmentTable::new();
        #[btf_map(name = $scratch)]
        static SCRATCH: Scratch<$addr> = Scratch::new();
    };
}

/// The methods of [`Family`] that name the maps of [`tables`].
macro_rules! table_methods {
    () => {
        #[inline(always)]
        fn flows() -> &'static FlowTable<Self::Addr> {
            &FLOWS
        }

        #[inline(always)]
        fn endpoints() -> &'static EndpointTable<Self::Addr> {
            &ENDPOINTS
        }

        #[inline(always)]
        fn ipcache() -> &'static Ipcache<Self::Addr> {
            &IPCACHE
        }

        #[inline(always)]
        fn frontends() -> &'static FrontendTable<Self::Addr> {
            &FRONTENDS
        }

        #[inline(always)]
        fn source_ranges() -> &'static SourceRangeTable<Self::Addr> {
            &SOURCE_RANGES
        }

        #[inline(always)]
        fn affinity() -> &'static AffinityTable<Self::Addr> {
            &AFFINITY
        }

        #[inline(always)]
        fn backends() -> &'static BackendTable<Self::Addr> {
            &BACKENDS
        }

        #[inline(always)]
        fn fragments() -> &'static FragmentTable<Self::Addr> {
            &FRAGMENTS
        }

        #[inline(always)]
        fn scratch() -> &'static Scratch<Self::Addr> {
            &SCRATCH
        }
    };
}

use {table_methods, tables};
