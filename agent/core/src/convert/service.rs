//! Services.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::{Context, ConvertError, Converted, net};
use crate::model::{Service, ServicePort};

/// Label of services that another proxy handles.
pub(super) const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// What an API server fills in for session affinity without a duration: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// Converts a service. One that no proxy handles (headless, `ExternalName`, labelled for another
/// proxy) has no cluster addresses.
///
/// # Errors
/// The service has no name or no namespace.
pub fn service(object: &v1::Service) -> Result<Converted<Service>, ConvertError> {
    let (mut context, key) = Context::namespaced("Service", &object.metadata)?;
    let Some(spec) = &object.spec else {
        return Ok(context.done(Service {
            key,
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            internal_local: false,
            affinity_seconds: 0,
        }));
    };
    let labels = object.metadata.labels.iter().flatten();
    let foreign = labels.clone().any(|(label, _)| label == OTHER_PROXY)
        || spec.type_.as_deref() == Some("ExternalName");
    let service = Service {
        key,
        cluster_ips: if foreign {
            Vec::new()
        } else {
            cluster_ips(&mut context, spec)
        },
        ports: ports(&mut context, spec),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        affinity_seconds: affinity(&mut context, spec),
    };
    Ok(context.done(service))
}

fn cluster_ips(context: &mut Context, spec: &v1::ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.iter().flatten();
    let mut found = Vec::new();
    for text in spec.cluster_ip.iter().chain(listed) {
        if text.is_empty() || text == "None" {
            continue;
        }
        match net::parse_address(text) {
            Some(address) if found.contains(&address) => {}
            Some(address) => found.push(address),
            None => context.warn(format!(
                "cluster IP {text:?} is not an address; it is ignored"
            )),
        }
    }
    found
}

fn ports(context: &mut Context, spec: &v1::ServiceSpec) -> Vec<ServicePort> {
    let mut found = Vec::new();
    for port in spec.ports.iter().flatten() {
        let name = port.name.clone().unwrap_or_default();
        let what = format!("port {name:?}");
        let protocol = context.protocol(port.protocol.as_deref(), &what);
        let number = context.port_number(port.port, &what);
        if let (Some(protocol), Some(port)) = (protocol, number) {
            found.push(ServicePort {
                name,
                protocol,
                port,
            });
        }
    }
    found
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
