//! The resources that are served: one table, from which paths, discovery, decoding, defaulting,
//! validation and printing follow. A new resource is a new entry here.

use std::cmp::Ordering;
use std::fmt;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event as NewEvent;
use k8s_openapi::api::networking::v1::{IPAddress, NetworkPolicy, ServiceCIDR};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde_json::Value;

use super::decode::{self, Decode};
use super::defaults;
use super::status::Cause;
use super::table::{self, Column};
use super::validate::{self, NameRule};

/// One kind of object and how it is served.
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Name for one, in `kubectl`.
    pub singular: &'static str,
    /// The objects' `kind`.
    pub kind: &'static str,
    /// Abbreviations in `kubectl`.
    pub short_names: &'static [&'static str],
    /// Whether `kubectl get all` shows it.
    pub in_all: bool,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether there is a `status` subresource.
    pub has_status: bool,
    /// Whether there is a `scale` subresource.
    pub has_scale: bool,
    /// Whether `metadata.generation` counts changes of the specification.
    pub has_generation: bool,
    /// Field selectors besides name and namespace.
    pub fields: &'static [&'static str],
    /// What names are allowed.
    pub names: NameRule,
    /// Brings a value into the shape of the type.
    pub decode: Decode,
    /// Fills in what the user left out.
    pub defaults: fn(&mut Value),
    /// Finds what is wrong, in an object with its defaults.
    pub validate: fn(&Value, &mut Vec<Cause>),
    /// Finds what may not change, given the old and the new object.
    pub immutable: fn(&Value, &Value, &mut Vec<Cause>),
    /// The columns of `kubectl get`, between name and age.
    pub columns: &'static [Column],
}

const BASE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "",
    singular: "",
    kind: "",
    short_names: &[],
    in_all: false,
    namespaced: true,
    has_status: false,
    has_scale: false,
    has_generation: false,
    fields: &[],
    names: NameRule::Subdomain,
    decode: decode::as_it_is,
    defaults: |_| (),
    validate: |_, _| (),
    immutable: |_, _, _| (),
    columns: &[],
};

/// Namespaces.
pub static NAMESPACES: Resource = Resource {
    plural: "namespaces",
    singular: "namespace",
    kind: "Namespace",
    short_names: &["ns"],
    namespaced: false,
    has_status: true,
    fields: &["status.phase"],
    names: NameRule::Label,
    decode: decode::typed::<Namespace>,
    defaults: defaults::namespace,
    columns: table::NAMESPACE,
    ..BASE
};

/// Nodes.
pub static NODES: Resource = Resource {
    plural: "nodes",
    singular: "node",
    kind: "Node",
    short_names: &["no"],
    namespaced: false,
    has_status: true,
    fields: &["spec.unschedulable"],
    decode: decode::typed::<Node>,
    validate: validate::node,
    immutable: validate::node_update,
    columns: table::NODE,
    ..BASE
};

/// Pods.
pub static PODS: Resource = Resource {
    plural: "pods",
    singular: "pod",
    kind: "Pod",
    short_names: &["po"],
    in_all: true,
    has_status: true,
    fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ],
    decode: decode::typed::<Pod>,
    defaults: defaults::pod,
    validate: validate::pod,
    immutable: validate::pod_update,
    columns: table::POD,
    ..BASE
};

/// Services.
pub static SERVICES: Resource = Resource {
    plural: "services",
    singular: "service",
    kind: "Service",
    short_names: &["svc"],
    in_all: true,
    has_status: true,
    fields: &["spec.clusterIP", "spec.type"],
    names: NameRule::ServiceName,
    decode: decode::typed::<Service>,
    defaults: defaults::service,
    validate: validate::service,
    immutable: validate::service_update,
    columns: table::SERVICE,
    ..BASE
};

/// Endpoints, the deprecated predecessor of EndpointSlices.
pub static ENDPOINTS: Resource = Resource {
    plural: "endpoints",
    singular: "endpoints",
    kind: "Endpoints",
    short_names: &["ep"],
    decode: decode::typed::<Endpoints>,
    columns: table::ENDPOINTS,
    ..BASE
};

/// Config maps.
pub static CONFIGMAPS: Resource = Resource {
    plural: "configmaps",
    singular: "configmap",
    kind: "ConfigMap",
    short_names: &["cm"],
    decode: decode::typed::<ConfigMap>,
    columns: table::CONFIGMAP,
    ..BASE
};

/// Secrets.
pub static SECRETS: Resource = Resource {
    plural: "secrets",
    singular: "secret",
    kind: "Secret",
    fields: &["type"],
    decode: decode::typed::<Secret>,
    defaults: defaults::secret,
    columns: table::SECRET,
    ..BASE
};

/// Service accounts.
pub static SERVICEACCOUNTS: Resource = Resource {
    plural: "serviceaccounts",
    singular: "serviceaccount",
    kind: "ServiceAccount",
    short_names: &["sa"],
    decode: decode::typed::<ServiceAccount>,
    columns: table::SERVICEACCOUNT,
    ..BASE
};

/// Events.
pub static EVENTS: Resource = Resource {
    plural: "events",
    singular: "event",
    kind: "Event",
    short_names: &["ev"],
    fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    decode: decode::typed::<Event>,
    columns: table::EVENT,
    ..BASE
};

/// Events again: the API of those who record them.
pub static NEW_EVENTS: Resource = Resource {
    group: "events.k8s.io",
    plural: "events",
    singular: "event",
    kind: "Event",
    short_names: &["ev"],
    fields: &["reason", "reportingController", "type"],
    decode: decode::typed::<NewEvent>,
    validate: validate::new_event,
    columns: table::NEW_EVENT,
    ..BASE
};

/// Endpoint slices.
pub static ENDPOINTSLICES: Resource = Resource {
    group: "discovery.k8s.io",
    plural: "endpointslices",
    singular: "endpointslice",
    kind: "EndpointSlice",
    has_generation: true,
    decode: decode::typed::<EndpointSlice>,
    defaults: defaults::endpoint_slice,
    validate: validate::endpoint_slice,
    immutable: validate::endpoint_slice_update,
    columns: table::ENDPOINTSLICE,
    ..BASE
};

/// Network policies.
pub static NETWORKPOLICIES: Resource = Resource {
    group: "networking.k8s.io",
    plural: "networkpolicies",
    singular: "networkpolicy",
    kind: "NetworkPolicy",
    short_names: &["netpol"],
    has_generation: true,
    decode: decode::typed::<NetworkPolicy>,
    defaults: defaults::network_policy,
    validate: validate::network_policy,
    columns: table::NETWORKPOLICY,
    ..BASE
};

/// The ranges that ClusterIPs come from.
pub static SERVICECIDRS: Resource = Resource {
    group: "networking.k8s.io",
    plural: "servicecidrs",
    singular: "servicecidr",
    kind: "ServiceCIDR",
    namespaced: false,
    has_status: true,
    has_generation: true,
    decode: decode::typed::<ServiceCIDR>,
    validate: validate::service_cidr,
    immutable: validate::service_cidr_update,
    columns: table::SERVICECIDR,
    ..BASE
};

/// Addresses in use by Services.
pub static IPADDRESSES: Resource = Resource {
    group: "networking.k8s.io",
    plural: "ipaddresses",
    singular: "ipaddress",
    kind: "IPAddress",
    short_names: &["ip"],
    namespaced: false,
    has_generation: true,
    names: NameRule::PathSegment,
    decode: decode::typed::<IPAddress>,
    validate: validate::ip_address,
    immutable: validate::ip_address_update,
    columns: table::IPADDRESS,
    ..BASE
};

/// Deployments.
pub static DEPLOYMENTS: Resource = Resource {
    group: "apps",
    plural: "deployments",
    singular: "deployment",
    kind: "Deployment",
    short_names: &["deploy"],
    in_all: true,
    has_status: true,
    has_scale: true,
    has_generation: true,
    decode: decode::typed::<Deployment>,
    defaults: defaults::deployment,
    validate: validate::workload,
    immutable: validate::workload_update,
    columns: table::DEPLOYMENT,
    ..BASE
};

/// Replica sets.
pub static REPLICASETS: Resource = Resource {
    group: "apps",
    plural: "replicasets",
    singular: "replicaset",
    kind: "ReplicaSet",
    short_names: &["rs"],
    in_all: true,
    has_status: true,
    has_scale: true,
    has_generation: true,
    fields: &["status.replicas"],
    decode: decode::typed::<ReplicaSet>,
    defaults: defaults::replica_set,
    validate: validate::workload,
    immutable: validate::workload_update,
    columns: table::REPLICASET,
    ..BASE
};

/// Daemon sets.
pub static DAEMONSETS: Resource = Resource {
    group: "apps",
    plural: "daemonsets",
    singular: "daemonset",
    kind: "DaemonSet",
    short_names: &["ds"],
    in_all: true,
    has_status: true,
    has_generation: true,
    decode: decode::typed::<DaemonSet>,
    defaults: defaults::daemon_set,
    validate: validate::workload,
    immutable: validate::workload_update,
    columns: table::DAEMONSET,
    ..BASE
};

/// Cluster roles. Nothing is authorised by them here; manifests contain them.
pub static CLUSTERROLES: Resource = Resource {
    group: "rbac.authorization.k8s.io",
    plural: "clusterroles",
    singular: "clusterrole",
    kind: "ClusterRole",
    namespaced: false,
    names: NameRule::PathSegment,
    decode: decode::typed::<ClusterRole>,
    ..BASE
};

/// Cluster role bindings.
pub static CLUSTERROLEBINDINGS: Resource = Resource {
    group: "rbac.authorization.k8s.io",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    kind: "ClusterRoleBinding",
    namespaced: false,
    names: NameRule::PathSegment,
    decode: decode::typed::<ClusterRoleBinding>,
    columns: table::ROLEBINDING,
    ..BASE
};

/// Roles.
pub static ROLES: Resource = Resource {
    group: "rbac.authorization.k8s.io",
    plural: "roles",
    singular: "role",
    kind: "Role",
    names: NameRule::PathSegment,
    decode: decode::typed::<Role>,
    ..BASE
};

/// Role bindings.
pub static ROLEBINDINGS: Resource = Resource {
    group: "rbac.authorization.k8s.io",
    plural: "rolebindings",
    singular: "rolebinding",
    kind: "RoleBinding",
    names: NameRule::PathSegment,
    decode: decode::typed::<RoleBinding>,
    columns: table::ROLEBINDING,
    ..BASE
};

/// Leases.
pub static LEASES: Resource = Resource {
    group: "coordination.k8s.io",
    plural: "leases",
    singular: "lease",
    kind: "Lease",
    decode: decode::typed::<Lease>,
    columns: table::LEASE,
    ..BASE
};

/// Everything that is served.
pub static ALL: &[&Resource] = &[
    &NAMESPACES,
    &NODES,
    &PODS,
    &SERVICES,
    &ENDPOINTS,
    &CONFIGMAPS,
    &SECRETS,
    &SERVICEACCOUNTS,
    &EVENTS,
    &ENDPOINTSLICES,
    &NETWORKPOLICIES,
    &SERVICECIDRS,
    &IPADDRESSES,
    &DEPLOYMENTS,
    &REPLICASETS,
    &DAEMONSETS,
    &CLUSTERROLES,
    &CLUSTERROLEBINDINGS,
    &ROLES,
    &ROLEBINDINGS,
    &LEASES,
    &NEW_EVENTS,
];

impl Resource {
    /// The resource of a path.
    #[must_use]
    pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        ALL.iter()
            .copied()
            .find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    /// The resource of an object.
    #[must_use]
    pub fn of_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
        ALL.iter()
            .copied()
            .find(|r| r.kind == kind && r.api_version() == api_version)
    }

    /// The objects' `apiVersion`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The name with its group, as in messages: `deployments.apps`.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    fn id(&self) -> (&'static str, &'static str) {
        (self.group, self.plural)
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.qualified())
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Resource {}

impl PartialOrd for Resource {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Resource {
    fn cmp(&self, other: &Self) -> Ordering {
        self.id().cmp(&other.id())
    }
}

impl std::hash::Hash for Resource {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.id().hash(state);
    }
}
