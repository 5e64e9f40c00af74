//! CNI as a runtime speaks it: the installed plugin and configuration, run by hand against a node
//! with a real agent. Every command in every version, what it must survive, and what it must not
//! leave behind.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

#[path = "e2e_cni/chain.rs"]
mod chain;
#[path = "e2e_cni/collection.rs"]
mod collection;
#[path = "e2e_cni/families.rs"]
mod families;
#[path = "e2e_cni/runtime.rs"]
mod runtime;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{Handle, LinkUnspec};
use serde_json::{Map, Value, json};
use weft_cni::Version;
use weft_cni::error::code;
use weft_tests::netns::Netns;
use weft_tests::playground::cni::kubernetes_args;
use weft_tests::playground::families::Families;
use weft_tests::playground::{Playground, wait};

use runtime::{NODE, Node, Sandbox, addresses, assert_code, inside, names, parsed};

fn dual_stack() -> Playground {
    Playground::builder()
        .name("cni")
        .families(Families::Dual)
        .start()
        .unwrap()
}

#[test]
fn every_version_and_every_refusal() {
    let playground = dual_stack();
    let node = Node::of(&playground);
    let sandbox = Sandbox::new(&playground, "versions");
    for version in Version::ALL {
        let node = node.changed(|list| list["cniVersion"] = json!(version.as_str()));
        let result = node.add(&sandbox).unwrap();
        assert_eq!(result["cniVersion"], version.as_str());
        let [v4, v6] = addresses(&result)[..] else {
            panic!("{result}");
        };
        assert!(v4.is_ipv4() && v6.is_ipv6(), "{result}");
        let checked = node.check(&sandbox, &result);
        if version < Version::V0_4_0 {
            assert_code(checked, code::INCOMPATIBLE_VERSION, "CHECK");
        } else {
            checked.unwrap();
        }
        if version < Version::V1_1_0 {
            assert_code(node.gc(None), code::INCOMPATIBLE_VERSION, "GC");
            assert_code(node.status(), code::INCOMPATIBLE_VERSION, "STATUS");
        }
        node.del(&sandbox, Some(&result)).unwrap();
    }
    let newer = node.changed(|list| list["cniVersion"] = json!("2.0.0"));
    assert_code(newer.add(&sandbox), code::INCOMPATIBLE_VERSION, "1.1.0");

    let refused = |change: fn(&mut Value), code: u32, why: &str| {
        let node = node.changed(|list| change(&mut list["plugins"][0]));
        assert_code(node.add(&sandbox), code, why);
    };
    refused(
        |plugin| plugin["mtu"] = json!(10),
        code::INVALID_CONFIG,
        "10",
    );
    let host_local = |plugin: &mut Value| plugin["ipam"] = json!({"type": "host-local"});
    refused(host_local, code::UNSUPPORTED_FIELD, "host-local");

    let mut nowhere = Sandbox::new(&playground, "nowhere");
    nowhere.vanish();
    assert_code(node.add(&nowhere), code::INVALID_NETNS, "CNI_NETNS");
    let mut own = Sandbox::new(&playground, "own");
    own.attachment.netns = node.netns().path();
    assert_code(node.add(&own), code::INVALID_NETNS, "CNI_NETNS");
    let unknown = Sandbox::new(&playground, "unknown");
    let result = json!({"cniVersion": "1.1.0"});
    assert_code(
        node.check(&unknown, &result),
        code::UNKNOWN_CONTAINER,
        "unknown",
    );

    // An interface of that name, by Weft or by anybody.
    let result = node.add(&sandbox).unwrap();
    assert_code(node.add(&sandbox), code::INVALID_ENVIRONMENT, "already");
    node.check(&sandbox, &result).unwrap();
    let mut taken = Sandbox::new(&playground, "taken");
    taken.attachment.netns.clone_from(&sandbox.attachment.netns);
    assert_code(node.add(&taken), code::INVALID_ENVIRONMENT, "eth0");
    node.check(&sandbox, &result).unwrap();
    node.del(&sandbox, Some(&result)).unwrap();
    // A refused ADD leaves nothing: DEL has nothing to do.
    node.assert_no_pods();
}

#[test]
fn runtimes_ask_for_more_and_chain_others() {
    let playground = dual_stack();
    let node = Node::of(&playground);
    let wanted = {
        let probe = Sandbox::new(&playground, "probe");
        let result = node.add(&probe).unwrap();
        node.del(&probe, Some(&result)).unwrap();
        // Far from those that are given in turn.
        addresses(&result)
            .iter()
            .map(|a| last_octet(*a, 200))
            .collect::<Vec<_>>()
    };
    let first = Sandbox::new(&playground, "first")
        .with(
            "portMappings",
            json!([
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
                {"hostPort": 9, "containerPort": 9, "protocol": "sctp"},
            ]),
        )
        .with(
            "bandwidth",
            json!({"ingressRate": 8_000_000, "ingressBurst": u32::MAX,
            "egressRate": 80_000_000, "egressBurst": 8_000_000}),
        )
        .with("mac", json!("02:00:00:00:77:01"))
        .with("ips", json!(wanted));
    let result = node.add(&first).unwrap();
    assert_eq!(addresses(&result), wanted);
    assert_eq!(parsed(&result).interfaces[1].mac, "02:00:00:00:77:01");
    node.check(&first, &result).unwrap();
    let record = &node.records()[&first.attachment.container_id];
    assert_eq!(record["network"], "weft");
    assert_eq!(record["mac"], json!([2, 0, 0, 0, 0x77, 1]));
    assert_eq!(
        record["host_ports"],
        json!([
            {"host_port": 9, "protocol": 132, "container_port": 9},
            {"host_port": 8080, "protocol": 6, "container_port": 80},
        ])
    );
    let limit = |name: &str| record[name]["bytes_per_second"].as_u64();
    assert_eq!(limit("ingress_limit"), Some(1_000_000));
    assert_eq!(record["egress_limit"]["burst"], 1_000_000);

    // What is taken, and what makes no sense.
    let port = json!([{"hostPort": 8080, "containerPort": 1, "hostIP": "192.0.2.1"}]);
    let second = Sandbox::new(&playground, "second").with("portMappings", port);
    assert_code(node.add(&second), code::TRY_AGAIN_LATER, "8080");
    let second = Sandbox::new(&playground, "third").with("ips", json!([wanted[0]]));
    assert_code(node.add(&second), code::TRY_AGAIN_LATER, "has it");
    let second = Sandbox::new(&playground, "fourth").with("ips", json!(["192.0.2.1"]));
    assert_code(node.add(&second), code::INVALID_CONFIG, "192.0.2.1");
    let second = Sandbox::new(&playground, "fifth").with("mac", json!("ff:ff:ff:ff:ff:ff"));
    assert_code(node.add(&second), code::INVALID_CONFIG, "ff:ff");
    assert_eq!(node.records().len(), 1);

    // Ports are free again with their pod.
    node.del(&first, Some(&result)).unwrap();
    let port = json!([{"hostPort": 8080, "containerPort": 1}]);
    let next = Sandbox::new(&playground, "next").with("portMappings", port);
    let result = node.add(&next).unwrap();
    node.del(&next, Some(&result)).unwrap();

    // Weft twice in a list: the second one is a plugin that is not the first.
    let mut both = Map::new();
    let plugin = node.changed(|list| {
        both = list["plugins"][0].as_object().unwrap().clone();
        let mut later = both.clone();
        // A network of its own, so that it is another interface's.
        later.remove("capabilities");
        list["plugins"] = json!([both, later]);
    });
    let twice = Sandbox::new(&playground, "twice");
    assert_code(plugin.add(&twice), code::INVALID_ENVIRONMENT, "already");
    plugin.del(&twice, None).unwrap();
    node.assert_no_pods();

    // A result that came before stays whole.
    let previous = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "other0"}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}], "dns": {"nameservers": ["192.0.2.53"]}});
    let chained = node.changed(|list| list["plugins"][0]["prevResult"] = previous);
    let result = chained.add(&twice).unwrap();
    assert_eq!(result["interfaces"][0]["name"], "other0");
    assert_eq!(result["ips"][0]["address"], "192.0.2.9/24");
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["dns"]["nameservers"][0], "192.0.2.53");
    node.check(&twice, &result).unwrap();
    node.del(&twice, Some(&result)).unwrap();
    node.assert_no_pods();
}

fn last_octet(address: IpAddr, value: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [a, b, c, value].into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[15] = value;
            octets.into()
        }
    }
}

/// Removes the default route of a family out of a namespace.
async fn remove_default_route(handle: &Handle, family: AddressFamily) {
    let mut filter = RouteMessage::default();
    filter.header.address_family = family;
    let routes = handle.route().get(filter).execute();
    let routes: Vec<RouteMessage> = routes.try_collect().await.unwrap();
    let default = routes.into_iter().find(|route| {
        let mut attributes = route.attributes.iter();
        route.header.destination_prefix_length == 0
            && attributes.any(|a| matches!(a, RouteAttribute::Gateway(_)))
    });
    handle
        .route()
        .del(default.unwrap())
        .execute()
        .await
        .unwrap();
}

async fn link_index(handle: &Handle, name: &str) -> u32 {
    let link = handle.link().get().match_name(name.to_owned()).execute();
    let links: Vec<_> = link.try_collect().await.unwrap();
    links[0].header.index
}

#[test]
fn check_finds_what_is_missing_and_tolerates_what_others_did() {
    let playground = dual_stack();
    let node = Node::of(&playground);
    // Each harm is done to a pod of its own; then CHECK must say what is missing.
    let harmed = |name: &str, why: &str, harm: &dyn Fn(&Sandbox, &Value)| {
        let sandbox = Sandbox::new(&playground, name);
        let result = node.add(&sandbox).unwrap();
        node.check(&sandbox, &result).unwrap();
        harm(&sandbox, &result);
        // The kernel ends a link some time after its last reference went.
        wait("CHECK fails", Duration::from_secs(20), || {
            anyhow::ensure!(node.check(&sandbox, &result).is_err());
            Ok(())
        })
        .unwrap();
        assert_code(node.check(&sandbox, &result), code::DAMAGED, why);
        node.del(&sandbox, Some(&result)).unwrap();
    };
    for (name, family, why) in [
        (
            "route4",
            AddressFamily::Inet,
            "no default route by 169.254.1.1",
        ),
        (
            "route6",
            AddressFamily::Inet6,
            "no default route by fe80::1",
        ),
    ] {
        harmed(name, why, &|sandbox, _| {
            sandbox.inside(async |handle| remove_default_route(&handle, family).await);
        });
    }
    harmed("address6", "has no address", &|sandbox, _| {
        sandbox.inside(async |handle| {
            let index = link_index(&handle, "eth0").await;
            let all = handle
                .address()
                .get()
                .set_link_index_filter(index)
                .execute();
            let all: Vec<_> = all.try_collect().await.unwrap();
            let v6 = all
                .into_iter()
                .find(|m| m.header.family == AddressFamily::Inet6);
            handle.address().del(v6.unwrap()).execute().await.unwrap();
        });
    });
    harmed("mac", "02:00:00:00:00:99", &|sandbox, _| {
        sandbox.inside(async |handle| {
            let index = link_index(&handle, "eth0").await;
            let link = LinkUnspec::new_with_index(index).address(vec![2, 0, 0, 0, 0, 0x99]);
            handle.link().set(link.build()).execute().await.unwrap();
        });
    });
    harmed("down", "is down", &|sandbox, _| {
        sandbox.inside(async |handle| {
            let index = link_index(&handle, "eth0").await;
            let link = LinkUnspec::new_with_index(index).down();
            handle.link().set(link.build()).execute().await.unwrap();
        });
    });
    harmed(
        "programs",
        "is without program from_container",
        &|_, result| {
            let interface = &parsed(result).interfaces[0].name;
            let links = playground.node(NODE).unwrap().bpf_dir().join("weft/links");
            fs::remove_file(links.join(format!("{interface}-from_container"))).unwrap();
        },
    );
    harmed("interface", "the node has no interface", &|_, result| {
        let name = parsed(result).interfaces[0].name.clone();
        inside(node.netns(), async |handle| {
            let index = link_index(&handle, &name).await;
            handle.link().del(index).execute().await.unwrap();
        });
    });
    // Others' additions, and another MTU.
    let sandbox = Sandbox::new(&playground, "tolerated");
    let result = node.add(&sandbox).unwrap();
    sandbox.inside(async |handle| {
        let index = link_index(&handle, "eth0").await;
        let more: IpAddr = [192, 0, 2, 7].into();
        let request = handle.address().add(index, more, 24);
        request.execute().await.unwrap();
        let link = LinkUnspec::new_with_index(index).mtu(1300);
        handle.link().set(link.build()).execute().await.unwrap();
    });
    let mut final_result = result.clone();
    let more = json!({"address": "192.0.2.7/24", "interface": 1});
    final_result["ips"]
        .as_array_mut()
        .unwrap()
        .push(more.clone());
    node.check(&sandbox, &final_result).unwrap();
    let foreign = json!({"cniVersion": "1.1.0", "ips": [more]});
    let checked = node.check(&sandbox, &foreign);
    assert_code(checked, code::DAMAGED, "has none of its addresses");
    node.del(&sandbox, Some(&final_result)).unwrap();
    node.assert_no_pods();
}

#[test]
fn what_is_gone_can_be_deleted_and_what_is_forgotten_is_collected() {
    let mut playground = dual_stack();
    // DEL: again, without a result, without a namespace, of what was never there.
    {
        let node = Node::of(&playground);
        let mut sandbox = Sandbox::new(&playground, "gone");
        let result = node.add(&sandbox).unwrap();
        sandbox.vanish();
        for result in [Some(&result), None] {
            node.del(&sandbox, result).unwrap();
        }
        sandbox.attachment.netns = PathBuf::new();
        node.del(&sandbox, None).unwrap();
        node.del(&Sandbox::new(&playground, "never"), None).unwrap();
        node.assert_no_pods();

        // GC: only a list counts, only this network, and each attachment by itself.
        let (kept, stale) = (
            Sandbox::new(&playground, "kept"),
            Sandbox::new(&playground, "stale"),
        );
        let other = node.changed(|list| list["name"] = json!("other"));
        let elsewhere = Sandbox::new(&playground, "elsewhere");
        let kept_result = node.add(&kept).unwrap();
        node.add(&stale).unwrap();
        let other_result = other.add(&elsewhere).unwrap();
        node.gc(None).unwrap();
        assert_eq!(node.records().len(), 3);
        // What was added just now may be missing in the list for that alone.
        node.gc(Some(&[&kept])).unwrap();
        assert_eq!(node.records().len(), 3);
        wait("GC collects", Duration::from_secs(30), || {
            node.gc(Some(&[&kept]))?;
            let records = node.records();
            let left: Vec<_> = records.keys().map(String::as_str).collect();
            anyhow::ensure!(left == ["sandbox-elsewhere", "sandbox-kept"], "{left:?}");
            Ok(())
        })
        .unwrap();
        assert_eq!(node.allocations().len(), 4);
        assert_eq!(node.interfaces().len(), 2);
        node.check(&kept, &kept_result).unwrap();
        other.check(&elsewhere, &other_result).unwrap();
        node.del(&stale, None).unwrap();
        other.gc(Some(&[])).unwrap();
        node.gc(Some(&[])).unwrap();
        node.assert_no_pods();
    }

    // Without an agent: DEL is kept, the others say so.
    let (waiting, vanished) = {
        let node = Node::of(&playground);
        let (waiting, vanished) = (
            Sandbox::new(&playground, "waiting"),
            Sandbox::new(&playground, "vanished"),
        );
        node.add(&waiting).unwrap();
        node.add(&vanished).unwrap();
        (waiting, vanished)
    };
    playground.kill_agent(NODE).unwrap();
    {
        let node = Node::of(&playground);
        assert_code(node.status(), code::NOT_AVAILABLE, "cannot be reached");
        assert_code(
            node.gc(Some(&[])),
            code::TRY_AGAIN_LATER,
            "cannot be reached",
        );
        let late = Sandbox::new(&playground, "late");
        assert_code(node.add(&late), code::TRY_AGAIN_LATER, "cannot be reached");
        node.del(&waiting, None).unwrap();
        // And one pod goes without anybody saying so.
        { vanished }.vanish();
    }
    playground.start_agent(NODE).unwrap();
    playground.wait_agent_ready(NODE).unwrap();
    Node::of(&playground).assert_no_pods();
}

#[test]
fn a_full_node_says_so() {
    let playground = Playground::builder()
        .name("full")
        .pod_cidr("10.244.0.0/29".parse::<ipnet::IpNet>().unwrap(), 29)
        .start()
        .unwrap();
    let node = Node::of(&playground);
    let mut sandboxes: Vec<Sandbox> = (0..6)
        .map(|n| Sandbox::new(&playground, &format!("full{n}")))
        .collect();
    let mut given = BTreeSet::new();
    for sandbox in &sandboxes {
        node.status().unwrap();
        let result = node.add(sandbox).unwrap();
        given.extend(addresses(&result));
    }
    assert_eq!(given.len(), 6, "{given:?}");
    assert_code(node.status(), code::NOT_AVAILABLE, "10.244.0.0/29");
    let late = Sandbox::new(&playground, "late");
    assert_code(node.add(&late), code::TRY_AGAIN_LATER, "no free address");
    let freed = sandboxes.pop().unwrap();
    node.del(&freed, None).unwrap();
    node.status().unwrap();
    node.add(&late).unwrap();
    let status = playground
        .ask_agent(NODE, &["status", "-o", "json"])
        .unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        status["addresses"],
        json!([{"pool": "10.244.0.0/29", "size": 6, "used": 6}])
    );
    assert_eq!(status["addresses_outside"], 0);
}

#[test]
fn a_hundred_pods_at_once() {
    let playground = dual_stack();
    let node = Node::of(&playground);
    let sandboxes: Vec<Sandbox> = (0..100)
        .map(|n| Sandbox::new(&playground, &format!("many{n}")))
        .collect();
    let started = Instant::now();
    let results: Vec<(Value, Duration)> = thread::scope(|scope| {
        let adds: Vec<_> = sandboxes
            .iter()
            .map(|sandbox| {
                let node = &node;
                scope.spawn(move || {
                    let started = Instant::now();
                    (node.add(sandbox).unwrap(), started.elapsed())
                })
            })
            .collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    let all = started.elapsed();
    let given: BTreeSet<IpAddr> = results.iter().flat_map(|(r, _)| addresses(r)).collect();
    assert_eq!(given.len(), 200);
    assert_eq!(node.allocations(), given);
    let mut times: Vec<Duration> = results.iter().map(|(_, time)| *time).collect();
    times.sort();
    println!(
        "100 ADDs at once: {all:?}; each: median {:?}, slowest {:?}",
        times[50], times[99]
    );
    let alone = Sandbox::new(&playground, "alone");
    let started = Instant::now();
    let result = node.add(&alone).unwrap();
    println!("one ADD beside 100 pods: {:?}", started.elapsed());
    node.del(&alone, Some(&result)).unwrap();

    let started = Instant::now();
    thread::scope(|scope| {
        for (sandbox, (result, _)) in sandboxes.iter().zip(&results) {
            let node = &node;
            scope.spawn(move || {
                node.check(sandbox, result).unwrap();
                node.del(sandbox, Some(result)).unwrap();
            });
        }
    });
    println!("100 CHECKs and DELs at once: {:?}", started.elapsed());
    node.assert_no_pods();
}

/// How often the agent is killed in a storm.
const KILLS: usize = 4;

#[test]
fn an_agent_that_dies_all_the_time_gives_no_address_twice() {
    let mut playground = Playground::builder().name("storm").start().unwrap();
    let conf = Node::of(&playground);
    let (runtime, network) = (conf.runtime.clone(), conf.network.clone());
    let workers: Vec<Sandbox> = (0..8)
        .map(|n| Sandbox::new(&playground, &format!("storm{n}")))
        .collect();
    let node_netns = Netns::open(conf.netns().name()).unwrap();
    let (ending, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Addresses that a runtime holds: between an ADD that succeeded and its DEL.
    let held = std::sync::Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        for sandbox in &workers {
            scope.spawn(|| {
                while !ending.load(Ordering::Relaxed) {
                    let added = runtime.add(&node_netns, &network, &sandbox.attachment);
                    let mine = added.as_ref().map(addresses).unwrap_or_default();
                    for address in &mine {
                        let first = held.lock().unwrap().insert(*address);
                        assert!(first, "{address} was given twice");
                    }
                    for address in &mine {
                        held.lock().unwrap().remove(address);
                    }
                    // Kept for the next agent if there is none now; it never fails for that.
                    runtime
                        .del(&node_netns, &network, &sandbox.attachment, None)
                        .unwrap();
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..KILLS {
            let before = rounds.load(Ordering::Relaxed);
            let moved = wait("pods come and go", Duration::from_secs(60), || {
                anyhow::ensure!(rounds.load(Ordering::Relaxed) >= before + 20);
                Ok(())
            });
            let killed = moved.and_then(|()| playground.kill_agent(NODE));
            let started = killed.and_then(|()| playground.start_agent(NODE));
            if let Err(error) = started.and_then(|()| playground.wait_agent_ready(NODE)) {
                ending.store(true, Ordering::Relaxed);
                panic!("{error:#}");
            }
        }
        ending.store(true, Ordering::Relaxed);
    });
    let node = Node::of(&playground);
    println!("{} rounds", rounds.load(Ordering::Relaxed));
    node.gc(Some(&[])).unwrap();
    node.assert_no_pods();
    assert_eq!(names(&node.state().join("cni-queue")), Vec::<String>::new());
}

#[test]
fn cleanup_leaves_nothing() {
    let mut playground = dual_stack();
    let sandbox = Sandbox::new(&playground, "last");
    Node::of(&playground).add(&sandbox).unwrap();
    let dir = playground.node(NODE).unwrap().dir.clone();
    let path = |part: &str| dir.join(part).display().to_string();
    let args = [
        "cleanup".to_owned(),
        format!("--bpf-root={}", path("bpf")),
        format!("--state-dir={}", path("state")),
        format!("--cni-bin-dir={}", path("cni/bin")),
        format!("--cni-conf-dir={}", path("cni/net.d")),
        "--output=json".to_owned(),
    ];
    let clean = |playground: &Playground, more: &[&str]| {
        let args = args.iter().map(String::as_str).chain(more.iter().copied());
        let args: Vec<&str> = args.collect();
        let output = playground.ask_agent(NODE, &args).unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output, report)
    };
    let (refused, _) = clean(&playground, &[]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("an agent is running"));

    playground.kill_agent(NODE).unwrap();
    let (_, planned) = clean(&playground, &["--dry-run"]);
    assert_eq!(
        Node::of(&playground).interfaces().len(),
        1,
        "nothing was touched"
    );
    // A file that somebody put there stays, and is told.
    fs::write(dir.join("state/notes"), "mine").unwrap();
    let (output, report) = clean(&playground, &[]);
    assert!(!output.status.success());
    assert_eq!(report["left"].as_array().unwrap().len(), 1, "{report}");
    fs::remove_file(dir.join("state/notes")).unwrap();
    let kinds: BTreeSet<&str> = report["removed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|thing| thing["kind"].as_str().unwrap())
        .collect();
    for kind in [
        "pod interface",
        "overlay",
        "pin",
        "CNI configuration",
        "CNI plugin",
        "route",
    ] {
        assert!(kinds.contains(kind), "{kind}: {report}");
        let planned = planned["removed"].as_array().unwrap();
        assert!(
            planned.iter().any(|thing| thing["kind"] == kind),
            "{kind} was not planned"
        );
    }
    let (output, report) = clean(&playground, &[]);
    assert!(output.status.success(), "{report}");
    let (_, report) = clean(&playground, &[]);
    assert_eq!(report["removed"], json!([]), "nothing is left to remove");

    assert!(!dir.join("state").exists() && !dir.join("bpf/weft").exists());
    assert_eq!(names(&dir.join("cni/net.d")), Vec::<String>::new());
    assert_eq!(names(&dir.join("cni/bin")), Vec::<String>::new());
    let netns = &playground.node(NODE).unwrap().netns;
    inside(netns, async |handle| {
        let links: Vec<_> = handle.link().get().execute().try_collect().await.unwrap();
        for attribute in links.into_iter().flat_map(|link| link.attributes) {
            if let LinkAttribute::IfName(name) = attribute {
                assert!(!name.starts_with("weft"), "{name}");
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let routes = handle.route().get(filter).execute();
            let routes: Vec<RouteMessage> = routes.try_collect().await.unwrap();
            for route in routes {
                assert_ne!(u8::from(route.header.protocol), 87, "{route:?}");
            }
        }
    });
    sandbox.inside(async |handle| {
        let all = handle.address().get().execute();
        let all: Vec<_> = all.try_collect().await.unwrap();
        let eth0 = all.iter().flat_map(|message| &message.attributes);
        let mut labels = eth0.filter(|a| matches!(a, AddressAttribute::Label(l) if l == "eth0"));
        assert_eq!(labels.next(), None, "the pod's end went with the node's");
    });
    // And the node can be a node again.
    fs::create_dir_all(dir.join("state")).unwrap();
    fs::create_dir_all(dir.join("run")).unwrap();
    playground.start_agent(NODE).unwrap();
    playground.wait_agent_ready(NODE).unwrap();
    let node = Node::of(&playground);
    node.add(&sandbox).unwrap();
}

#[test]
fn the_pod_that_the_runtime_names_is_the_endpoints() {
    let playground = Playground::builder().name("named").start().unwrap();
    let node = Node::of(&playground);
    let mut sandbox = Sandbox::new(&playground, "pod");
    sandbox.attachment.args = kubernetes_args("shop", "api", "uid-1", "sandbox-pod");
    sandbox
        .attachment
        .args
        .push_str(";MAC=02:00:00:00:00:42;UNKNOWN=1");
    let result = node.add(&sandbox).unwrap();
    let record = &node.records()["sandbox-pod"];
    assert_eq!(
        (&record["namespace"], &record["pod"]),
        (&json!("shop"), &json!("api"))
    );
    assert_eq!(record["mac"][5], 0x42);
    node.check(&sandbox, &result).unwrap();
    node.del(&sandbox, Some(&result)).unwrap();
    node.assert_no_pods();
}
