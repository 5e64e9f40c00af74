//! Endpoint slices.

use k8s_openapi::{api::discovery::v1, jiff::Timestamp};

use super::{Context, ConvertError, Converted, net};
use crate::{
    model::{EndpointSlice, Hints, SliceEndpoint, SlicePort},
    name::Name,
};

/// Label that names the service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of the slices of headless services, which no proxy handles.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Annotation that says when what the slice tells happened.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Converts an endpoint slice. One that no proxy handles (no service, a headless one, host names
/// instead of addresses) has no service and no endpoints.
///
/// # Errors
/// The slice has no name or no namespace.
pub fn endpoint_slice(
    object: &v1::EndpointSlice,
) -> Result<Converted<EndpointSlice>, ConvertError> {
    let (mut context, key) = Context::namespaced("EndpointSlice", &object.metadata)?;
    let label = |name: &str| {
        object
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(name))
    };
    let service = label(SERVICE_NAME).filter(|name| !name.is_empty()).cloned();
    let ipv4 = match object.address_type.as_str() {
        "IPv4" => Some(true),
        "IPv6" => Some(false),
        "FQDN" => None,
        other => {
            context.warn(format!(
                "addressType {other:?} is unknown; the slice is ignored"
            ));
            None
        }
    };
    let (Some(ipv4), Some(service), None) = (ipv4, service, label(HEADLESS)) else {
        return Ok(context.done(EndpointSlice {
            key,
            ..EndpointSlice::default()
        }));
    };
    let ports = ports(&mut context, object);
    let endpoints = object
        .endpoints
        .iter()
        .filter_map(|endpoint| self::endpoint(&mut context, endpoint, ipv4))
        .collect();
    let annotations = object.metadata.annotations.as_ref();
    let triggered = annotations
        .and_then(|annotations| annotations.get(TRIGGERED)?.parse::<Timestamp>().ok())
        .map(Timestamp::as_microsecond);
    Ok(context.done(EndpointSlice {
        key,
        service: Some(service),
        ports,
        endpoints,
        triggered,
    }))
}

fn ports(context: &mut Context, object: &v1::EndpointSlice) -> Vec<SlicePort> {
    let mut found = Vec::new();
    for port in object.ports.iter().flatten() {
        // No number means every port, which a service port cannot be balanced to.
        let Some(number) = port.port.filter(|number| *number != 0) else {
            continue;
        };
        let name = port.name.clone().unwrap_or_default();
        let what = format!("port {name:?}");
        let protocol = context.protocol(port.protocol.as_deref(), &what);
        let number = context.port_number(number, &what);
        if let (Some(protocol), Some(port)) = (protocol, number) {
            found.push(SlicePort {
                name,
                protocol,
                port,
            });
        }
    }
    found
}

fn endpoint(context: &mut Context, endpoint: &v1::Endpoint, ipv4: bool) -> Option<SliceEndpoint> {
    // Further addresses are alternatives for the same endpoint: no proxy uses them.
    let text = endpoint.addresses.first()?;
    let address = net::parse_address(text).filter(|address| address.is_ipv4() == ipv4);
    let Some(address) = address else {
        context.warn(format!(
            "address {text:?} is not an address of the slice's family; the endpoint is ignored"
        ));
        return None;
    };
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true);
    Some(SliceEndpoint {
        address,
        ready,
        serving: conditions
            .and_then(|conditions| conditions.serving)
            .unwrap_or(true),
        terminating: conditions
            .and_then(|conditions| conditions.terminating)
            .unwrap_or(false),
        node: name(endpoint.node_name.as_deref().unwrap_or_default()),
        hints: endpoint.hints.as_ref().and_then(hints),
    })
}

fn name(text: &str) -> Option<Name> {
    (!text.is_empty()).then(|| text.into())
}

fn hints(hints: &v1::EndpointHints) -> Option<Box<Hints>> {
    let zones = hints.for_zones.iter().flatten();
    let nodes = hints.for_nodes.iter().flatten();
    let hints = Hints {
        zones: zones.filter_map(|zone| name(&zone.name)).collect(),
        nodes: nodes.filter_map(|node| name(&node.name)).collect(),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}
