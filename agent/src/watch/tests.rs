//! Watches fed with events by hand: what an API server would send.

use super::*;
use futures::FutureExt as _;
use kube::core::Status;
use kube::core::error_boundary::InvalidObject;
use serde_json::json;

type Guarded = watcher::Result<Event<DeserializeGuard<Pod>>>;

fn pod(name: &str, node: &str) -> DeserializeGuard<Pod> {
    let object = json!({
        "metadata": { "name": name, "namespace": "shop" },
        "spec": { "containers": [], "nodeName": node },
    });
    DeserializeGuard(Ok(serde_json::from_value(object).expect("a pod")))
}

fn broken(name: &str) -> DeserializeGuard<Pod> {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("shop".to_owned()),
        ..ObjectMeta::default()
    };
    DeserializeGuard(Err(InvalidObject {
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

fn list(pods: Vec<DeserializeGuard<Pod>>) -> Vec<Guarded> {
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
    fn empty<K>() -> impl Stream<Item = watcher::Result<Event<DeserializeGuard<K>>>> {
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
    assert!(cluster.synced() && cluster.wait_synced().now_or_never().is_some());
}
