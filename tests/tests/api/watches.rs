//! Watches, and what clients live through when the server has bad hours.

use std::net::TcpListener;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{Cluster, code, eventually};

const SOON: Duration = Duration::from_secs(20);

fn map(name: &str, label: &str) -> ConfigMap {
    let labels = json!({ "l": label });
    serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } })).unwrap()
}

async fn label(maps: &Api<ConfigMap>, name: &str, label: &str) {
    let patch = json!({ "metadata": { "labels": { "l": label } } });
    maps.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
}

type Events = BoxStream<'static, kube::Result<WatchEvent<ConfigMap>>>;

/// The next event as type and name.
async fn next(events: &mut Events) -> (&'static str, String) {
    let event = timeout(SOON, events.try_next())
        .await
        .expect("an event in time");
    match event.unwrap().expect("an event, not the end") {
        WatchEvent::Added(o) => ("ADDED", o.name_any()),
        WatchEvent::Modified(o) => ("MODIFIED", o.name_any()),
        WatchEvent::Deleted(o) => ("DELETED", o.name_any()),
        WatchEvent::Bookmark(_) => ("BOOKMARK", String::new()),
        WatchEvent::Error(status) => ("ERROR", status.code.to_string()),
    }
}

async fn watch(maps: &Api<ConfigMap>, params: &WatchParams, version: &str) -> Events {
    maps.watch(params, version).await.unwrap().boxed()
}

fn event(kind: &'static str, name: &str) -> (&'static str, String) {
    (kind, name.to_owned())
}

#[tokio::test]
async fn a_watch_tells_what_happened_since() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    maps.create(&PostParams::default(), &map("a", "1"))
        .await
        .unwrap();
    let list = maps.list(&ListParams::default()).await.unwrap();
    let version = list.metadata.resource_version.unwrap();
    maps.create(&PostParams::default(), &map("b", "1"))
        .await
        .unwrap();
    let mut events = watch(&maps, &WatchParams::default(), &version).await;
    assert_eq!(next(&mut events).await, event("ADDED", "b"));
    label(&maps, "a", "2").await;
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(next(&mut events).await, event("MODIFIED", "a"));
    assert_eq!(next(&mut events).await, event("DELETED", "a"));
    // From any version, everything there is comes first.
    let mut events = watch(&maps, &WatchParams::default(), "0").await;
    assert_eq!(next(&mut events).await, event("ADDED", "b"));
    // And other namespaces are not seen.
    let other: Api<ConfigMap> = Api::namespaced(cluster.client(), "kube-system");
    other
        .create(&PostParams::default(), &map("elsewhere", "1"))
        .await
        .unwrap();
    maps.create(&PostParams::default(), &map("c", "1"))
        .await
        .unwrap();
    assert_eq!(next(&mut events).await, event("ADDED", "c"));
}

#[tokio::test]
async fn leaving_the_selector_is_a_deletion() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    let params = WatchParams::default().labels("l=1");
    let mut events = watch(&maps, &params, "0").await;
    maps.create(&PostParams::default(), &map("a", "2"))
        .await
        .unwrap();
    label(&maps, "a", "1").await;
    assert_eq!(next(&mut events).await, event("ADDED", "a"));
    label(&maps, "a", "2").await;
    assert_eq!(next(&mut events).await, event("DELETED", "a"));
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    maps.create(&PostParams::default(), &map("b", "1"))
        .await
        .unwrap();
    assert_eq!(next(&mut events).await, event("ADDED", "b"));
}

#[tokio::test]
async fn a_watch_ends_in_time_with_a_bookmark() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    let params = WatchParams::default().labels("l=1").timeout(1);
    let list = maps.list(&ListParams::default()).await.unwrap();
    let mut events = watch(&maps, &params, &list.metadata.resource_version.unwrap()).await;
    // A change that is not selected is told by the bookmark only.
    let made = maps
        .create(&PostParams::default(), &map("a", "2"))
        .await
        .unwrap();
    let all: Vec<_> = timeout(SOON, events.by_ref().collect()).await.unwrap();
    let [Ok(WatchEvent::Bookmark(bookmark))] = all.as_slice() else {
        panic!("{all:?}")
    };
    assert_eq!(
        Some(&bookmark.metadata.resource_version),
        made.resource_version().as_ref()
    );
}

#[tokio::test]
async fn an_old_version_is_gone() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    let made = maps
        .create(&PostParams::default(), &map("a", "1"))
        .await
        .unwrap();
    label(&maps, "a", "2").await;
    cluster.server.faults().expire();
    let version = made.resource_version().unwrap();
    let mut events = watch(&maps, &WatchParams::default(), &version).await;
    assert_eq!(next(&mut events).await, event("ERROR", "410"));
    let exact = ListParams::default()
        .at(&version)
        .matching(kube::api::VersionMatch::Exact);
    assert_eq!(code(maps.list(&exact).await), 410);
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    for name in ["a", "b"] {
        maps.create(&PostParams::default(), &map(name, "1"))
            .await
            .unwrap();
    }
    let config = watcher::Config::default().streaming_lists();
    let mut events = watcher(maps.clone(), config).boxed();
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("c") {
        let event = timeout(SOON, events.try_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        seen.push(match event {
            Event::Init => "init".to_owned(),
            Event::InitApply(o) | Event::Apply(o) => o.name_any(),
            Event::InitDone => {
                maps.create(&PostParams::default(), &map("c", "1"))
                    .await
                    .unwrap();
                "done".to_owned()
            }
            Event::Delete(o) => format!("-{}", o.name_any()),
        });
    }
    assert_eq!(seen, ["init", "a", "b", "done", "c"]);
}

#[tokio::test]
async fn a_watcher_survives_whatever_the_server_does() {
    let mut cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    let (store, writer) = kube::runtime::reflector::store();
    let watched = watcher(maps.clone(), watcher::Config::default());
    let backed = kube::runtime::WatchStreamExt::backoff(watched, Short);
    let reflected = kube::runtime::reflector(writer, backed);
    let task = tokio::spawn(reflected.for_each(|_| std::future::ready(())));
    let sees = async |name: &'static str| {
        let maps = maps.clone();
        maps.create(&PostParams::default(), &map(name, "1"))
            .await
            .unwrap();
        eventually(name, async || {
            store.state().iter().find(|o| o.name_any() == name).cloned()
        })
        .await;
    };
    sees("before").await;
    cluster.server.faults().drop_watches();
    sees("after-drop").await;
    cluster.server.faults().expire();
    sees("after-expire").await;
    cluster.server.faults().expire_watches();
    sees("after-error").await;
    let address = cluster.url.trim_start_matches("http://").to_owned();
    cluster.server.stop();
    assert!(maps.get("before").await.is_err());
    // While nobody listens, the cluster goes on.
    let key =
        weft_tests::api::Key::new(&weft_tests::api::resources::CONFIGMAPS, "default", "before");
    cluster
        .server
        .registry()
        .delete(&key, &Default::default())
        .unwrap();
    cluster
        .server
        .restart(vec![TcpListener::bind(&address).unwrap()])
        .unwrap();
    sees("after-restart").await;
    eventually("the deletion", async || {
        store
            .state()
            .iter()
            .all(|o| o.name_any() != "before")
            .then_some(())
    })
    .await;
    task.abort();
}

/// Tries again soon, for tests.
struct Short;

impl Iterator for Short {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(20))
    }
}

impl kube::runtime::utils::Backoff for Short {
    fn reset(&mut self) {}
}

#[tokio::test]
async fn a_stalled_server_answers_later() {
    let cluster = Cluster::start();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "default");
    maps.create(&PostParams::default(), &map("a", "1"))
        .await
        .unwrap();
    cluster.server.faults().stall(true);
    let mut request = tokio::spawn(async move { maps.get("a").await });
    let early = timeout(Duration::from_millis(100), &mut request).await;
    assert!(early.is_err(), "it answered although stalled");
    cluster.server.faults().stall(false);
    timeout(SOON, request).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn watches_can_be_tables() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    maps.create(&PostParams::default(), &map("a", "1"))
        .await
        .unwrap();
    let request =
        http::Request::get("/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=1")
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(Vec::new())
            .unwrap();
    let text = timeout(SOON, client.request_text(request))
        .await
        .unwrap()
        .unwrap();
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first["type"], "ADDED");
    assert_eq!(first["object"]["kind"], "Table");
    assert_eq!(first["object"]["rows"][0]["cells"][0], "a");
}
