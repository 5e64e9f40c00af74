//! The overlay's tunnel key: which node a packet came from, and which it shall go to.

use aya_ebpf::{
    bindings::bpf_tunnel_key,
    helpers::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
};
use weft_abi::{
    MARK_RESUMED,
    addr::{Addr4, Addr6},
    config::Config,
    drop::DropReason,
};

use crate::{
    drops::Drop,
    skb::{self, Skb},
};

/// The part of `bpf_tunnel_key` that every supported kernel knows: up to the local address, which
/// came in 6.0 (commit 26101f5ab6bd).
const KEY_SIZE: u32 = core::mem::offset_of!(bpf_tunnel_key, __bindgen_anon_3) as u32;

/// `BPF_F_TUNINFO_IPV6`.
const UNDERLAY_V6: u64 = 1;
/// `BPF_F_ZERO_CSUM_TX`: no UDP checksum around packets that have their own; VXLAN allows it
/// (RFC 7348, section 5).
const ZERO_CHECKSUM: u64 = 2;

/// Time to live of overlay packets on the underlay.
const TTL: u8 = 64;

/// Nobody's address.
const NOBODY: Addr6 = Addr6::new([0; 16]);

/// The underlay address of the node that sent this overlay packet; [`NOBODY`] if no node did: it was
/// put here by this node itself.
#[inline(always)]
pub fn remote(skb: &Skb, config: &Config) -> Result<Addr6, Drop> {
    let mut key = skb::zeroed::<bpf_tunnel_key>();
    // SAFETY: the pointer and size describe `key`; the helper writes only there.
    let v4 = unsafe { bpf_skb_get_tunnel_key(skb.raw(), &raw mut key, KEY_SIZE, 0) } == 0;
    // The kernel does not say of which family the outer header was, but refuses the wrong question.
    // SAFETY: as above.
    let known = v4
        || unsafe { bpf_skb_get_tunnel_key(skb.raw(), &raw mut key, KEY_SIZE, UNDERLAY_V6) } == 0;
    if !known {
        return Ok(NOBODY);
    }
    if key.tunnel_id != config.vni {
        return Err(Drop::because(DropReason::UnknownTunnel));
    }
    if v4 {
        // SAFETY: all bytes of the union were initialised, by `zeroed` or the helper.
        let remote = unsafe { key.__bindgen_anon_1.remote_ipv4 };
        return Ok(Addr6::mapped(Addr4::new(remote.to_be_bytes())));
    }
    // SAFETY: as above; four words are sixteen octets, in network order as the helper copied them.
    let remote =
        unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(key.__bindgen_anon_1.remote_ipv6) };
    Ok(Addr6::new(remote))
}

/// Whether this node sent the overlay packet. Of a later fragment (`later`) that waited it was asked
/// when it came: now it has a mark, or, where old kernels took that away with everything else
/// (`dev_forward_skb` of 5.10), no sender at all.
#[inline(always)]
pub fn is_from(skb: &Skb, config: &Config, node: &Addr6, later: bool) -> Result<bool, Drop> {
    if skb.mark() == MARK_RESUMED {
        return Ok(true);
    }
    let remote = remote(skb, config)?;
    Ok(*node == remote || (later && remote == NOBODY))
}

/// Addresses the packet to the node with this underlay address.
#[inline(always)]
pub fn address(skb: &Skb, config: &Config, node: &Addr6) -> Result<(), Drop> {
    let mut key = skb::zeroed::<bpf_tunnel_key>();
    key.tunnel_id = config.vni;
    key.tunnel_ttl = TTL;
    let flags = match node.as_mapped() {
        Some(v4) => {
            key.__bindgen_anon_1.remote_ipv4 = v4.to_bits();
            ZERO_CHECKSUM
        }
        None => {
            // The helper copies an IPv6 address as it stands, in network order.
            // SAFETY: sixteen octets are four words.
            key.__bindgen_anon_1.remote_ipv6 =
                unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(node.octets) };
            UNDERLAY_V6
        }
    };
    // SAFETY: the pointer and size describe `key`; the helper only reads it.
    if unsafe { bpf_skb_set_tunnel_key(skb.raw(), &raw mut key, KEY_SIZE, flags) } != 0 {
        return Err(Drop::because(DropReason::Helper));
    }
    Ok(())
}
