//! Every path that a packet can take, in every way of getting from node to node, with the source
//! address that arrives.
//!
//! One table of checks, run in both families: pods of both nodes, processes of the nodes, the world
//! outside; straight, through services and through hostPorts; whole packets, fragments, and the ICMP
//! errors that belong to them. A run goes through all checks before it fails, and names each that did.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

#[path = "e2e_paths/errors.rs"]
mod errors;
#[path = "e2e_paths/fragments.rs"]
mod fragments;
#[path = "e2e_paths/host_ports.rs"]
mod host_ports;
#[path = "e2e_paths/inside.rs"]
mod inside;
#[path = "e2e_paths/outside.rs"]
mod outside;
#[path = "e2e_paths/scene.rs"]
mod scene;

use scene::Scene;
use weft_tests::playground::{Builder, Families, Playground, Routing};

/// All checks, in a cluster of two nodes.
fn check_all(plan: Builder, routing: Routing) {
    let scene = Scene::start(plan.routing(routing));
    for family in scene.families() {
        inside::check(&scene, *family);
        fragments::check_inside(&scene, *family);
        if !scene.nodes_have(*family) {
            continue;
        }
        outside::check(&scene, *family);
        host_ports::check(&scene, *family);
        fragments::check(&scene, *family);
        errors::check(&scene, *family);
        if routing == Routing::Native {
            outside::check_unmasqueraded(&scene, *family);
        }
    }
    // What changes the MTUs comes last.
    errors::check_path_mtu(&scene, routing);
    scene.finish();
}

fn plan(name: &str, families: Families) -> Builder {
    Playground::builder().name(name).nodes(2).families(families)
}

#[test]
fn every_path_over_vxlan() {
    check_all(plan("paths", Families::Dual), Routing::Vxlan);
}

#[test]
fn every_path_over_vxlan_with_ipv6_only() {
    check_all(plan("paths6", Families::V6), Routing::Vxlan);
}

#[test]
fn every_path_over_native_routing() {
    check_all(plan("pathsn", Families::Dual), Routing::Native);
}

#[test]
fn pods_of_both_families_over_ipv6_only() {
    let plan = plan("pathsu", Families::DualV6First).underlay(Families::V6);
    check_all(plan, Routing::Vxlan);
}
