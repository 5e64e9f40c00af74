//! The packet as the kernel hands it over: the one place that touches packet memory.
//!
//! Invariant: a pointer from [`Skb::at`] is valid until the next helper that may move packet data
//! (pull, checksum replace, store, adjust room). The verifier enforces it; code here keeps it by
//! fetching pointers anew after each such helper.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::{bpf_csum_update, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    programs::TcContext,
};
use weft_abi::drop::DropReason;

use crate::{checksum::Difference, drops::Drop};

/// `PACKET_HOST`.
const PACKET_HOST: u32 = 0;

/// What the kernel shall do with the packet.
#[must_use]
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// On to where it was going: the host stack on ingress, the device on egress.
    Pass,
    /// As the last redirect helper said.
    Redirect,
    /// Nowhere: a copy of it is kept, and will come again.
    Keep,
}

impl Action {
    /// The tc action code: `TC_ACT_OK`, `TC_ACT_REDIRECT` or `TC_ACT_SHOT`.
    #[inline(always)]
    pub fn code(self) -> i32 {
        match self {
            Self::Pass => 0,
            Self::Redirect => 7,
            Self::Keep => 2,
        }
    }
}

/// A packet in a tc program.
pub struct Skb {
    ctx: TcContext,
}

impl Skb {
    /// Wraps the program's context.
    #[inline(always)]
    pub fn new(ctx: TcContext) -> Self {
        Self { ctx }
    }

    /// The raw context, for helpers.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }

    /// The aya context, for helpers that aya wraps and for trace logs.
    #[inline(always)]
    pub fn ctx(&self) -> &TcContext {
        &self.ctx
    }

    /// Total length in bytes, Ethernet header included.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.ctx.len()
    }

    /// Interface at which the program runs.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the whole program, and the field is readable in tc.
        unsafe { (*self.raw()).ifindex }
    }

    /// Interface through which the packet entered the node's stack; 0 if a local process sent it.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw()).ingress_ifindex }
    }

    /// Whether the frame was sent to this interface alone: not to another host, which the interface
    /// sees while it is promiscuous, nor to several.
    #[inline(always)]
    pub fn is_for_us(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw()).pkt_type == PACKET_HOST }
    }

    /// The EtherType, host order.
    #[inline(always)]
    pub fn ether_type(&self) -> u16 {
        // SAFETY: as in `ifindex`.
        let protocol = unsafe { (*self.raw()).protocol };
        u16::from_be(protocol as u16)
    }

    /// Whether the frame carries a VLAN tag, which the kernel keeps beside the packet.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw()).vlan_present != 0 }
    }

    /// Bytes of payload per segment, of a packet that is cut into segments only at the very end; else
    /// 0.
    #[inline(always)]
    pub fn segment(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw()).gso_size }
    }

    /// The packet mark.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: as in `ifindex`.
        unsafe { (*self.raw()).mark }
    }

    /// Sets the packet mark.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        self.ctx.set_mark(mark);
    }

    /// The packet's bytes at `offset`, if they are there and linear.
    ///
    /// `T` may have alignment 2 at most: headers start on even addresses, and on no better ones.
    #[inline(always)]
    pub fn at<T>(&self, offset: usize) -> Option<*mut T> {
        const {
            assert!(
                align_of::<T>() <= 2,
                "packet data is aligned to 2 bytes at most"
            );
        };
        // Volatile for the verifier: the compiler must not keep the half-widened number of one read for
        // another place, where it is no packet pointer any more.
        // SAFETY: the context is valid for the whole program, and the fields are readable in tc.
        let (start, end) = unsafe {
            (
                core::ptr::read_volatile(&raw const (*self.raw()).data) as usize + offset,
                core::ptr::read_volatile(&raw const (*self.raw()).data_end) as usize,
            )
        };
        if start + size_of::<T>() > end {
            return None;
        }
        Some(start as *mut T)
    }

    /// Like [`Self::at`], for reading a small header as a value.
    #[inline(always)]
    pub fn read<T: Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` checked the bounds and that T needs no alignment; T is a plain header.
        self.at::<T>(offset).map(|header| unsafe { *header })
    }

    /// Copies bytes at an `offset` that may be anywhere in the packet, linear or not.
    #[inline(always)]
    pub fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        self.ctx.load(offset).ok()
    }

    /// Writes bytes where [`Self::load`] would read them. Checksums are the caller's business.
    #[inline(always)]
    pub fn store<T>(&self, offset: usize, value: &T) -> Result<(), Drop> {
        self.ctx
            .store(offset, value, 0)
            .map_err(|_| Drop::because(DropReason::Helper))
    }

    /// Accounts for changed bytes that no checksum in the packet makes up for, where the device gave
    /// the sum of all bytes along (`CHECKSUM_COMPLETE`); without effect elsewhere.
    #[inline(always)]
    pub fn summed(&self, change: Difference) {
        // SAFETY: the context is valid for the whole program.
        let _ = unsafe { bpf_csum_update(self.raw(), change.folded().into()) };
    }

    /// Makes the first `length` bytes linear; they may then be read and written in place.
    #[inline(always)]
    pub fn pull(&self, length: u32) -> Result<(), Drop> {
        self.ctx
            .pull_data(length)
            .map_err(|_| Drop::because(DropReason::Malformed))
    }

    /// Hands the packet to the peer of the veth `ifindex`, inside its namespace.
    #[inline(always)]
    pub fn redirect_peer(&self, ifindex: u32) -> Action {
        // SAFETY: the helper only records the target; it takes no pointers.
        let _ = unsafe { bpf_redirect_peer(ifindex, 0) };
        Action::Redirect
    }

    /// Lets the packet come again at the interface where it came in.
    #[inline(always)]
    pub fn again(&self) -> Action {
        // SAFETY: as in `redirect_peer`.
        let _ = unsafe { bpf_redirect(self.ifindex(), u64::from(BPF_F_INGRESS)) };
        Action::Redirect
    }

    /// Sends the packet out of `ifindex`.
    #[inline(always)]
    pub fn redirect(&self, ifindex: u32) -> Action {
        // SAFETY: as in `redirect_peer`.
        let _ = unsafe { bpf_redirect(ifindex, 0) };
        Action::Redirect
    }

    /// Sends the packet out of `ifindex`, to the neighbour that the node's routes name for its
    /// destination.
    #[inline(always)]
    pub fn redirect_neighbour(&self, ifindex: u32) -> Action {
        // SAFETY: as in `redirect_peer`; without parameters the kernel looks the neighbour up.
        let _ = unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) };
        Action::Redirect
    }
}

/// A structure of the kernel's interface with all bytes zero.
#[inline(always)]
pub fn zeroed<T: KernelStruct>() -> T {
    // SAFETY: `KernelStruct` says that zeros are a value of it.
    unsafe { core::mem::zeroed() }
}

/// A C structure of the kernel's interface, of integers only: zeros are a value of it.
///
/// # Safety
///
/// That must be so.
pub unsafe trait KernelStruct {}
// SAFETY: integers.
unsafe impl KernelStruct for aya_ebpf::bindings::bpf_tunnel_key {}
// SAFETY: integers.
unsafe impl KernelStruct for aya_ebpf::bindings::bpf_fib_lookup {}
// SAFETY: integers.
unsafe impl KernelStruct for aya_ebpf::bindings::bpf_sock_tuple {}
