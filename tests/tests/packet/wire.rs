//! The attached datapath: real frames on real interfaces, from where they are sent to where they
//! arrive.

use weft_abi::{GATEWAY_MAC, OVERLAY_MAC, OVERLAY_PEER_MAC, drop::DropReason};
use weft_tests::packet::{
    Overlay, Somewhere as _, Wire,
    bytes::{ACK, Payload, SYN},
    scene::{DB, NODE, OTHER_NODE, PODS, REMOTE, VIP, WEB, cluster, families, node_place, service},
};

#[test]
fn a_pod_reaches_a_pod_of_its_node() {
    let mut cluster = cluster(&[service("s", VIP, &[DB.place])]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for (to, port) in [(DB.place, 8080), (VIP, 80)] {
            let there = f.from(&WEB, to, Payload::tcp(40000 + port, port, SYN));
            wire.send(&WEB, &there).unwrap();
            let came = wire.at_pod(&DB).unwrap();
            assert_eq!(came.payload, Payload::tcp(40000 + port, 8080, SYN));
            assert_eq!((came.source, came.destination), (WEB.at(f), DB.at(f)));
            assert_eq!(
                (came.source_mac, came.destination_mac),
                (GATEWAY_MAC, DB.mac)
            );
            let back = f.from(&DB, WEB, came.payload.answer());
            wire.send(&DB, &back).unwrap();
            let came = wire.at_pod(&WEB).unwrap();
            assert_eq!((came.source, came.destination), (to.at(f), WEB.at(f)));
            assert_eq!(came.payload, there.payload.answer());
        }
    }
}

#[test]
fn the_overlay_takes_pods_to_each_other() {
    let mut cluster = cluster(&[service("s", VIP, &[REMOTE])]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        for (to, port) in [(REMOTE, 8080), (VIP, 80)] {
            let there = f.from(&WEB, to, Payload::tcp(40000 + port, port, SYN));
            wire.send(&WEB, &there).unwrap();
            let sent = wire.overlay().unwrap();
            // The underlay is IPv4, whatever it carries.
            assert_eq!(
                (sent.source, sent.destination, sent.vni),
                (NODE.v4.into(), OTHER_NODE.v4.into(), 1)
            );
            assert_eq!(
                (sent.inner.destination_mac, sent.inner.source_mac),
                (OVERLAY_MAC, OVERLAY_PEER_MAC)
            );
            assert_eq!(
                (sent.inner.source, sent.inner.destination, sent.inner.ttl),
                (WEB.at(f), REMOTE.at(f), 63)
            );
            assert_eq!(sent.inner.payload, Payload::tcp(40000 + port, 8080, SYN));
            let reply = Overlay {
                source: sent.destination,
                destination: sent.source,
                vni: 1,
                inner: f.packet(REMOTE, WEB, sent.inner.payload.answer()),
            };
            wire.arrive_by_overlay(&reply).unwrap();
            let came = wire.at_pod(&WEB).unwrap();
            assert_eq!((came.source, came.destination), (to.at(f), WEB.at(f)));
            assert_eq!(came.payload, there.payload.answer());
            assert_eq!(came.destination_mac, WEB.mac);
        }
        // What a pod there opens.
        let opened = Overlay {
            source: OTHER_NODE.v4.into(),
            destination: NODE.v4.into(),
            vni: 1,
            inner: f.packet(REMOTE, DB, Payload::udp(41000, 53)),
        };
        wire.arrive_by_overlay(&opened).unwrap();
        assert_eq!(wire.at_pod(&DB).unwrap().payload, Payload::udp(41000, 53));
        wire.send(&DB, &f.from(&DB, REMOTE, Payload::udp(53, 41000)))
            .unwrap();
        let sent = wire.overlay().unwrap();
        assert_eq!(sent.inner.payload, Payload::udp(53, 41000));
    }
}

#[test]
fn the_overlay_takes_nothing_from_strangers() {
    let mut cluster = cluster(&[]);
    let wire = Wire::new(&mut cluster, &PODS).unwrap();
    for f in families() {
        let from = |node: std::net::Ipv4Addr, source| Overlay {
            source: node.into(),
            destination: NODE.v4.into(),
            vni: 1,
            inner: f.packet(source, WEB, Payload::tcp(40000, 80, ACK)),
        };
        // Nobody's node, the wrong node, and a node that says it has this node's pod.
        for stranger in [
            from(node_place(99).v4, REMOTE),
            from(OTHER_NODE.v4, DB.place),
            from(OTHER_NODE.v4, NODE),
        ] {
            let refused = wire.drops(DropReason::UnknownTunnel, |wire| {
                wire.arrive_by_overlay(&stranger)
            });
            refused.unwrap();
        }
    }
}
