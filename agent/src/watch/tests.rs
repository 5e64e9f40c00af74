//! Watches fed with events by hand: what an API server would send.

use super::*;
use futures::FutureExt as _;
use kube::core::Status;
use kube::core::error_boundary::InvalidObject;
use serde_json::json;

type Guarded<K = Pod> = watcher::Result<Event<Guard<K>>>;

fn pod(name: &str, node: &str) -> Guard<Pod> {
    let object = json!({
        "metadata": { "name": name, "namespace": "shop" },
        "spec": { "containers": [], "nodeName": node },
    });
    Guard(Ok(serde_json::from_value(object).expect("a pod")))
}

fn broken(name: &str) -> Guard<Pod> {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("shop".to_owned()),
        ..ObjectMeta::default()
    };
    Guard(Err(InvalidObject {
        error: "spec: not a map".to_owned(),
        metadata,
    }))
}

fn failure() -> Guarded {
    Err(watcher::Error::WatchError(Box::new(Status::failure(
        "gone", "Expired",
    ))))
}

async fn feed(cluster: &Cluster, events: Vec<Guarded>) {
    follow(cluster, PODS, futures::stream::iter(events)).await;
}

fn list(pods: Vec<Guard<Pod>>) -> Vec<Guarded> {
    let pods = pods.into_iter().map(|pod| Ok(Event::InitApply(pod)));
    pods.chain([Ok(Event::InitDone)]).collect()
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.with(|state| state.pods.keys().map(|key| key.name.clone()).collect())
}

fn changed(cluster: &Cluster) -> bool {
    cluster.changed().now_or_never().is_some()
}

#[tokio::test]
async fn a_list_replaces_what_was_known_when_it_is_complete() {
    let cluster = Cluster::new("n1");
    feed(&cluster, list(vec![pod("a", "n1"), pod("b", "n1")])).await;
    assert!(changed(&cluster));
    // "a" was deleted while the watch was away; the list breaks off before its end.
    feed(
        &cluster,
        vec![failure(), Ok(Event::InitApply(pod("b", "n1"))), failure()],
    )
    .await;
    assert_eq!(names(&cluster), ["a", "b"]);
    assert!(!changed(&cluster));
    let status = cluster.watches()["pods"].clone();
    assert_eq!(
        (status.connected, status.errors, status.objects),
        (false, 2, 2)
    );
    feed(&cluster, list(vec![pod("b", "n1"), pod("c", "n1")])).await;
    assert_eq!(names(&cluster), ["b", "c"]);
    assert!(changed(&cluster) && cluster.pods_connected());
}

#[tokio::test]
async fn half_a_list_is_forgotten() {
    let cluster = Cluster::new("n1");
    let mut events = vec![Ok(Event::InitApply(pod("old", "n1"))), failure()];
    events.extend(list(vec![pod("new", "n1")]));
    feed(&cluster, events).await;
    assert_eq!(names(&cluster), ["new"]);
}

#[tokio::test]
async fn only_what_the_compiler_reads_wakes_anybody() {
    let cluster = Cluster::new("n1");
    feed(&cluster, list(vec![pod("a", "n1")])).await;
    assert!(changed(&cluster));
    feed(&cluster, vec![Ok(Event::Apply(pod("a", "n1")))]).await;
    assert!(!changed(&cluster), "nothing changed");
    feed(&cluster, vec![Ok(Event::Apply(pod("a", "n2")))]).await;
    assert!(changed(&cluster), "the node changed");
    feed(&cluster, vec![Ok(Event::Delete(pod("b", "n1")))]).await;
    assert!(!changed(&cluster), "was not known");
    feed(&cluster, vec![Ok(Event::Delete(pod("a", "n2")))]).await;
    assert!(changed(&cluster) && names(&cluster).is_empty());
}

#[tokio::test]
async fn a_broken_object_keeps_its_last_good_version() {
    let cluster = Cluster::new("n1");
    feed(&cluster, list(vec![pod("a", "n1"), broken("never")])).await;
    assert_eq!(names(&cluster), ["a"]);
    feed(&cluster, vec![Ok(Event::Apply(broken("a")))]).await;
    assert_eq!(names(&cluster), ["a"]);
    assert_eq!(cluster.warnings().len(), 2);
    feed(&cluster, list(vec![broken("a")])).await;
    assert_eq!(names(&cluster), ["a"]);
    let warnings: Vec<_> = cluster.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        ["Pod shop/a: cannot be decoded, its last good version stays: spec: not a map"]
    );
    feed(&cluster, vec![Ok(Event::Apply(pod("a", "n1")))]).await;
    assert!(cluster.warnings().is_empty());
}

#[tokio::test]
async fn synced_is_when_every_kind_was_listed() {
    fn empty<K>() -> impl Stream<Item = watcher::Result<Event<Guard<K>>>> {
        futures::stream::iter([Ok(Event::InitDone)])
    }
    let cluster = Cluster::new("n1");
    follow(&cluster, NODES, empty()).await;
    follow(&cluster, NAMESPACES, empty()).await;
    follow(&cluster, PODS, empty()).await;
    follow(&cluster, SERVICE_KIND, empty()).await;
    follow(&cluster, SLICES, empty()).await;
    assert!(!cluster.synced() && cluster.wait_synced().now_or_never().is_none());
    follow(&cluster, POLICIES, empty()).await;
    assert!(!cluster.synced());
    follow(&cluster, SERVICE_CIDRS, empty()).await;
    assert!(cluster.synced() && cluster.wait_synced().now_or_never().is_some());
}

fn slice(name: &str, service: &str, ready: bool) -> Guard<EndpointSlice> {
    let object = json!({
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.0.0.1"], "conditions": { "ready": ready } }],
        "ports": [],
    });
    Guard(Ok(serde_json::from_value(object).expect("a slice")))
}

fn service(name: &str, port: u16) -> Guard<Service> {
    let object = json!({
        "metadata": { "name": name, "namespace": "shop" },
        "spec": {
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1"],
            "ports": [{ "port": port, "protocol": "TCP" }],
        },
    });
    Guard(Ok(serde_json::from_value(object).expect("a service")))
}

#[tokio::test]
async fn a_slice_is_marked_when_it_differs() {
    let cluster = Cluster::new("n1");
    let feed = async |events: Vec<Guarded<EndpointSlice>>| {
        follow(&cluster, SLICES, futures::stream::iter(events)).await;
        cluster.take_dirty()
    };
    let of = |names: &[&str]| {
        let mut dirty = Dirty::default();
        for name in names {
            dirty.services.slice(ObjectKey::new("shop", *name));
            dirty.kinds.insert("endpointslices");
        }
        dirty
    };
    let apply = |name, service, ready| vec![Ok(Event::Apply(slice(name, service, ready)))];
    assert_eq!(feed(apply("s1", "web", true)).await, of(&["s1"]));
    assert_eq!(feed(apply("s1", "web", true)).await, of(&[]), "the same");
    assert_eq!(feed(apply("s1", "web", false)).await, of(&["s1"]));
    assert_eq!(feed(apply("s1", "api", false)).await, of(&["s1"]));
    feed(apply("s2", "db", true)).await;
    feed(apply("s3", "old", true)).await;
    // A list marks what differs: one changed, one is the same, one came, one went.
    let list = [
        slice("s1", "api", true),
        slice("s2", "db", true),
        slice("s4", "new", true),
    ];
    let list = list.into_iter().map(|slice| Ok(Event::InitApply(slice)));
    let marks = feed(list.chain([Ok(Event::InitDone)]).collect()).await;
    assert_eq!(marks, of(&["s1", "s3", "s4"]));
    let gone = || vec![Ok(Event::Delete(slice("s2", "db", true)))];
    assert_eq!(feed(gone()).await, of(&["s2"]));
    assert!(feed(gone()).await.is_empty(), "was not known");
}

#[tokio::test]
async fn services_mark_themselves_and_other_kinds_only_their_kind() {
    let cluster = Cluster::new("n1");
    let events = |port| futures::stream::iter([Ok(Event::Apply(service("web", port)))]);
    follow(&cluster, SERVICE_KIND, events(80)).await;
    feed(&cluster, vec![Ok(Event::Apply(pod("a", "n1")))]).await;
    let mut first = cluster.take_dirty();
    let mut web = weft_core::services::Dirty::default();
    web.service(ObjectKey::new("shop", "web"));
    assert_eq!(first.services, web);
    assert!(first.has("pods") && first.has("services") && !first.has("nodes"));
    assert!(cluster.take_dirty().is_empty());
    // What could not be done is kept.
    follow(&cluster, SERVICE_KIND, events(81)).await;
    let second = cluster.take_dirty();
    assert!(!second.has("pods"));
    first.merge(second);
    assert_eq!(first.services, web);
    assert!(first.has("pods"));
}

#[tokio::test]
async fn a_kind_that_the_api_does_not_have_has_no_objects() {
    type Cidrs = Guarded<ServiceCIDR>;
    fn refused(code: u16) -> Cidrs {
        let status = Status {
            code,
            ..Status::failure("no", "Failed to parse error data")
        };
        let error = kube::Error::Api(Box::new(status));
        Err(watcher::Error::InitialListFailed(error))
    }
    let feed = async |cluster: &Cluster, events: Vec<Cidrs>| {
        follow(cluster, SERVICE_CIDRS, futures::stream::iter(events)).await;
        cluster.watches()["servicecidrs"].clone()
    };
    for code in [403, 404] {
        let cluster = Cluster::new("n1");
        let status = feed(&cluster, vec![refused(500)]).await;
        assert!(!status.synced && !status.connected && !changed(&cluster));
        let status = feed(&cluster, vec![refused(code)]).await;
        assert!(status.synced && status.connected && changed(&cluster));
        feed(&cluster, vec![refused(code)]).await;
        assert!(!changed(&cluster), "that is known");
        // The API servers were upgraded; one of them is not yet.
        let range = json!({
            "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": ["10.96.0.0/12"] },
        });
        let range = Guard(Ok(serde_json::from_value(range).expect("a range")));
        let list = vec![Ok(Event::InitApply(range)), Ok(Event::InitDone)];
        let status = feed(&cluster, list).await;
        assert!(changed(&cluster) && cluster.take_dirty().has("servicecidrs"));
        assert_eq!(status.objects, 1);
        let status = feed(&cluster, vec![refused(code)]).await;
        assert!(!status.connected && !changed(&cluster));
        assert_eq!(cluster.with(|state| state.service_cidrs.len()), 1);
    }
}
