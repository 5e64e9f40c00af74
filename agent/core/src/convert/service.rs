//! Services, and the networks of their cluster addresses.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::{core::v1, networking::v1 as networking};

use super::{Context, ConvertError, Converted, net};
use crate::{
    model::{LoadBalancing, LoadBalancingReturn, Service, ServiceCidr, ServicePort},
    podnet,
};

/// Label of services that another proxy handles.
pub(super) const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// Annotation: how backends are chosen.
const LOAD_BALANCING: &str = "weft.dev/load-balancing";
/// Annotation: how backends answer clients from outside.
const LOAD_BALANCING_RETURN: &str = "weft.dev/load-balancing-return";
/// What an API server fills in for session affinity without a duration: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// Converts a service. One that no proxy handles (headless, `ExternalName`, labelled for another
/// proxy) has no cluster addresses.
///
/// # Errors
/// The service has no name or no namespace.
pub fn service(object: &v1::Service) -> Result<Converted<Service>, ConvertError> {
    let (mut context, key) = Context::namespaced("Service", &object.metadata)?;
    let meta = &object.metadata;
    let ignored = Service {
        key,
        ..Service::default()
    };
    let Some(spec) = &object.spec else {
        return Ok(context.done(ignored));
    };
    let mut labels = meta.labels.iter().flatten();
    let foreign = labels.any(|(label, _)| label == OTHER_PROXY);
    if foreign || spec.type_.as_deref() == Some("ExternalName") {
        return Ok(context.done(ignored));
    }
    let listed = spec.cluster_ips.iter().flatten();
    let cluster_ips = spec.cluster_ip.iter().chain(listed);
    let cluster_ips = cluster_ips.filter(|text| *text != "None");
    let cluster_ips = addresses(&mut context, "cluster IP", cluster_ips);
    if cluster_ips.is_empty() {
        return Ok(context.done(ignored));
    }
    let external = spec.external_ips.iter().flatten();
    let external_ips = reachable(&mut context, "externalIP", external, &cluster_ips);
    let ingress = object.status.iter().flat_map(|status| {
        let balancer = status.load_balancer.iter();
        balancer.flat_map(|balancer| balancer.ingress.iter().flatten())
    });
    // What a load balancer that is a proxy has is not for nodes to take.
    let vips = ingress
        .filter(|ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"))
        .filter_map(|ingress| ingress.ip.as_ref());
    let load_balancer_ips = reachable(&mut context, "load balancer IP", vips, &cluster_ips);
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let health_check = spec.health_check_node_port.filter(|port| *port != 0);
    let health_check = health_check.filter(|_| balanced && external_local);
    let annotation = |name: &str| meta.annotations.as_ref()?.get(name).map(|text| text.trim());
    let service = Service {
        created: meta
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        load_balancer_ips,
        external_ips,
        ports: ports(&mut context, spec),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local,
        health_check_node_port: health_check
            .and_then(|port| context.port_number(port, "healthCheckNodePort"))
            .unwrap_or(0),
        source_ranges: source_ranges(&mut context, spec),
        affinity_seconds: affinity(&mut context, spec),
        load_balancing: choice(
            &mut context,
            (LOAD_BALANCING, annotation(LOAD_BALANCING)),
            "random, maglev",
            LoadBalancing::from_name,
        ),
        load_balancing_return: choice(
            &mut context,
            (LOAD_BALANCING_RETURN, annotation(LOAD_BALANCING_RETURN)),
            "snat, direct",
            LoadBalancingReturn::from_name,
        ),
        cluster_ips,
        ..ignored
    };
    Ok(context.done(service))
}

/// Converts a ServiceCIDR.
///
/// # Errors
/// It has no name.
pub fn service_cidr(
    object: &networking::ServiceCIDR,
) -> Result<Converted<ServiceCidr>, ConvertError> {
    let (mut context, name) = Context::cluster_wide("ServiceCIDR", &object.metadata)?;
    let listed = object.spec.iter().flat_map(|spec| spec.cidrs.iter());
    let mut cidrs = Vec::new();
    for text in listed.flatten() {
        match net::parse_network(text) {
            Some(network) => cidrs.push(network),
            None => context.warn(format!("{text:?} is not a network; it is ignored")),
        }
    }
    Ok(context.done(ServiceCidr { name, cidrs }))
}

fn addresses<'a>(
    context: &mut Context,
    what: &str,
    texts: impl Iterator<Item = &'a String>,
) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for text in texts.filter(|text| !text.is_empty()) {
        match net::parse_address(text) {
            Some(address) if found.contains(&address) => {}
            Some(address) => found.push(address),
            None => context.warn(format!("{what} {text:?} is not an address; it is ignored")),
        }
    }
    found
}

/// Addresses at which clients from outside may find a service of these families.
fn reachable<'a>(
    context: &mut Context,
    what: &str,
    texts: impl Iterator<Item = &'a String>,
    cluster_ips: &[IpAddr],
) -> Vec<IpAddr> {
    let mut found = addresses(context, what, texts);
    found.retain(|address| {
        let family = |ip: &IpAddr| ip.is_ipv4() == address.is_ipv4();
        let why = if podnet::is_reserved(*address) {
            "means something else on every node"
        } else if !cluster_ips.iter().any(family) {
            "is of a family that the service has no cluster IP of"
        } else {
            return true;
        };
        context.warn(format!("{what} {address} {why}; it is ignored"));
        false
    });
    found
}

fn ports(context: &mut Context, spec: &v1::ServiceSpec) -> Vec<ServicePort> {
    let mut found = Vec::new();
    for port in spec.ports.iter().flatten() {
        let name = port.name.clone().unwrap_or_default();
        let what = format!("port {name:?}");
        let protocol = context.protocol(port.protocol.as_deref(), &what);
        let number = context.port_number(port.port, &what);
        let node_port = port.node_port.filter(|number| *number != 0);
        let node_port =
            node_port.and_then(|number| context.port_number(number, "the node port of a port"));
        if let (Some(protocol), Some(port)) = (protocol, number) {
            found.push(ServicePort {
                name,
                protocol,
                port,
                node_port: node_port.unwrap_or(0),
            });
        }
    }
    found
}

/// Who may use the load balancers' addresses: of what cannot be understood, nobody.
fn source_ranges(context: &mut Context, spec: &v1::ServiceSpec) -> Option<Vec<IpNet>> {
    let listed = spec.load_balancer_source_ranges.iter().flatten();
    let mut given = listed.map(|text| text.trim()).peekable();
    given.peek()?;
    let mut found = Vec::new();
    for text in given {
        match net::parse_network(text) {
            Some(network) => found.push(network),
            None => context.warn(format!(
                "loadBalancerSourceRanges {text:?} is not a network; it lets nobody in"
            )),
        }
    }
    Some(found)
}

/// The value of an annotation that has only these.
fn choice<T>(
    context: &mut Context,
    (name, value): (&str, Option<&str>),
    known: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let value = value?;
    let read = read(value);
    if read.is_none() {
        context.warn(format!(
            "annotation {name}: {value:?} is not one of {known}; the agent's default is used"
        ));
    }
    read
}

fn affinity(context: &mut Context, spec: &v1::ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let configured = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client_ip| client_ip.timeout_seconds);
    let Some(seconds) = configured else {
        return DEFAULT_AFFINITY_SECONDS;
    };
    match u32::try_from(seconds) {
        Ok(seconds) if seconds > 0 => seconds,
        _ => {
            context.warn(format!(
                "sessionAffinityConfig.clientIP.timeoutSeconds {seconds} is not a duration; \
                 {DEFAULT_AFFINITY_SECONDS} is used"
            ));
            DEFAULT_AFFINITY_SECONDS
        }
    }
}
