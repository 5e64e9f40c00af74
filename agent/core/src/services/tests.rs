//! Examples, with readable answers. What holds for every cluster is checked in `tests/properties`.

use super::*;
use crate::{
    compile::tests::ip,
    diff::Step,
    model::{LoadBalancing, Node, Protocol, ServicePort, SliceEndpoint, SlicePort},
};

/// This node, `here`, and the service `shop/web` with one endpoint here and one elsewhere.
fn mk_state() -> ClusterState {
    let mut state = ClusterState {
        node_name: "here".to_owned(),
        ..ClusterState::default()
    };
    let node = Node {
        name: "here".to_owned(),
        internal_ips: vec![ip("192.0.2.1")],
        ..Node::default()
    };
    state.nodes.insert(node.name.clone(), node);
    mk_service(&mut state, "web", "10.96.0.1");
    state
}

fn mk_service(state: &mut ClusterState, name: &str, address: &str) {
    let key = ObjectKey::new("shop", name);
    let service = Service {
        key: key.clone(),
        cluster_ips: vec![ip(address)],
        ports: vec![ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        }],
        ..Service::default()
    };
    let endpoint = |address: &str, node: &str| SliceEndpoint {
        node: Some(node.into()),
        ..SliceEndpoint::new(ip(address))
    };
    let slice = EndpointSlice {
        key: key.clone(),
        service: Some(name.to_owned()),
        ports: vec![SlicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: vec![endpoint("10.0.0.2", "here"), endpoint("10.0.1.2", "there")],
        triggered: None,
    };
    state.slices.insert(key.clone(), slice);
    state.services.insert(key, service);
}

fn service_mut<'a>(state: &'a mut ClusterState, name: &str) -> &'a mut Service {
    let key = ObjectKey::new("shop", name);
    state.services.get_mut(&key).expect("a service")
}

fn slice_mut<'a>(state: &'a mut ClusterState, name: &str) -> &'a mut EndpointSlice {
    let key = ObjectKey::new("shop", name);
    state.slices.get_mut(&key).expect("a slice")
}

fn compile(state: &ClusterState) -> ServiceCompiler {
    let mut compiler = ServiceCompiler::new();
    compiler.update(state, &Dirty::everything());
    compiler
}

fn warned(compiler: &ServiceCompiler) -> Vec<String> {
    compiler.warnings().map(ToString::to_string).collect()
}

#[test]
fn a_changed_slice_writes_what_changed() {
    let mut state = mk_state();
    for number in 0..50 {
        mk_service(
            &mut state,
            &format!("other{number}"),
            &format!("10.96.1.{number}"),
        );
    }
    let mut compiler = compile(&state);
    slice_mut(&mut state, "web").endpoints[1].address = ip("10.0.1.3");
    let mut dirty = Dirty::default();
    dirty.slice(ObjectKey::new("shop", "web"));
    let changes = compiler.update(&state, &dirty);
    // The backend, the slot that had the old one, and the old one's end.
    assert_eq!(changes.entries(), 3, "{changes:?}");
    assert!(compiler.update(&state, &dirty).is_empty());

    dirty.service(ObjectKey::new("shop", "web"));
    state.services.remove(&ObjectKey::new("shop", "web"));
    // Two frontends of the port and of the address, two slots, two backends.
    assert_eq!(compiler.update(&state, &dirty).entries(), 8);
    assert_eq!(compiler.contents(), compile(&state).contents());
}

#[test]
fn who_has_an_address_is_told_to_the_others() {
    let mut state = mk_state();
    mk_service(&mut state, "thief", "10.96.0.2");
    let thief = service_mut(&mut state, "thief");
    thief.external_ips = vec![ip("10.96.0.1"), ip("203.0.113.1")];
    service_mut(&mut state, "web").external_ips = vec![ip("203.0.113.1")];
    service_mut(&mut state, "web").created = 7;
    service_mut(&mut state, "thief").created = 3;
    assert_eq!(
        warned(&compile(&state)),
        [
            "Service shop/thief: 10.96.0.1 TCP port 80 is already in use, by Service shop/web; it \
             does not lead to this service",
            "Service shop/web: 203.0.113.1 TCP port 80 is already in use, by Service shop/thief; it \
             does not lead to this service",
        ]
    );
}

#[test]
fn without_room_for_a_table_backends_are_chosen_at_random() {
    let mut state = mk_state();
    mk_service(&mut state, "second", "10.96.0.2");
    state.settings.load_balancing = LoadBalancing::Maglev;
    state.settings.maglev_blocks = Some(100);
    let mut compiler = compile(&state);
    let tables = |compiler: &ServiceCompiler| {
        let frontends = compiler.contents().v4.frontends.iter();
        let ports = frontends.filter(|(key, _)| key.port == 80 && key.scope == 0);
        let tables = ports.map(|(_, frontend)| (frontend.table, frontend.count));
        tables.collect::<Vec<_>>()
    };
    let blocks = |compiler: &ServiceCompiler| compiler.contents().maglev.len();
    assert_eq!(tables(&compiler), [(0, 2), (4096, 2)]);
    assert_eq!((blocks(&compiler), warned(&compiler).len()), (64, 1));

    // What a service has it keeps, and what it gives up is another's after the next change.
    let mut dirty = Dirty::default();
    dirty.service(ObjectKey::new("shop", "second"));
    dirty.service(ObjectKey::new("shop", "web"));
    service_mut(&mut state, "second").load_balancing = Some(LoadBalancing::Random);
    compiler.update(&state, &dirty);
    assert_eq!((blocks(&compiler), warned(&compiler).len()), (0, 1));
    compiler.update(&state, &dirty);
    assert_eq!(tables(&compiler), [(4096, 2), (0, 2)]);
    assert_eq!(warned(&compiler), [""; 0]);
}

#[test]
fn health_checks_count_addresses_of_ready_endpoints_here() {
    let mut state = mk_state();
    let check = |state: &ClusterState| {
        let compiler = compile(state);
        let checks = compiler.health_checks();
        checks
            .map(|(_, check)| (check.port, check.v4, check.v6))
            .next()
    };
    assert_eq!(check(&state), None);
    service_mut(&mut state, "web").health_check_node_port = 31000;
    assert_eq!(check(&state), Some((31000, Some(1), None)));
    let mut again = slice_mut(&mut state, "web").clone();
    again.key.name = "web-2".to_owned();
    again.ports[0].port = 8081;
    state.slices.insert(again.key.clone(), again);
    assert_eq!(check(&state), Some((31000, Some(1), None)), "one address");
    state.slices.remove(&ObjectKey::new("shop", "web-2"));
    let endpoint = &mut slice_mut(&mut state, "web").endpoints[0];
    (endpoint.ready, endpoint.terminating) = (false, true);
    assert_eq!(
        check(&state),
        Some((31000, Some(0), None)),
        "it only serves"
    );
}

#[test]
fn ports_that_ask_for_local_endpoints_in_vain_are_counted() {
    let mut state = mk_state();
    let mut compiler = compile(&state);
    let mut update = |state: &ClusterState| {
        let mut dirty = Dirty::default();
        dirty.service(ObjectKey::new("shop", "web"));
        compiler.update(state, &dirty);
        let [v4, v6] = compiler.without_local();
        assert_eq!(v6, WithoutLocal::default());
        (v4.internal, v4.external)
    };
    let web = service_mut(&mut state, "web");
    (web.internal_local, web.external_local) = (true, true);
    assert_eq!(update(&state), (0, 0));
    slice_mut(&mut state, "web").endpoints.remove(0);
    assert_eq!(update(&state), (1, 0), "nobody comes from outside");
    service_mut(&mut state, "web").ports[0].node_port = 30080;
    assert_eq!(update(&state), (1, 1));
    slice_mut(&mut state, "web").endpoints.clear();
    assert_eq!(update(&state), (0, 0), "there is none to be had elsewhere");
}

#[test]
fn a_zone_of_the_node_compiles_everything() {
    let mut state = mk_state();
    let hints = |zone: &str| {
        let zones = vec![zone.into()];
        let nodes = Vec::new();
        Some(Box::new(crate::model::Hints { zones, nodes }))
    };
    let slice = slice_mut(&mut state, "web");
    slice.endpoints[0].hints = hints("a");
    slice.endpoints[1].hints = hints("b");
    let mut compiler = compile(&state);
    let count = |compiler: &ServiceCompiler| {
        let frontends = compiler.contents().v4.frontends.values();
        frontends.map(|frontend| frontend.count).max()
    };
    assert_eq!(count(&compiler), Some(2));
    let zone = ("topology.kubernetes.io/zone".to_owned(), "b".to_owned());
    state.nodes.get_mut("here").expect("the node").labels = [zone].into();
    let changes = compiler.update(&state, &Dirty::default());
    assert_eq!(count(&compiler), Some(1));
    // Flows keep their backends.
    assert!(!changes.steps.contains(&Step::BumpEpoch));
    assert!(!changes.steps.contains(&Step::BumpBackends));
}
