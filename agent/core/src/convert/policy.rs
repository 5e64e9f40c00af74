//! Network policies.

use k8s_openapi::{
    api::networking::v1, apimachinery::pkg::apis::meta::v1::LabelSelector,
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{
    Context, ConvertError, Converted, net,
    selector::{Unknown, selector},
};
use crate::model::{
    IpBlock, NamespaceScope, NetworkPolicy, ObjectKey, Peer, Peers, PolicyRule, PortMatch,
    PortSpec, Ports,
};

/// Converts a network policy.
///
/// # Errors
/// The policy has no name or no namespace.
pub fn network_policy(
    object: &v1::NetworkPolicy,
) -> Result<Converted<NetworkPolicy>, ConvertError> {
    let (mut context, key) = Context::namespaced("NetworkPolicy", &object.metadata)?;
    let default = v1::NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&default);
    let everything = LabelSelector::default();
    let pods = spec.pod_selector.as_ref().unwrap_or(&everything);
    let pods = selector(&mut context, pods, Unknown::IsLeftOut, "podSelector");
    let (isolates_ingress, isolates_egress) = directions(&mut context, spec);

    let ingress = isolates_ingress.then(|| {
        let rules = spec.ingress.iter().flatten().enumerate();
        rules
            .map(|(index, rule)| {
                let path = format!("ingress[{index}]");
                let (peers, ports) = (rule.from.as_deref(), rule.ports.as_deref());
                convert_rule(&mut context, &key, peers, ports, &path, "from")
            })
            .collect()
    });
    let egress = isolates_egress.then(|| {
        let rules = spec.egress.iter().flatten().enumerate();
        rules
            .map(|(index, rule)| {
                let path = format!("egress[{index}]");
                let (peers, ports) = (rule.to.as_deref(), rule.ports.as_deref());
                convert_rule(&mut context, &key, peers, ports, &path, "to")
            })
            .collect()
    });
    Ok(context.done(NetworkPolicy {
        key,
        pods,
        ingress,
        egress,
    }))
}

/// Which directions the policy isolates. Without policy types, what an API server fills in:
/// ingress, and egress if there are egress rules.
fn directions(context: &mut Context, spec: &v1::NetworkPolicySpec) -> (bool, bool) {
    let (mut ingress, mut egress) = (false, false);
    for policy_type in spec.policy_types.iter().flatten() {
        match policy_type.as_str() {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            other => context.warn(format!("policyTypes has {other:?}, which is ignored")),
        }
    }
    if ingress || egress {
        return (ingress, egress);
    }
    (
        true,
        spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    )
}

fn convert_rule(
    context: &mut Context,
    policy: &ObjectKey,
    peers: Option<&[v1::NetworkPolicyPeer]>,
    ports: Option<&[v1::NetworkPolicyPort]>,
    path: &str,
    list: &str,
) -> PolicyRule {
    let peers = match peers {
        None | Some([]) => Peers::Any,
        Some(peers) => {
            let peers = peers.iter().enumerate();
            let understood = peers.filter_map(|(index, peer)| {
                convert_peer(context, policy, peer, &format!("{path}.{list}[{index}]"))
            });
            Peers::Only(understood.collect())
        }
    };
    let ports = match ports {
        None | Some([]) => Ports::Any,
        Some(ports) => {
            let ports = ports.iter().enumerate();
            let understood = ports.filter_map(|(index, port)| {
                convert_port(context, port, &format!("{path}.ports[{index}]"))
            });
            Ports::Only(understood.collect())
        }
    };
    PolicyRule { peers, ports }
}

fn convert_peer(
    context: &mut Context,
    policy: &ObjectKey,
    peer: &v1::NetworkPolicyPeer,
    path: &str,
) -> Option<Peer> {
    let selectors = peer.namespace_selector.is_some() || peer.pod_selector.is_some();
    if let Some(block) = &peer.ip_block {
        if selectors {
            context.warn(format!(
                "{path} has both ipBlock and a selector; it matches nothing until it has one"
            ));
            return None;
        }
        return convert_block(context, block, path).map(Peer::Block);
    }
    if !selectors {
        context.warn(format!(
            "{path} has none of ipBlock, namespaceSelector, podSelector; it matches nothing"
        ));
        return None;
    }
    let unknown = Unknown::SelectsNothing;
    let pods = peer
        .pod_selector
        .as_ref()
        .map_or_else(Default::default, |pods| {
            selector(context, pods, unknown, &format!("{path}.podSelector"))
        });
    let namespaces = match &peer.namespace_selector {
        None => NamespaceScope::Own(policy.namespace.clone()),
        Some(namespaces) => {
            let role = format!("{path}.namespaceSelector");
            NamespaceScope::Matching(selector(context, namespaces, unknown, &role))
        }
    };
    Some(Peer::Pods { namespaces, pods })
}

fn convert_block(context: &mut Context, block: &v1::IPBlock, path: &str) -> Option<IpBlock> {
    let Some(cidr) = net::parse_network(&block.cidr) else {
        context.warn(format!(
            "{path}.ipBlock.cidr {:?} is not a network; the peer matches nothing",
            block.cidr
        ));
        return None;
    };
    let mut except = Vec::new();
    for text in block.except.iter().flatten() {
        let Some(network) = net::parse_network(text) else {
            context.warn(format!(
                "{path}.ipBlock.except has {text:?}, which is not a network; the peer matches \
                 nothing, because what it leaves out is not known"
            ));
            return None;
        };
        except.push(network);
    }
    except.sort();
    except.dedup();
    Some(IpBlock { cidr, except })
}

fn convert_port(
    context: &mut Context,
    port: &v1::NetworkPolicyPort,
    path: &str,
) -> Option<PortMatch> {
    let protocol = context.protocol(port.protocol.as_deref(), path)?;
    let port = match (&port.port, port.end_port) {
        (None, None) => PortSpec::All,
        (Some(IntOrString::Int(first)), None) => {
            let first = context.port_number(*first, path)?;
            PortSpec::Range(first, first)
        }
        (Some(IntOrString::Int(first)), Some(last)) => {
            let first = context.port_number(*first, path)?;
            let last = context.port_number(last, path)?;
            if last < first {
                context.warn(format!(
                    "{path}: endPort {last} is less than port {first}; it matches nothing"
                ));
                return None;
            }
            PortSpec::Range(first, last)
        }
        (Some(IntOrString::String(name)), None) => PortSpec::Named(name.clone()),
        (None | Some(IntOrString::String(_)), Some(_)) => {
            context.warn(format!(
                "{path} has endPort without a numeric port; it matches nothing"
            ));
            return None;
        }
    };
    Some(PortMatch { protocol, port })
}
