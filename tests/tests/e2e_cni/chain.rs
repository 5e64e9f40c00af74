//! Plugins after Weft in the list: they get its result, and what they do does no harm to what it did.
//!
//! The plugins of the CNI project are used where they are installed (a node's usual places, or the
//! directory in `WEFT_CNI_PLUGINS`); a small one of the test's own stands for them everywhere.

use std::env;
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use weft_cni::error::code;
use weft_tests::netns::Netns;
use weft_tests::playground::families::{Families, Family};
use weft_tests::playground::{PATIENCE, Playground, wait};

use crate::dual_stack;
use crate::runtime::{NODE, Node, Sandbox, addresses, assert_code, link_names, parsed};

/// What plugins after Weft set in pods, and to what.
const SETTING: &str = "net/ipv4/conf/eth0/arp_notify";

/// A plugin as small as they get: ADD sets a kernel parameter of the interface and passes the result
/// on, CHECK looks at it. The keys of what it is given are in alphabetical order.
const TUNE: &str = r#"#!/bin/sh
set -eu
fail() { printf '{"cniVersion":"1.1.0","code":101,"msg":"%s"}' "$1"; exit 1; }
setting="/proc/sys/net/ipv4/conf/$CNI_IFNAME/arp_notify"
inside() { nsenter --net="$CNI_NETNS" sh -c "$1"; }
result=$(sed -n 's/.*"prevResult":\(.*\),"type":.*/\1/p')
case "$CNI_COMMAND" in
ADD) [ -n "$result" ] || fail "no result"
    inside "echo 1 > $setting"
    printf '%s' "$result" ;;
CHECK) [ -n "$result" ] || fail "no result"
    [ "$(inside "cat $setting")" = 1 ] || fail "arp_notify is not set" ;;
esac
"#;

/// Where nodes have the plugins of the CNI project.
const USUAL: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

fn installed(plugin: &str) -> Option<PathBuf> {
    let given = env::var_os("WEFT_CNI_PLUGINS").map(PathBuf::from);
    let usual = USUAL.map(PathBuf::from);
    let mut found = given.into_iter().chain(usual).map(|dir| dir.join(plugin));
    found.find(|path| path.is_file())
}

/// Puts a plugin where the node's are. Another process copies it: what other threads start just then
/// would keep a file of this process open for writing, and such a file cannot be run.
fn install(plugin: &Path, node: &Node<'_>) {
    let mut copy = Command::new("cp");
    let copied = copy.arg(plugin).arg(&node.runtime.bin_dir).status();
    assert!(copied.unwrap().success(), "{}", plugin.display());
}

/// What portmap runs.
fn has_iptables() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|dir| dir.join("iptables").is_file())
}

fn setting(netns: &Netns) -> String {
    let read = || fs::read_to_string(Path::new("/proc/sys").join(SETTING));
    netns.run(read).unwrap().unwrap().trim().to_owned()
}

#[test]
fn a_plugin_after_weft_gets_its_result() {
    let playground = dual_stack();
    let node = Node::of(&playground);
    let path = playground.dir().join("tune");
    fs::write(&path, TUNE).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    install(&path, &node);
    let sandbox = Sandbox::new(&playground, "tuned");
    let alone = node.add(&sandbox).unwrap();
    node.del(&sandbox, Some(&alone)).unwrap();
    let chained = node.changed(|list| {
        let plugins = list["plugins"].as_array_mut().unwrap();
        plugins.push(json!({ "type": "tune" }));
    });
    let result = chained.add(&sandbox).unwrap();
    let shape = |result: &Value| {
        let result = parsed(result);
        let names: Vec<_> = result.interfaces.iter().map(|i| i.name.clone()).collect();
        (names, result.ips.len(), result.routes)
    };
    assert_eq!(shape(&result), shape(&alone));
    assert_eq!(setting(sandbox.netns()), "1");
    chained.check(&sandbox, &result).unwrap();
    // Both plugins' CHECKs are heard.
    sandbox.netns().sysctl(SETTING, "0").unwrap();
    assert_code(chained.check(&sandbox, &result), 101, "arp_notify");
    let without = json!({ "cniVersion": "1.1.0" });
    let checked = chained.check(&sandbox, &without);
    assert_code(checked, code::DAMAGED, "has none of its addresses");
    chained.del(&sandbox, Some(&result)).unwrap();
    chained.del(&sandbox, None).unwrap();
    node.assert_no_pods();
}

/// A connection to `target` that arrives at `server`; the client's address as it is seen there.
fn arrives(from: &Netns, target: SocketAddr, at: &Netns, server: SocketAddr) -> IpAddr {
    let listener = at.run(|| TcpListener::bind(server)).unwrap().unwrap();
    let done = wait(&format!("{target} leads to {server}"), PATIENCE, || {
        from.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(2)))??;
        Ok(())
    });
    done.unwrap_or_else(|error| panic!("{error:#}"));
    listener.accept().unwrap().1.ip()
}

#[test]
fn the_reference_plugins_do_no_harm() {
    let mut chain = Vec::new();
    let mut missing = Vec::new();
    for (plugin, conf) in [
        (
            "tuning",
            json!({ "sysctl": { "net.ipv4.conf.eth0.arp_notify": "1" } }),
        ),
        (
            "portmap",
            json!({ "capabilities": { "portMappings": true } }),
        ),
        (
            "bandwidth",
            json!({ "capabilities": { "bandwidth": true } }),
        ),
    ] {
        match installed(plugin) {
            Some(_) if plugin == "portmap" && !has_iptables() => missing.push("iptables"),
            Some(path) => chain.push((path, plugin, conf)),
            None => missing.push(plugin),
        }
    }
    if !missing.is_empty() {
        // Not by a macro: the harness keeps what those print to itself when the test passes.
        let _ = writeln!(
            io::stderr(),
            "skipped: plugins after Weft in a list that are not installed: {} (Debian's packages \
             containernetworking-plugins and iptables have them; WEFT_CNI_PLUGINS names another \
             directory)",
            missing.join(", ")
        );
    }
    if chain.is_empty() {
        return;
    }
    let plan = Playground::builder().name("chain").without_kubelets();
    let playground = plan.families(Families::Dual).start().unwrap();
    let node = Node::of(&playground);
    for (path, _, _) in &chain {
        install(path, &node);
    }
    let with = |left_out: &str| {
        node.changed(|list| {
            // The latest that all releases of the plugins speak.
            list["cniVersion"] = json!("1.0.0");
            let later = chain.iter().filter(|(_, plugin, _)| *plugin != left_out);
            let plugins = list["plugins"].as_array_mut().unwrap();
            plugins.extend(later.map(|(_, plugin, conf)| {
                let mut conf = conf.clone();
                conf["type"] = json!(plugin);
                conf
            }));
        })
    };
    let chained = with("");
    // Weft does both as well.
    let mappings = json!([{ "hostPort": 8080, "containerPort": 7000, "protocol": "tcp" }]);
    let rate = json!({ "ingressRate": 80_000_000, "ingressBurst": 8_000_000,
        "egressRate": 80_000_000, "egressBurst": 8_000_000 });
    let sandbox = Sandbox::of_pod(&playground, "server");
    let sandbox = sandbox
        .with("portMappings", mappings)
        .with("bandwidth", rate);
    let client = Sandbox::of_pod(&playground, "client");
    let before = link_names(node.netns());
    let result = chained.add(&sandbox).unwrap();
    let clients = addresses(&chained.add(&client).unwrap());
    // Release 1.1 of portmap looks for the rules of one family among those of the other.
    with("portmap").check(&sandbox, &result).unwrap();
    if chain.iter().any(|(_, plugin, _)| *plugin == "tuning") {
        assert_eq!(setting(sandbox.netns()), "1");
    }

    let host = playground.node(NODE).unwrap();
    let outside = playground.outside();
    for own in addresses(&result) {
        let family = Family::of(own);
        let of_node = host.addresses.of(family).unwrap();
        let of_client = *clients
            .iter()
            .find(|ip| Family::of(**ip) == family)
            .unwrap();
        let server = SocketAddr::new(own, 7000);
        let host_port = SocketAddr::new(of_node, 8080);
        let reached = |from: &Netns, target| arrives(from, target, sandbox.netns(), server);
        assert_eq!(reached(client.netns(), server), of_client);
        assert_eq!(reached(client.netns(), host_port), of_client);
        assert_eq!(reached(&host.netns, server), of_node);
        let seen = reached(outside.netns(), host_port);
        assert!(outside.addresses(family).contains(&seen), "{seen}");
    }
    for sandbox in [&sandbox, &client] {
        chained.del(sandbox, Some(&result)).unwrap();
        chained.del(sandbox, None).unwrap();
    }
    node.assert_no_pods();
    assert_eq!(link_names(node.netns()), before, "links are left");
}
