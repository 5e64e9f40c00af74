//! Services for the node's own processes: a service's address becomes a backend's in the socket.
//!
//! What a process of the node sends to its own addresses (a hostPort on 127.0.0.1, a NodePort) crosses
//! no interface of ours, and what it sends to a ClusterIP would need its source chosen again. So the
//! translation happens before there is a packet, in the system call:
//!
//! ```text
//!   connect, sendmsg      service ──► backend       a backend is chosen, and remembered
//!   recvmsg, getpeername  backend ──► service       what the process asked for is shown to it
//! ```
//!
//! The programs hang at the root cgroup and see every socket of the machine. They leave alone whatever
//! is in another network namespace than the agent: pods are balanced per packet.
//!
//! What the kernel then does with the socket is as if the process had asked for the backend:
//!
//! - It chooses the source afterwards, by its route to the backend. A process that bound its source
//!   keeps it. One that bound it to a loopback address reaches backends on this node's own addresses
//!   only, because nothing with that source leaves by an interface; any other backend is as none.
//! - A connected socket keeps its backend; a UDP socket without `connect` keeps it while the backend
//!   serves, and then gets another with the next datagram.
//! - The kernel asks no program about SCTP; and about multipath TCP it asks for a socket of its own
//!   below the process's, so `getpeername` shows the backend there.
//!
//! `sockets4` and `sockets6` are LRU maps, written by these programs only. Losing an entry is mild: the
//! process is shown the backend's address, and its datagrams may go to another backend. IPv4-mapped
//! addresses of IPv6 sockets are IPv4 in every respect.

use core::ptr;

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, bpf_sock_addr},
    btf_maps::LruHashMap,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    macros::btf_map,
    programs::SockAddrContext,
};
use weft_abi::{
    addr::{Addr4, Addr6},
    drop::DropReason,
    ipcache::{KIND_HOST, KIND_SERVICE},
    maps,
    service::{FRONTEND_REFUSES_NODE, Frontend, SCOPE_INTERNAL},
    socket::{SOCKET_BACK, SOCKET_FRONT, SocketKey, SocketPeer},
};

use crate::{
    addresses, clock, config, drops,
    family::{Family, V4, V6},
    packet::protocol,
    services::{self, Client},
};

/// Set at load to 1 where these programs may choose the error of a refused call
/// (`bpf_set_retval`, from 6.1 on; commit e7215f574079 lists the calls).
#[unsafe(no_mangle)]
static HAVE_SET_RETVAL: Global<u8> = Global::new(0);

/// `connect`.
pub const CONNECT: u8 = 0;
/// `sendto`, `sendmsg` with an address.
pub const SENDMSG: u8 = 1;
/// `recvfrom`, `recvmsg`, which tell the sender.
pub const RECVMSG: u8 = 2;
/// `getpeername`.
pub const GETPEERNAME: u8 = 3;

/// What the kernel shall do with the call: refuse it, or go on with the address in the context.
const REFUSE: i32 = 0;
const GO_ON: i32 = 1;

/// `ECONNREFUSED`, what a host without a listener answers; the same number on every architecture of
/// ours, as the next ones.
const ECONNREFUSED: i32 = 111;
/// `EHOSTUNREACH`, where packets would be dropped without an answer.
const EHOSTUNREACH: i32 = 113;
/// `EPERM`, where the service does not let the node in.
const EPERM: i32 = 1;

/// What the sockets of a family remember. Preallocated, as LRU maps are.
type SocketTable<A> = LruHashMap<SocketKey<A>, SocketPeer<A>, { maps::SOCKETS }>;

#[btf_map(name = "sockets4")]
static SOCKETS4: SocketTable<Addr4> = SocketTable::new();
#[btf_map(name = "sockets6")]
static SOCKETS6: SocketTable<Addr6> = SocketTable::new();

/// A family, as sockets see it.
trait Sockets: Family {
    /// The loopback address.
    const LOOPBACK: Self::Addr;
    /// Whether it is a loopback address.
    fn is_loopback(address: Self::Addr) -> bool;
    /// The source that the process bound the socket to; zero if it did not.
    fn source(call: &Call) -> Self::Addr;
    /// What sockets remember.
    fn sockets() -> &'static SocketTable<Self::Addr>;
}

impl Sockets for V4 {
    const LOOPBACK: Addr4 = Addr4::new([127, 0, 0, 1]);

    #[inline(always)]
    fn is_loopback(address: Addr4) -> bool {
        address.octets[0] == 127
    }

    #[inline(always)]
    fn source(call: &Call) -> Addr4 {
        call.source4()
    }

    #[inline(always)]
    fn sockets() -> &'static SocketTable<Addr4> {
        &SOCKETS4
    }
}

impl Sockets for V6 {
    const LOOPBACK: Addr6 = Addr6::new([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    #[inline(always)]
    fn is_loopback(address: Addr6) -> bool {
        address == Self::LOOPBACK
    }

    #[inline(always)]
    fn source(call: &Call) -> Addr6 {
        call.source6()
    }

    #[inline(always)]
    fn sockets() -> &'static SocketTable<Addr6> {
        &SOCKETS6
    }
}

/// An address and a port, host order.
#[derive(Clone, Copy, PartialEq)]
struct End<A> {
    address: A,
    port: u16,
}

/// What becomes of a call.
#[derive(Clone, Copy)]
enum Answer<A> {
    /// Nothing: it is not about a service.
    Keep,
    /// It goes to, or shows, this end instead.
    Replace(End<A>),
    /// Nothing leads there; the call fails with this error.
    Refuse(i32),
}

/// The program of a call with an IPv4 address.
#[inline(always)]
pub fn program4<const CALL: u8>(call: &Call) -> i32 {
    if !call.is_of_this_node() {
        return GO_ON;
    }
    let answer = answer::<V4, CALL>(call, call.address4());
    conclude::<V4, CALL>(call, answer, |address| call.set_address4(address))
}

/// The program of a call with an IPv6 address.
#[inline(always)]
pub fn program6<const CALL: u8>(call: &Call) -> i32 {
    if !call.is_of_this_node() {
        return GO_ON;
    }
    let address = call.address6();
    match address.as_mapped() {
        // Datagrams to such an address come to the IPv4 program (`udpv6_sendmsg`).
        Some(v4) if CALL != SENDMSG => {
            let answer = answer::<V4, CALL>(call, v4);
            conclude::<V4, CALL>(call, answer, |v4| call.set_address6(Addr6::mapped(v4)))
        }
        _ => {
            let answer = answer::<V6, CALL>(call, address);
            conclude::<V6, CALL>(call, answer, |address| call.set_address6(address))
        }
    }
}

#[inline(always)]
fn answer<F: Sockets, const CALL: u8>(call: &Call, address: F::Addr) -> Answer<F::Addr> {
    let Some(protocol) = call.protocol() else {
        return Answer::Keep;
    };
    let end = End {
        address,
        port: call.port(),
    };
    match CALL {
        CONNECT => connect::<F>(call, destination::<F>(end), protocol),
        SENDMSG => send::<F>(call, destination::<F>(end), protocol),
        _ => show::<F>(call, end, protocol),
    }
}

/// The destination that the kernel would make of it: "this host" (zero) is the loopback address.
#[inline(always)]
fn destination<F: Sockets>(mut end: End<F::Addr>) -> End<F::Addr> {
    if end.address == F::ZERO {
        end.address = F::LOOPBACK;
    }
    end
}

/// A connection gets a backend for its life.
#[inline(always)]
fn connect<F: Sockets>(call: &Call, to: End<F::Addr>, protocol: u8) -> Answer<F::Addr> {
    let cookie = call.socket_cookie();
    let Some(frontend) = services::frontend::<F>(to.address, to.port, protocol, SCOPE_INTERNAL)
    else {
        forget::<F>(&key(cookie, to, protocol, SOCKET_BACK));
        return no_service::<F>(to.address);
    };
    let (backend, number) = match choose::<F>(call, frontend) {
        Ok(chosen) => chosen,
        Err(error) => return Answer::Refuse(error),
    };
    let seen = peer(to, frontend.service, number);
    remember::<F>(&key(cookie, backend, protocol, SOCKET_BACK), &seen);
    Answer::Replace(backend)
}

/// A datagram goes where the socket's last one to this service went, while that backend serves: what
/// a process sends in several datagrams is often meant for one server.
#[inline(always)]
fn send<F: Sockets>(call: &Call, to: End<F::Addr>, protocol: u8) -> Answer<F::Addr> {
    let Some(frontend) = services::frontend::<F>(to.address, to.port, protocol, SCOPE_INTERNAL)
    else {
        return no_service::<F>(to.address);
    };
    let cookie = call.socket_cookie();
    let front = key(cookie, to, protocol, SOCKET_FRONT);
    let (backend, number) = match last::<F>(&front, frontend.service) {
        Some(last) => last,
        None => {
            let (backend, number) = match choose::<F>(call, frontend) {
                Ok(chosen) => chosen,
                Err(error) => return Answer::Refuse(error),
            };
            remember::<F>(&front, &peer(backend, frontend.service, number));
            (backend, number)
        }
    };
    // Looked at each time, so that the LRU does not take it from a socket that still sends.
    let back = key(cookie, backend, protocol, SOCKET_BACK);
    let seen = peer(to, frontend.service, number);
    // SAFETY: read at once; an entry that is reused meanwhile is plain data of another socket.
    if unsafe { F::sockets().get(back) } != Some(&seen) {
        remember::<F>(&back, &seen);
    }
    Answer::Replace(backend)
}

/// Whatever has this address and port, it is no service's; but the address may be for services only.
#[inline(always)]
fn no_service<F: Sockets>(address: F::Addr) -> Answer<F::Addr> {
    if services::is_allocated::<F>(address, SCOPE_INTERNAL) {
        drops::refused(DropReason::NoServicePort);
        return Answer::Refuse(ECONNREFUSED);
    }
    match addresses::ipcache::<F>(address) {
        Some(entry) if entry.kind == KIND_SERVICE => {
            drops::refused(DropReason::UnallocatedAddress);
            Answer::Refuse(EHOSTUNREACH)
        }
        _ => Answer::Keep,
    }
}

/// A backend that the socket can reach, and its number; or the error that says why there is none.
#[inline(always)]
fn choose<F: Sockets>(call: &Call, frontend: &Frontend) -> Result<(End<F::Addr>, u32), i32> {
    if frontend.flags & FRONTEND_REFUSES_NODE != 0 {
        drops::refused(DropReason::SourceRange);
        return Err(EPERM);
    }
    let client = Client {
        address: F::ZERO,
        hash: None,
        now: clock::now(),
        ticks_per_second: config::get().map_or(1, |config| config.ticks_per_second),
    };
    let choice = match services::choose::<F>(frontend, &client) {
        Ok(choice) => choice,
        Err(drop) => {
            drops::refused(drop.reason);
            return Err(if drop.reason == DropReason::NoBackend {
                ECONNREFUSED
            } else {
                EHOSTUNREACH
            });
        }
    };
    if F::is_loopback(F::source(call))
        && addresses::ipcache::<F>(choice.address).is_none_or(|entry| entry.kind != KIND_HOST)
    {
        return Err(ECONNREFUSED);
    }
    let end = End {
        address: choice.address,
        port: choice.port,
    };
    Ok((end, choice.backend))
}

/// Where the socket's last datagram to this service went, and the backend's number, if that still
/// serves.
#[inline(always)]
fn last<F: Sockets>(front: &SocketKey<F::Addr>, service: u32) -> Option<(End<F::Addr>, u32)> {
    // SAFETY: as in `send`.
    let last = unsafe { F::sockets().get(front) }?;
    let end = End {
        address: last.address,
        port: last.port,
    };
    let backend = services::backend::<F>(last.backend)?;
    let serves = last.service == service
        && backend.service == service
        && backend.address == end.address
        && backend.port == end.port;
    if serves {
        Some((end, last.backend))
    } else {
        None
    }
}

/// A backend is shown to the process as the service that it asked for.
#[inline(always)]
fn show<F: Sockets>(call: &Call, backend: End<F::Addr>, protocol: u8) -> Answer<F::Addr> {
    let key = key(call.socket_cookie(), backend, protocol, SOCKET_BACK);
    // SAFETY: as in `send`.
    match unsafe { F::sockets().get(key) } {
        Some(seen) => Answer::Replace(End {
            address: seen.address,
            port: seen.port,
        }),
        None => Answer::Keep,
    }
}

#[inline(always)]
fn key<A>(cookie: u64, end: End<A>, protocol: u8, kind: u8) -> SocketKey<A> {
    SocketKey {
        cookie: [cookie as u32, (cookie >> 32) as u32],
        address: end.address,
        port: end.port,
        protocol,
        kind,
    }
}

#[inline(always)]
fn peer<A>(end: End<A>, service: u32, backend: u32) -> SocketPeer<A> {
    SocketPeer {
        address: end.address,
        service,
        backend,
        port: end.port,
        reserved: 0,
    }
}

/// Remembers; a full LRU map makes room, and a failure is as mild as a lost entry.
#[inline(always)]
fn remember<F: Sockets>(key: &SocketKey<F::Addr>, peer: &SocketPeer<F::Addr>) {
    let _ = F::sockets().insert(key, peer, u64::from(BPF_ANY));
}

/// Forgets what the same socket once was told about this end. It is looked for first, because a
/// removal takes a lock even where there is nothing.
#[inline(always)]
fn forget<F: Sockets>(key: &SocketKey<F::Addr>) {
    if F::sockets().get_ptr(key).is_some() {
        let _ = F::sockets().remove(key);
    }
}

/// Writes the answer into the call.
///
/// A service without a backend refuses as a host without a listener does: clients take that for
/// passing, and try again or elsewhere, where they take "operation not permitted" for final. Kernels
/// before 6.1 know only the latter; there a TCP connection is led to where the kernel itself refuses
/// it: nothing ever listens on port 0.
#[inline(always)]
fn conclude<F: Sockets, const CALL: u8>(
    call: &Call,
    answer: Answer<F::Addr>,
    set_address: impl Fn(F::Addr),
) -> i32 {
    match answer {
        Answer::Keep => GO_ON,
        Answer::Replace(end) => {
            set_address(end.address);
            call.set_port(end.port);
            GO_ON
        }
        // The kernel lets these calls only go on; they look for no backend.
        Answer::Refuse(_) if CALL == RECVMSG || CALL == GETPEERNAME => GO_ON,
        Answer::Refuse(error) => {
            if HAVE_SET_RETVAL.load() != 0 {
                // SAFETY: the helper takes a number.
                let _ = unsafe { bpf_set_retval(-error) };
                return REFUSE;
            }
            if error == ECONNREFUSED && CALL == CONNECT && call.protocol() == Some(protocol::TCP) {
                set_address(F::LOOPBACK);
                call.set_port(0);
                return GO_ON;
            }
            REFUSE
        }
    }
}

/// A system call of a process, as its program gets it: the one place that touches the context.
///
/// The kernel takes accesses of whole fields only, so each is volatile: the compiler must not split,
/// join or narrow them.
pub struct Call {
    ctx: SockAddrContext,
}

impl Call {
    /// Wraps the program's context.
    #[inline(always)]
    pub fn new(ctx: SockAddrContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.ctx.sock_addr
    }

    /// Whether the socket is in the agent's network namespace.
    #[inline(always)]
    fn is_of_this_node(&self) -> bool {
        let Ok(config) = config::get() else {
            return false;
        };
        // SAFETY: the helper takes the program's context, or null for the first namespace.
        unsafe {
            let node = match config.netns_cookie {
                0 => bpf_get_netns_cookie(ptr::null_mut()),
                cookie => cookie,
            };
            bpf_get_netns_cookie(self.raw().cast()) == node
        }
    }

    /// The socket's cookie, which no other socket of this machine ever has.
    #[inline(always)]
    fn socket_cookie(&self) -> u64 {
        // SAFETY: the helper takes the program's context.
        unsafe { bpf_get_socket_cookie(self.raw().cast()) }
    }

    /// IP protocol number, if it is one.
    #[inline(always)]
    fn protocol(&self) -> Option<u8> {
        // SAFETY: the context is valid for the whole program, and every field that is read or written
        // here and below belongs to its type.
        let number = unsafe { ptr::read_volatile(&raw const (*self.raw()).protocol) };
        u8::try_from(number).ok()
    }

    /// The port, host order.
    #[inline(always)]
    fn port(&self) -> u16 {
        // SAFETY: as in `protocol`.
        let port = unsafe { ptr::read_volatile(&raw const (*self.raw()).user_port) };
        u16::from_be(port as u16)
    }

    #[inline(always)]
    fn set_port(&self, port: u16) {
        // SAFETY: as in `protocol`.
        unsafe { ptr::write_volatile(&raw mut (*self.raw()).user_port, u32::from(port.to_be())) }
    }

    #[inline(always)]
    fn address4(&self) -> Addr4 {
        // SAFETY: as in `protocol`.
        let address = unsafe { ptr::read_volatile(&raw const (*self.raw()).user_ip4) };
        Addr4::new(address.to_ne_bytes())
    }

    #[inline(always)]
    fn set_address4(&self, address: Addr4) {
        let address = u32::from_ne_bytes(address.octets);
        // SAFETY: as in `protocol`.
        unsafe { ptr::write_volatile(&raw mut (*self.raw()).user_ip4, address) }
    }

    /// The socket's own address.
    #[inline(always)]
    fn source4(&self) -> Addr4 {
        // SAFETY: as in `protocol`; the context names the call's socket, which is never null.
        let address = unsafe {
            let socket = ptr::read_volatile(&raw const (*self.raw()).__bindgen_anon_1.sk);
            ptr::read_volatile(&raw const (*socket).src_ip4)
        };
        Addr4::new(address.to_ne_bytes())
    }

    /// The socket's own address.
    #[inline(always)]
    fn source6(&self) -> Addr6 {
        // SAFETY: as in `source4`.
        let words = unsafe {
            let socket = ptr::read_volatile(&raw const (*self.raw()).__bindgen_anon_1.sk);
            [
                ptr::read_volatile(&raw const (*socket).src_ip6[0]),
                ptr::read_volatile(&raw const (*socket).src_ip6[1]),
                ptr::read_volatile(&raw const (*socket).src_ip6[2]),
                ptr::read_volatile(&raw const (*socket).src_ip6[3]),
            ]
        };
        octets(words)
    }

    #[inline(always)]
    fn address6(&self) -> Addr6 {
        // SAFETY: as in `protocol`.
        let words = unsafe {
            [
                ptr::read_volatile(&raw const (*self.raw()).user_ip6[0]),
                ptr::read_volatile(&raw const (*self.raw()).user_ip6[1]),
                ptr::read_volatile(&raw const (*self.raw()).user_ip6[2]),
                ptr::read_volatile(&raw const (*self.raw()).user_ip6[3]),
            ]
        };
        octets(words)
    }

    #[inline(always)]
    fn set_address6(&self, address: Addr6) {
        let words = words(address);
        // SAFETY: as in `protocol`.
        unsafe {
            ptr::write_volatile(&raw mut (*self.raw()).user_ip6[0], words[0]);
            ptr::write_volatile(&raw mut (*self.raw()).user_ip6[1], words[1]);
            ptr::write_volatile(&raw mut (*self.raw()).user_ip6[2], words[2]);
            ptr::write_volatile(&raw mut (*self.raw()).user_ip6[3], words[3]);
        }
    }
}

/// The address in these words, each of four octets in network order.
#[inline(always)]
fn octets(words: [u32; 4]) -> Addr6 {
    // SAFETY: four words are sixteen octets, and any octets are an address.
    Addr6::new(unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) })
}

/// The words of an address: the reverse of [`octets`].
#[inline(always)]
fn words(address: Addr6) -> [u32; 4] {
    // SAFETY: sixteen octets are four words.
    unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(address.octets) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_an_address() {
        let address = Addr6::new(core::array::from_fn(|index| index as u8 + 1));
        assert_eq!(octets(words(address)), address);
        assert_eq!(words(address)[0], u32::from_ne_bytes([1, 2, 3, 4]));
    }

    #[test]
    fn this_host_is_the_loopback_address() {
        let any = End {
            address: V4::ZERO,
            port: 80,
        };
        assert!(destination::<V4>(any).address == Addr4::new([127, 0, 0, 1]));
        let other = End {
            address: Addr4::new([10, 0, 0, 1]),
            port: 80,
        };
        assert!(destination::<V4>(other) == other);
    }

    #[test]
    fn a_key_holds_the_cookie_lower_half_first() {
        let end = End {
            address: Addr4::new([10, 0, 0, 1]),
            port: 80,
        };
        let key = key(0x1122_3344_5566_7788, end, 17, SOCKET_FRONT);
        assert_eq!(key.cookie, [0x5566_7788, 0x1122_3344]);
    }
}
