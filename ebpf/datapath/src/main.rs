//! The programs that forward, balance and filter pod traffic.
//!
//! One ELF with all programs, the same for every pod. This file is their entry: it says what each
//! hook is and turns the pipeline's result into the kernel's action. The way of a packet reads from
//! top to bottom in [`pipeline`]; what happens to a packet of no known flow, in [`decide`].
//!
//! ```text
//!   pod ──► from_container ─┬─ same node ───► redirect_peer ──────────────► pod
//!                           ├─ other node ──► weft_vxlan: to_overlay ~ from_overlay ──► pod
//!                           └─ host, world ─► host stack
//!   host stack ─► to_container ─► pod        host stack ─► weft_vxlan: to_overlay ~ ...
//! ```
//!
//! Processes of the node itself reach services through the programs of [`sockets`], in their system
//! calls.
//!
//! The crate also builds for the host, where the parts without maps and helpers have unit tests.
#![cfg_attr(
    target_arch = "bpf",
    no_std,
    no_main,
    // For the one instruction that has no other name in Rust: see `bandwidth`.
    feature(asm_experimental_arch)
)]
#![cfg_attr(
    not(target_arch = "bpf"),
    expect(
        dead_code,
        reason = "on the host only unit tests call into the programs' parts"
    )
)]

mod addresses;
mod bandwidth;
mod checksum;
mod clock;
mod config;
mod decide;
mod deliver;
mod drops;
mod family;
mod flows;
mod fragments;
mod hash;
mod icmp;
mod lookups;
mod outcome;
mod packet;
mod pipeline;
mod policy;
mod reject;
mod resets;
mod rewrite;
mod route;
mod sctp;
mod services;
mod skb;
mod sockets;
mod tunnel;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{cgroup_sock_addr, classifier},
        programs::{SockAddrContext, TcContext},
    };
    use weft_abi::event::{
        POINT_FROM_CONTAINER, POINT_FROM_NETDEV, POINT_FROM_OVERLAY, POINT_TO_CONTAINER,
        POINT_TO_NETDEV, POINT_TO_OVERLAY,
    };

    use crate::{
        drops, pipeline, reject,
        skb::Skb,
        sockets::{self, CONNECT, Call, GETPEERNAME, RECVMSG, SENDMSG},
    };

    /// Everything a pod sends.
    #[classifier]
    pub fn from_container(ctx: TcContext) -> i32 {
        run::<POINT_FROM_CONTAINER>(&Skb::new(ctx))
    }

    /// What the host stack sends to a pod.
    #[classifier]
    pub fn to_container(ctx: TcContext) -> i32 {
        run::<POINT_TO_CONTAINER>(&Skb::new(ctx))
    }

    /// What arrives by the overlay.
    #[classifier]
    pub fn from_overlay(ctx: TcContext) -> i32 {
        run::<POINT_FROM_OVERLAY>(&Skb::new(ctx))
    }

    /// What leaves by the overlay.
    #[classifier]
    pub fn to_overlay(ctx: TcContext) -> i32 {
        run::<POINT_TO_OVERLAY>(&Skb::new(ctx))
    }

    /// What arrives at an uplink.
    #[classifier]
    pub fn from_netdev(ctx: TcContext) -> i32 {
        run::<POINT_FROM_NETDEV>(&Skb::new(ctx))
    }

    /// What leaves by an uplink.
    #[classifier]
    pub fn to_netdev(ctx: TcContext) -> i32 {
        run::<POINT_TO_NETDEV>(&Skb::new(ctx))
    }

    /// IPv4 `connect`.
    #[cgroup_sock_addr(connect4)]
    pub fn connect4(ctx: SockAddrContext) -> i32 {
        sockets::program4::<CONNECT>(&Call::new(ctx))
    }

    /// IPv6 `connect`.
    #[cgroup_sock_addr(connect6)]
    pub fn connect6(ctx: SockAddrContext) -> i32 {
        sockets::program6::<CONNECT>(&Call::new(ctx))
    }

    /// IPv4 `sendto` and `sendmsg` of UDP sockets.
    #[cgroup_sock_addr(sendmsg4)]
    pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
        sockets::program4::<SENDMSG>(&Call::new(ctx))
    }

    /// IPv6 `sendto` and `sendmsg` of UDP sockets.
    #[cgroup_sock_addr(sendmsg6)]
    pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
        sockets::program6::<SENDMSG>(&Call::new(ctx))
    }

    /// IPv4 `recvfrom` and `recvmsg` of UDP sockets.
    #[cgroup_sock_addr(recvmsg4)]
    pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
        sockets::program4::<RECVMSG>(&Call::new(ctx))
    }

    /// IPv6 `recvfrom` and `recvmsg` of UDP sockets.
    #[cgroup_sock_addr(recvmsg6)]
    pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
        sockets::program6::<RECVMSG>(&Call::new(ctx))
    }

    /// IPv4 `getpeername`.
    #[cgroup_sock_addr(getpeername4)]
    pub fn getpeername4(ctx: SockAddrContext) -> i32 {
        sockets::program4::<GETPEERNAME>(&Call::new(ctx))
    }

    /// IPv6 `getpeername`.
    #[cgroup_sock_addr(getpeername6)]
    pub fn getpeername6(ctx: SockAddrContext) -> i32 {
        sockets::program6::<GETPEERNAME>(&Call::new(ctx))
    }

    #[inline(always)]
    fn run<const POINT: u8>(skb: &Skb) -> i32 {
        match pipeline::packet::<POINT>(skb) {
            Ok(action) => action.code(),
            Err(drop) => {
                let action = drops::report::<POINT>(skb, drop);
                if reject::answers(drop.reason) {
                    return reject::answer(skb);
                }
                action
            }
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        // A panic cannot be: were one reachable, the verifier would refuse the endless loop.
        loop {}
    }

    /// The kernel lets only GPL-compatible programs use some helpers.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a BPF object: build it with `cargo xtask build-ebpf`");
}
