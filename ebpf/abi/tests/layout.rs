//! Guards the layouts: what a pinned map holds must not change under the same `ABI_VERSION`.
//!
//! `layout.txt` is what this version of the ABI looks like. A change of it is a change of
//! `ABI_VERSION`; after that, `UPDATE_LAYOUT=1 cargo test -p weft-abi` writes it anew.

use std::{fmt::Write as _, fs, path::Path};

use weft_abi::{
    ABI_VERSION,
    addr::{Addr4, Addr6},
    config::{Config, Uplink},
    drop::{DropCount, DropReason},
    endpoint::{Bandwidth, Bucket, Endpoint},
    event::DropEvent,
    flow::{Flow, FlowKey, Side, Tuple},
    ipcache::IpcacheEntry,
    policy::{PolicyKey, PolicyVerdict},
    service::{
        Affinity, AffinityKey, Backend, Frontend, FrontendKey, MaglevBlock, MaglevKey, Slot,
        SlotKey, SourceRange,
    },
    socket::{SocketKey, SocketPeer},
};

/// Describes a type: every field by its offset. The pattern fails to compile when one is missing.
macro_rules! describe {
    ($text:ident, $type:ty, $name:ident { $($field:ident),+ $(,)? }) => {{
        let _ = |value: $type| { let $name { $($field: _),+ } = value; };
        let _ = writeln!($text, "{} {} bytes", stringify!($type), size_of::<$type>());
        $(
            let _ = writeln!(
                $text,
                "  {:4} {}",
                std::mem::offset_of!($type, $field),
                stringify!($field)
            );
        )+
    }};
}

fn layout() -> String {
    let mut text = format!("ABI_VERSION {ABI_VERSION}\n");
    describe!(
        text,
        Config,
        Config {
            epoch,
            overlay_ifindex,
            node_address,
            vni,
            ticks_per_second,
            overlay_mtu,
            overlay_port,
            flags,
            masquerade_first,
            masquerade_ports,
            node_v4,
            netns_cookie,
            node_v6,
            backends_epoch,
            reserved
        }
    );
    describe!(
        text,
        FlowKey<Addr4>,
        FlowKey {
            low,
            high,
            low_port,
            high_port,
            protocol,
            reserved
        }
    );
    describe!(
        text,
        FlowKey<Addr6>,
        FlowKey {
            low,
            high,
            low_port,
            high_port,
            protocol,
            reserved
        }
    );
    describe!(
        text,
        Tuple<Addr4>,
        Tuple {
            source,
            destination,
            source_port,
            destination_port
        }
    );
    describe!(
        text,
        Tuple<Addr6>,
        Tuple {
            source,
            destination,
            source_port,
            destination_port
        }
    );
    describe!(
        text,
        Side,
        Side {
            bytes,
            packets,
            ifindex,
            mac,
            hop,
            seen,
            mtu,
            limits,
            reserved,
            tunnel
        }
    );
    describe!(
        text,
        Flow<Addr4>,
        Flow {
            sides,
            epoch,
            last_seen,
            egress_rule,
            ingress_rule,
            service,
            backend,
            xlat,
            initiator,
            flags,
            backends_epoch,
        }
    );
    describe!(
        text,
        Flow<Addr6>,
        Flow {
            sides,
            epoch,
            last_seen,
            egress_rule,
            ingress_rule,
            service,
            backend,
            xlat,
            initiator,
            flags,
            backends_epoch,
        }
    );
    describe!(
        text,
        Endpoint,
        Endpoint {
            ifindex,
            policy_set,
            identity,
            mac,
            enforce,
            limits
        }
    );
    describe!(
        text,
        IpcacheEntry,
        IpcacheEntry {
            identity,
            kind,
            flags,
            reserved,
            tunnel
        }
    );
    describe!(
        text,
        PolicyKey,
        PolicyKey {
            policy_set,
            identity,
            direction,
            protocol,
            port
        }
    );
    describe!(
        text,
        PolicyVerdict,
        PolicyVerdict {
            rule,
            verdict,
            reserved
        }
    );
    describe!(
        text,
        FrontendKey<Addr4>,
        FrontendKey {
            address,
            port,
            protocol,
            scope
        }
    );
    describe!(
        text,
        FrontendKey<Addr6>,
        FrontendKey {
            address,
            port,
            protocol,
            scope
        }
    );
    describe!(
        text,
        Frontend,
        Frontend {
            service,
            first,
            count,
            table,
            affinity_seconds,
            flags,
            reserved,
        }
    );
    describe!(text, SlotKey, SlotKey { service, slot });
    describe!(text, Slot, Slot { backend });
    describe!(
        text,
        Backend<Addr4>,
        Backend {
            address,
            service,
            port,
            flags
        }
    );
    describe!(
        text,
        Backend<Addr6>,
        Backend {
            address,
            service,
            port,
            flags
        }
    );
    describe!(text, MaglevKey, MaglevKey { service, block });
    describe!(text, MaglevBlock, MaglevBlock { backends });
    describe!(text, SourceRange<Addr4>, SourceRange { service, address });
    describe!(text, SourceRange<Addr6>, SourceRange { service, address });
    describe!(text, AffinityKey<Addr4>, AffinityKey { client, service });
    describe!(text, AffinityKey<Addr6>, AffinityKey { client, service });
    describe!(text, Affinity, Affinity { backend, used });
    describe!(text, Uplink, Uplink { v4, v6, mtu });
    describe!(
        text,
        Bucket,
        Bucket {
            bytes_per_second,
            burst,
            full_at
        }
    );
    describe!(text, Bandwidth, Bandwidth { egress, ingress });
    describe!(
        text,
        SocketKey<Addr4>,
        SocketKey {
            cookie,
            address,
            port,
            protocol,
            kind
        }
    );
    describe!(
        text,
        SocketKey<Addr6>,
        SocketKey {
            cookie,
            address,
            port,
            protocol,
            kind
        }
    );
    describe!(
        text,
        SocketPeer<Addr4>,
        SocketPeer {
            address,
            service,
            backend,
            port,
            reserved
        }
    );
    describe!(
        text,
        SocketPeer<Addr6>,
        SocketPeer {
            address,
            service,
            backend,
            port,
            reserved
        }
    );
    describe!(text, DropCount, DropCount { packets, bytes });
    describe!(
        text,
        DropEvent,
        DropEvent {
            time,
            source,
            destination,
            source_port,
            destination_port,
            rule,
            ifindex,
            length,
            reason,
            protocol,
            point,
            reserved,
        }
    );
    for reason in DropReason::ALL {
        let _ = writeln!(text, "DropReason {} {}", *reason as u8, reason.name());
    }
    text
}

#[test]
fn the_layout_is_that_of_its_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("layout.txt");
    let now = layout();
    if std::env::var_os("UPDATE_LAYOUT").is_some() {
        fs::write(&path, &now).expect("layout.txt can be written");
    }
    let then = fs::read_to_string(&path).expect("layout.txt is there");
    assert_eq!(
        then, now,
        "layouts changed: bump ABI_VERSION, then run with UPDATE_LAYOUT=1"
    );
}
