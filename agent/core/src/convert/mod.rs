//! From API objects to the model.
//!
//! The only code that reads what others wrote. It accepts what the API server accepts, and what it
//! once accepted and keeps (addresses with leading zeros, networks with host bits); it applies the
//! defaults that an API server would, so that raw manifests mean the same; and it never panics.
//!
//! What cannot be understood fails closed and is told:
//! - a peer, port or exception that makes no sense makes its peer or port match nothing;
//! - a requirement of the selector by which a policy selects its pods is left out, so that the
//!   policy isolates more pods rather than fewer;
//! - an object without a usable name is an error.

mod net;
mod node;
mod pod;
mod policy;
mod selector;
mod service;
mod slice;
#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use self::{
    node::node,
    pod::{namespace, pod},
    policy::network_policy,
    service::{service, service_cidr},
    slice::endpoint_slice,
};
use crate::model::{ObjectKey, Protocol, Warning};

/// A converted object, and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    /// The object.
    pub object: T,
    /// What was wrong with it, and was left out or read leniently.
    pub warnings: Vec<Warning>,
}

/// Why an object cannot be used at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// It has no name.
    #[error("a {kind} has no metadata.name; it is ignored until it is created again with a name")]
    NoName {
        /// Its kind.
        kind: &'static str,
    },
    /// It has no namespace, but its kind lives in one.
    #[error(
        "{kind} {name} has no metadata.namespace; it is ignored until it is created in a namespace"
    )]
    NoNamespace {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

/// Collects the warnings about one object.
struct Context {
    object: String,
    warnings: Vec<Warning>,
}

impl Context {
    fn namespaced(
        kind: &'static str,
        meta: &ObjectMeta,
    ) -> Result<(Self, ObjectKey), ConvertError> {
        let name = name_of(kind, meta)?;
        let namespace = match &meta.namespace {
            Some(namespace) if !namespace.is_empty() => namespace,
            _ => return Err(ConvertError::NoNamespace { kind, name }),
        };
        let key = ObjectKey::new(namespace, name);
        Ok((
            Self {
                object: format!("{kind} {key}"),
                warnings: Vec::new(),
            },
            key,
        ))
    }

    fn cluster_wide(kind: &'static str, meta: &ObjectMeta) -> Result<(Self, String), ConvertError> {
        let name = name_of(kind, meta)?;
        Ok((
            Self {
                object: format!("{kind} {name}"),
                warnings: Vec::new(),
            },
            name,
        ))
    }

    fn warn(&mut self, message: impl Into<String>) {
        self.warnings.push(Warning {
            object: self.object.clone(),
            message: message.into(),
        });
    }

    fn done<T>(self, object: T) -> Converted<T> {
        Converted {
            object,
            warnings: self.warnings,
        }
    }

    /// The protocol of a port; absent means TCP, as the API server would have filled in.
    fn protocol(&mut self, protocol: Option<&str>, port: &str) -> Option<Protocol> {
        let name = match protocol {
            None | Some("") => return Some(Protocol::Tcp),
            Some(name) => name,
        };
        let known = Protocol::from_name(name);
        if known.is_none() {
            self.warn(format!(
                "protocol {name:?} of {port} is not one of TCP, UDP, SCTP; the port is ignored"
            ));
        }
        known
    }

    /// A port number, which is at least 1.
    fn port_number(&mut self, number: i32, port: &str) -> Option<u16> {
        let valid = u16::try_from(number).ok().filter(|number| *number > 0);
        if valid.is_none() {
            self.warn(format!(
                "{number} of {port} is not a port number (1 to 65535); the port is ignored"
            ));
        }
        valid
    }
}

fn name_of(kind: &'static str, meta: &ObjectMeta) -> Result<String, ConvertError> {
    meta.name
        .clone()
        .filter(|name| !name.is_empty())
        .ok_or(ConvertError::NoName { kind })
}
