//! Kernels without tcx: programs are filters of clsact disciplines, beside those of others.

use std::collections::BTreeSet;

use aya::programs::tc;
use futures::{StreamExt as _, TryStreamExt as _};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcFilterBpfOption, TcFilterU32Option, TcHandle, TcMessage, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use serde_json::{Value, json};
use weft_tests::netns::Netns;
use weft_tests::playground::{Playground, Routing};

use crate::{Cluster, assert_killed_agents_lose_nothing, inside, links, names, plan};

/// The priority that filters get whose maker asks for none.
const LAST: u16 = 49152;

/// IPv4, of the protocols of frames.
const IPV4: u16 = 0x0800;

/// One of the two sides of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    In,
    Out,
}

/// A filter: its side, its priority, and its kind or its program.
type Filter = (Side, u16, String);

fn filters(netns: &Netns, interface: &str) -> Vec<Filter> {
    let index = links(netns)[interface].0.cast_signed();
    let mut found = Vec::new();
    inside(netns, async |handle| {
        for side in [Side::In, Side::Out] {
            let mut filters = handle.traffic_filter(index);
            let request = match side {
                Side::In => filters.get().ingress(),
                Side::Out => filters.get().egress(),
            };
            // Without a discipline there are none.
            let listed: Vec<TcMessage> = request.execute().try_collect().await.unwrap_or_default();
            found.extend(listed.iter().filter_map(|message| filter(side, message)));
        }
    });
    found
}

/// Of a BPF filter the program, of others the kind: for those the kernel first names the priority
/// alone, and then whatever tables the kind keeps.
fn filter(side: Side, message: &TcMessage) -> Option<Filter> {
    let (mut kind, mut program, mut has_options) = ("", None, false);
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind = name,
            TcAttribute::Options(options) => {
                has_options = true;
                program = options.iter().find_map(|option| match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.as_str()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let name = match kind {
        "bpf" => program?,
        _ if has_options => return None,
        other => other,
    };
    Some((side, (message.header.info >> 16) as u16, name.to_owned()))
}

fn ours(first: u16) -> Vec<Filter> {
    vec![
        (Side::In, first, "from_netdev".to_owned()),
        (Side::Out, first, "to_netdev".to_owned()),
    ]
}

fn strangers(priority: u16) -> [Filter; 2] {
    [Side::In, Side::Out].map(|side| (side, priority, "u32".to_owned()))
}

/// A filter of somebody else on each side of an interface, of one protocol. It matches no packet.
async fn add_strangers(handle: &Handle, index: u32, priority: u16) {
    for side in [Side::In, Side::Out] {
        let mut key = TcU32Key::default();
        (key.val, key.mask) = (u32::MAX, u32::MAX);
        let mut selector = TcU32Selector::default();
        selector.flags = TcU32SelectorFlags::Terminal;
        (selector.nkeys, selector.keys) = (1, vec![key]);
        let mut filters = handle.traffic_filter(index.cast_signed());
        let request = match side {
            Side::In => filters.add().ingress(),
            Side::Out => filters.add().egress(),
        };
        let request = request.priority(priority).protocol(IPV4.to_be());
        let request = request.u32(&[TcFilterU32Option::Selector(selector)]);
        request.unwrap().execute().await.unwrap();
    }
}

/// Removes them.
async fn remove_strangers(mut handle: Handle, index: u32, priority: u16) {
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = TcHandle {
            major: 0xffff,
            minor,
        };
        message.header.info = u32::from(priority) << 16 | u32::from(IPV4.to_be());
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let answers: Vec<_> = handle.request(request).unwrap().collect().await;
        for answer in answers {
            let NetlinkPayload::Error(error) = answer.payload else {
                continue;
            };
            assert_eq!(error.code, None, "{error:?}");
        }
    }
}

fn has_clsact(netns: &Netns, interface: &str) -> bool {
    let index = links(netns)[interface].0.cast_signed();
    let mut found = false;
    inside(netns, async |handle| {
        let listed = handle.qdisc().get().execute();
        let listed: Vec<TcMessage> = listed.try_collect().await.unwrap();
        let kind = TcAttribute::Kind("clsact".to_owned());
        let mut of_interface = listed
            .iter()
            .filter(|message| message.header.index == index);
        found = of_interface.any(|message| message.attributes.contains(&kind));
    });
    found
}

/// Cleans a node up whose agent is dead; what was removed, by kind and name.
fn clean(playground: &Playground, node: &str) -> BTreeSet<(String, String)> {
    let dir = playground.node(node).unwrap().dir.clone();
    let path = |part: &str| dir.join(part).display().to_string();
    let args = [
        "cleanup".to_owned(),
        format!("--bpf-root={}", path("bpf")),
        format!("--state-dir={}", path("state")),
        format!("--cni-bin-dir={}", path("cni/bin")),
        format!("--cni-conf-dir={}", path("cni/net.d")),
        "--output=json".to_owned(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = playground.ask_agent(node, &args).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(report["left"], json!([]), "{output:?}");
    let text = |thing: &Value, key: &str| thing[key].as_str().unwrap().to_owned();
    let removed = report["removed"].as_array().unwrap().iter();
    removed
        .map(|thing| (text(thing, "kind"), text(thing, "name")))
        .collect()
}

#[test]
fn uplinks_get_clsact_filters_beside_those_of_others() {
    let plan = plan("clsact", Routing::Vxlan).agent_flags(&["--attach=clsact"]);
    let mut playground = plan.without_agents().start().unwrap();
    // On the first node somebody has filters where Weft's would be, and behind them.
    let netns = |playground: &Playground, node: &str| {
        Netns::open(playground.node(node).unwrap().netns.name()).unwrap()
    };
    let (shared, own) = (netns(&playground, "node1"), netns(&playground, "node2"));
    shared
        .run(|| tc::qdisc_add_clsact("eth0"))
        .unwrap()
        .unwrap();
    let index = links(&shared)["eth0"].0;
    inside(&shared, async |handle| {
        for priority in [1, LAST] {
            add_strangers(&handle, index, priority).await;
        }
    });
    for node in ["node1", "node2"] {
        playground.start_agent(node).unwrap();
        playground.wait_agent_ready(node).unwrap();
    }
    let mut cluster = Cluster::on(playground);
    let with_strangers = |ours: Vec<Filter>| -> BTreeSet<Filter> {
        let strangers = [1, LAST].map(strangers);
        ours.into_iter().chain(strangers.concat()).collect()
    };
    let assert_filters = || {
        let found = filters(&shared, "eth0");
        assert_eq!(found.len(), 6, "{found:?}");
        assert_eq!(BTreeSet::from_iter(found), with_strangers(ours(2)));
        assert_eq!(filters(&own, "eth0"), ours(1));
    };
    assert_filters();
    for node in ["node1", "node2"] {
        let dir = cluster.playground.node(node).unwrap().bpf_dir();
        let pins = names(&dir.join("weft/links"));
        let of_interfaces = |pin: &&String| !pin.starts_with("cgroup-");
        assert_eq!(pins.iter().find(of_interfaces), None, "{pins:?}");
        assert_eq!(cluster.status(node).unwrap()["attachment"], "clsact");
    }

    assert_killed_agents_lose_nothing(Routing::Vxlan, &mut cluster);
    // Swapped in place: there is one of each.
    assert_filters();

    // Somebody makes room, and the next agent moves; it leaves nothing where it was.
    inside(&shared, async |handle| {
        remove_strangers(handle, index, 1).await;
    });
    cluster.restart_agents(Routing::Vxlan);
    let found = filters(&shared, "eth0");
    let expected: BTreeSet<Filter> = ours(1).into_iter().chain(strangers(LAST)).collect();
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(BTreeSet::from_iter(found), expected);
    cluster.outside_reaches_and_is_reached();

    let Cluster { mut playground } = cluster;
    for (node, netns) in [("node1", &shared), ("node2", &own)] {
        playground.kill_agent(node).unwrap();
        let removed = clean(&playground, node);
        let thing = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
        for program in ["from_netdev", "to_netdev"] {
            let name = format!("{program} on eth0");
            assert!(removed.contains(&thing("filter", &name)), "{removed:?}");
        }
        let is_shared = node == "node1";
        let discipline = removed.contains(&thing("clsact discipline", "eth0"));
        assert_eq!(discipline, !is_shared, "{removed:?}");
        assert_eq!(has_clsact(netns, "eth0"), is_shared);
    }
    assert_eq!(filters(&shared, "eth0"), strangers(LAST));
    assert_eq!(filters(&own, "eth0"), []);
}
