//! Services as their API is documented: addresses, ports, types, and what becomes of them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use weft_tests::controllers::Settings;

use crate::{Cluster, code, eventually};

async fn create(client: &Client, name: &str, spec: Value) -> kube::Result<Service> {
    let api: Api<Service> = Api::namespaced(client.clone(), "default");
    let object = json!({ "metadata": { "name": name }, "spec": spec });
    let object = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &object).await
}

async fn change(client: &Client, name: &str, spec: Value) -> kube::Result<Service> {
    let api: Api<Service> = Api::namespaced(client.clone(), "default");
    let patch = Patch::Merge(json!({ "spec": spec }));
    api.patch(name, &PatchParams::default(), &patch).await
}

fn spec(service: &Service) -> Value {
    serde_json::to_value(service.spec.as_ref().unwrap()).unwrap()
}

fn address(service: &Service) -> String {
    spec(service)["clusterIP"].as_str().unwrap().to_owned()
}

async fn range(client: &Client, name: &str, cidrs: &[&str]) -> kube::Result<ServiceCIDR> {
    let object = json!({ "metadata": { "name": name }, "spec": { "cidrs": cidrs } });
    let object = serde_json::from_value(object).unwrap();
    let api: Api<ServiceCIDR> = Api::all(client.clone());
    api.create(&PostParams::default(), &object).await
}

#[tokio::test]
async fn ranges_that_are_added_give_addresses_and_wait_for_them_to_be_free() {
    let cluster = Cluster::with_controllers();
    let client = cluster.client();
    let ranges: Api<ServiceCIDR> = Api::all(client.clone());
    let first = ranges.get("kubernetes").await.unwrap();
    assert_eq!(first.spec.unwrap().cidrs.unwrap(), ["10.96.0.0/16"]);

    let asked = json!({ "clusterIP": "203.0.113.7", "ports": [{ "port": 80 }] });
    assert_eq!(code(create(&client, "a", asked.clone()).await), 422);
    range(&client, "more", &["203.0.113.0/24"]).await.unwrap();
    assert_eq!(code(range(&client, "odd", &["203.0.113.1/24"]).await), 422);
    let is_ready = async |name: &str| {
        let status = ranges.get_opt(name).await.unwrap()?.status?;
        let conditions = status.conditions.unwrap_or_default();
        let ready = conditions.iter().find(|c| c.type_ == "Ready")?;
        Some(ready.status == "True")
    };
    eventually("the range is ready", async || {
        is_ready("more").await.filter(|ready| *ready)
    })
    .await;
    create(&client, "a", asked).await.unwrap();
    let addresses: Api<IPAddress> = Api::all(client.clone());
    let taken = addresses.get("203.0.113.7").await.unwrap();
    let parent = taken.spec.unwrap().parent_ref;
    assert_eq!(
        (parent.resource.as_str(), parent.name.as_str()),
        ("services", "a")
    );

    // It is held back as long as a Service has an address that is in no other range.
    ranges
        .delete("more", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the range is not ready any more", async || {
        is_ready("more").await.filter(|ready| !ready)
    })
    .await;
    let late = json!({ "clusterIP": "203.0.113.8", "ports": [{ "port": 80 }] });
    assert_eq!(code(create(&client, "b", late).await), 422);
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    services
        .delete("a", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the range is gone", async || {
        ranges
            .get_opt("more")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert_eq!(code(addresses.get("203.0.113.7").await), 404);
}

#[tokio::test]
async fn an_address_that_a_user_took_is_nobody_elses() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let addresses: Api<IPAddress> = Api::all(client.clone());
    let object = json!({
        "metadata": { "name": "10.96.0.99" },
        "spec": { "parentRef": { "resource": "configmaps", "name": "a", "namespace": "default" } },
    });
    let object = serde_json::from_value(object).unwrap();
    addresses
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
    let asked = json!({ "clusterIP": "10.96.0.99", "ports": [{ "port": 80 }] });
    assert_eq!(code(create(&client, "a", asked.clone()).await), 422);
    addresses
        .delete("10.96.0.99", &DeleteParams::default())
        .await
        .unwrap();
    create(&client, "a", asked).await.unwrap();
}

#[tokio::test]
async fn a_service_goes_through_all_its_types() {
    let cluster = Cluster::start();
    let client = cluster.client();
    let alias = json!({ "type": "ExternalName", "externalName": "example.org",
                        "selector": { "app": "a" } });
    let alias = create(&client, "a", alias).await.unwrap();
    assert!(spec(&alias)["clusterIP"].is_null());
    let ports = json!([{ "name": "t", "port": 80, "protocol": "TCP" },
                       { "name": "u", "port": 80, "protocol": "UDP" }]);
    let inner = json!({ "type": "ClusterIP", "externalName": null, "ports": ports });
    let inner = change(&client, "a", inner).await.unwrap();
    assert!(address(&inner).starts_with("10.96."));
    assert_eq!(spec(&inner)["internalTrafficPolicy"], "Cluster");
    let nodes = change(&client, "a", json!({ "type": "NodePort" }))
        .await
        .unwrap();
    let numbers: Vec<i64> = spec(&nodes)["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| port["nodePort"].as_i64().unwrap())
        .collect();
    assert!(numbers.iter().all(|n| (30000..=32767).contains(n)));
    assert_eq!(address(&nodes), address(&inner));
    let balanced = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local",
                           "sessionAffinity": "ClientIP" });
    let balanced = change(&client, "a", balanced).await.unwrap();
    assert_eq!(spec(&balanced)["ports"][0]["nodePort"], numbers[0]);
    assert_eq!(spec(&balanced)["allocateLoadBalancerNodePorts"], true);
    let check = spec(&balanced)["healthCheckNodePort"].as_i64().unwrap();
    assert!(!numbers.contains(&check));
    let timeout = &spec(&balanced)["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    assert_eq!(*timeout, 10800);

    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let ingress = json!([{ "ip": "203.0.113.5" }]);
    let status = Patch::Merge(json!({ "status": { "loadBalancer": { "ingress": ingress } } }));
    let parameters = PatchParams::default();
    let seen = services.patch_status("a", &parameters, &status).await;
    let ingress = seen.unwrap().status.unwrap().load_balancer.unwrap().ingress;
    assert_eq!(ingress.unwrap()[0].ip_mode.as_deref(), Some("VIP"));

    let back = change(&client, "a", json!({ "type": "ClusterIP" }))
        .await
        .unwrap();
    let seen = spec(&back);
    for gone in [
        "healthCheckNodePort",
        "externalTrafficPolicy",
        "allocateLoadBalancerNodePorts",
    ] {
        assert!(seen[gone].is_null(), "{gone}");
    }
    assert!(seen["ports"][0]["nodePort"].is_null());
    let balancer = back.status.unwrap().load_balancer.unwrap_or_default();
    assert_eq!(balancer.ingress.unwrap_or_default(), []);
    assert_eq!(
        code(services.patch_status("a", &parameters, &status).await),
        422,
        "only load balancers have such"
    );
    // All ports are free again.
    for (name, number) in [("b", numbers[0]), ("c", check)] {
        let ports = json!([{ "port": 80, "nodePort": number }]);
        let asked = json!({ "type": "NodePort", "ports": ports });
        create(&client, name, asked).await.unwrap();
    }
    let gone = json!({ "type": "ExternalName", "externalName": "example.org" });
    let gone = change(&client, "a", gone).await.unwrap();
    assert!(spec(&gone)["clusterIP"].is_null());
    let addresses: Api<IPAddress> = Api::all(client.clone());
    let left = addresses.list(&ListParams::default()).await.unwrap();
    assert_eq!(left.items.len(), 2);
}

#[tokio::test]
async fn load_balancers_have_an_address_of_each_family_while_they_are_such() {
    let settings = Settings {
        load_balancers: vec!["203.0.113.0/31".parse().unwrap()],
        ..Settings::default()
    };
    let cluster = Cluster::controlled(settings);
    let client = cluster.client();
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let balanced = json!({ "type": "LoadBalancer", "ports": [{ "port": 80 }] });
    let ingress = async |name: &str| -> Option<IpAddr> {
        let status = services.get(name).await.unwrap().status?;
        let entry = status.load_balancer?.ingress?.into_iter().next()?;
        entry.ip?.parse().ok()
    };
    create(&client, "a", balanced.clone()).await.unwrap();
    let first = eventually("an address", async || ingress("a").await).await;
    create(&client, "b", balanced.clone()).await.unwrap();
    let mut other = balanced.clone();
    other["loadBalancerClass"] = "example.org/other".into();
    create(&client, "c", other).await.unwrap();
    // The range has no other one; it is the next one's when the first has no use for it.
    change(&client, "a", json!({ "type": "ClusterIP" }))
        .await
        .unwrap();
    let second = eventually("the address", async || ingress("b").await).await;
    assert_eq!(first, second);
    assert_eq!(ingress("a").await, None);
    assert_eq!(ingress("c").await, None, "it is another implementation's");
    let names = services.list(&ListParams::default()).await.unwrap();
    assert_eq!(
        names
            .iter()
            .map(kube::ResourceExt::name_any)
            .collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
}

#[tokio::test]
async fn events_are_the_same_in_both_of_their_apis() {
    use k8s_openapi::api::core::v1::Event as OldEvent;
    use k8s_openapi::api::events::v1::Event;

    let cluster = Cluster::start();
    let client = cluster.client();
    let new: Api<Event> = Api::namespaced(client.clone(), "default");
    let old: Api<OldEvent> = Api::namespaced(client, "default");
    let mut event = json!({
        "metadata": { "name": "e" },
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "regarding": { "kind": "Service", "namespace": "default", "name": "s" },
        "note": "no port", "reason": "Failed", "action": "Listen", "type": "Warning",
        "reportingController": "weft", "reportingInstance": "node1",
    });
    let object: Event = serde_json::from_value(event.clone()).unwrap();
    new.create(&PostParams::default(), &object).await.unwrap();
    let seen = old.get("e").await.unwrap();
    assert_eq!(seen.message.as_deref(), Some("no port"));
    assert_eq!(seen.involved_object.name.as_deref(), Some("s"));
    let warnings = ListParams::default().fields("involvedObject.name=s,type=Warning");
    assert_eq!(old.list(&warnings).await.unwrap().items.len(), 1);
    old.delete("e", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(new.get("e").await), 404);
    event.as_object_mut().unwrap().remove("action");
    let object: Event = serde_json::from_value(event).unwrap();
    assert_eq!(code(new.create(&PostParams::default(), &object).await), 422);
}
