//! Namespaces in which a runtime has switched IPv6 off.

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use weft_tests::playground::families::Families;
use weft_tests::playground::{PATIENCE, Playground, wait};

use crate::runtime::{Node, Sandbox, addresses, connect};

/// As runtimes do that switch IPv6 off: for what there is, and for what will be.
fn switch_ipv6_off(sandbox: &Sandbox) {
    for which in ["all", "default"] {
        let key = format!("net/ipv6/conf/{which}/disable_ipv6");
        sandbox.netns().sysctl(&key, "1").unwrap();
    }
}

fn is_off(sandbox: &Sandbox, interface: &str) -> bool {
    let path = Path::new("/proc/sys/net/ipv6/conf").join(interface);
    let path = path.join("disable_ipv6");
    let read = sandbox.netns().run(|| fs::read_to_string(path));
    read.unwrap().unwrap().trim() == "1"
}

#[test]
fn a_namespace_without_ipv6_gets_both_families_where_the_cluster_has_both() {
    let plan = Playground::builder().name("noipv6").without_kubelets();
    let playground = plan.families(Families::Dual).start().unwrap();
    let node = Node::of(&playground);
    let usual = Sandbox::of_pod(&playground, "usual");
    let bare = Sandbox::of_pod(&playground, "bare");
    switch_ipv6_off(&bare);
    let (usual_result, result) = (node.add(&usual).unwrap(), node.add(&bare).unwrap());
    node.check(&bare, &result).unwrap();
    let (others, own) = (addresses(&usual_result), addresses(&result));
    assert_eq!(own.len(), 2, "{result}");
    let reaches = |from, to, address: IpAddr, seen: IpAddr| {
        let what = format!("{seen} reaches {address}");
        let done = wait(&what, PATIENCE, || {
            let client = connect(from, to, address)?;
            anyhow::ensure!(client == seen, "as {client}");
            Ok(())
        });
        done.unwrap_or_else(|error| panic!("{error:#}"));
    };
    let host = playground.node(crate::NODE).unwrap();
    let hosts = host.addresses.all();
    for ((own, other), of_node) in own.iter().zip(&others).zip(&hosts) {
        reaches(bare.netns(), usual.netns(), *other, *own);
        reaches(usual.netns(), bare.netns(), *own, *other);
        reaches(bare.netns(), &host.netns, *of_node, *own);
        reaches(&host.netns, bare.netns(), *own, *of_node);
        // By its loopback.
        reaches(bare.netns(), bare.netns(), *own, *own);
    }
    let loopback = Ipv6Addr::LOCALHOST.into();
    reaches(bare.netns(), bare.netns(), loopback, loopback);
    // What comes later is as the runtime wanted it.
    assert!(is_off(&bare, "all") && is_off(&bare, "default"));

    // A pod's own sysctls are set after ADD: then it has no IPv6, as it wanted, and IPv4 goes on.
    switch_ipv6_off(&bare);
    assert!(is_off(&bare, "eth0"));
    reaches(usual.netns(), bare.netns(), own[0], others[0]);
    reaches(bare.netns(), usual.netns(), others[0], own[0]);
    node.del(&bare, Some(&result)).unwrap();
    node.del(&usual, Some(&usual_result)).unwrap();
    node.assert_no_pods();
}

#[test]
fn a_namespace_without_ipv6_stays_so_where_the_cluster_has_ipv4_alone() {
    let plan = Playground::builder().name("onlyv4").without_kubelets();
    let playground = plan.start().unwrap();
    let node = Node::of(&playground);
    let sandbox = Sandbox::new(&playground, "bare");
    switch_ipv6_off(&sandbox);
    let result = node.add(&sandbox).unwrap();
    node.check(&sandbox, &result).unwrap();
    assert!(is_off(&sandbox, "eth0") && is_off(&sandbox, "lo"));
    let [address] = addresses(&result)[..] else {
        panic!("{result}");
    };
    let host = playground.node(crate::NODE).unwrap();
    let seen = connect(&host.netns, sandbox.netns(), address).unwrap();
    assert_eq!(seen, host.address());
    node.del(&sandbox, Some(&result)).unwrap();
    node.assert_no_pods();
}
