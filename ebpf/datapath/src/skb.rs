//! The packet as the kernel hands it over: the one place that touches packet memory.
//!
//! Invariant: a pointer from [`Skb::at`] is valid until the next helper that may move packet data
//! (pull, checksum replace, store, adjust room). The verifier enforces it; code here keeps it by
//! fetching pointers anew after each such helper.

use aya_ebpf::{
    EbpfContext as _, bindings::__sk_buff, helpers::bpf_redirect, helpers::bpf_redirect_peer,
    programs::TcContext,
};
use weft_abi::drop::DropReason;

use crate::drops::Drop;

/// What the kernel shall do with the packet.
#[must_use]
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// On to where it was going: the host stack on ingress, the device on egress.
    Pass,
    /// As the last redirect helper said.
    Redirect,
}

impl Action {
    /// The tc action code: `TC_ACT_OK` or `TC_ACT_REDIRECT`.
    #[inline(always)]
    pub fn code(self) -> i32 {
        match self {
            Self::Pass => 0,
            Self::Redirect => 7,
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

    /// The EtherType, host order.
    #[inline(always)]
    pub fn ether_type(&self) -> u16 {
        // SAFETY: as in `ifindex`.
        let protocol = unsafe { (*self.raw()).protocol };
        u16::from_be(protocol as u16)
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
        let start = self.ctx.data() + offset;
        if start + size_of::<T>() > self.ctx.data_end() {
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

    /// Sends the packet out of `ifindex`.
    #[inline(always)]
    pub fn redirect(&self, ifindex: u32) -> Action {
        // SAFETY: as in `redirect_peer`.
        let _ = unsafe { bpf_redirect(ifindex, 0) };
        Action::Redirect
    }
}
