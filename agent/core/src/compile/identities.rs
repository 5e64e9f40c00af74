//! Identities: which atoms of the local policies match an address.
//!
//! Pods are matched by class: those of one namespace that agree on the labels and port names that
//! some atom reads are the same to all of them, and are matched once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::sets::{Atom, PolicySet, Projection, Who, values_of};
use crate::{
    model::{ClusterState, IpBlock, NamespaceScope, Peer, Pod, PortName},
    selector::Selector,
};

/// Index of an atom; atoms are numbered in their own order.
pub type AtomIndex = usize;

/// One atom that matches an address, with the port number that it resolves (0 for atoms without a
/// port name).
pub type Element = (AtomIndex, u16);

/// The atoms of all policy sets of this node.
pub struct Atoms {
    list: Vec<Arc<Atom>>,
    index: BTreeMap<Arc<Atom>, AtomIndex>,
}

impl Atoms {
    /// The atoms that the sets refer to.
    pub fn of<'a>(sets: impl Iterator<Item = &'a Arc<PolicySet>>) -> Self {
        let sides = sets.flat_map(|set| set.sides().map(|(_, side)| side));
        let grants = sides.flat_map(|side| &side.grants);
        let found: BTreeSet<_> = grants
            .filter_map(|grant| match &grant.who {
                Who::Anyone => None,
                Who::Matching(atom) => Some(Arc::clone(atom)),
            })
            .collect();
        let list: Vec<_> = found.into_iter().collect();
        let index = list
            .iter()
            .enumerate()
            .map(|(index, atom)| (Arc::clone(atom), index))
            .collect();
        Self { list, index }
    }

    /// An atom.
    pub fn get(&self, index: AtomIndex) -> Option<&Arc<Atom>> {
        self.list.get(index)
    }

    /// The index of an atom.
    pub fn index_of(&self, atom: &Atom) -> Option<AtomIndex> {
        self.index.get(atom).copied()
    }

    /// The blocks among the atoms, with those of named ports.
    pub fn blocks(&self) -> impl Iterator<Item = (AtomIndex, &IpBlock)> {
        self.list
            .iter()
            .enumerate()
            .filter_map(|(index, atom)| match atom.peer() {
                Some(Peer::Block(block)) => Some((index, block)),
                Some(Peer::Pods { .. }) | None => None,
            })
    }

    /// Whether an atom asks for a named port, too.
    pub fn is_named(&self, index: AtomIndex) -> bool {
        self.list
            .get(index)
            .is_some_and(|atom| atom.port().is_some())
    }
}

/// What pods of a class have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodClass {
    /// The atoms that match the pod as such, wherever it is; sorted.
    pub elements: Vec<Element>,
    /// The port numbers for those atoms that ask for a named port at an address in a block; sorted.
    pub in_blocks: Vec<Element>,
}

impl PodClass {
    /// Whether such a pod is to every policy like an address without a pod.
    pub const fn is_nothing(&self) -> bool {
        self.elements.is_empty() && self.in_blocks.is_empty()
    }

    /// What both classes have.
    pub fn intersection(&self, other: &Self) -> Self {
        let common = |ours: &[Element], theirs: &[Element]| {
            ours.iter()
                .copied()
                .filter(|element| theirs.contains(element))
                .collect()
        };
        Self {
            elements: common(&self.elements, &other.elements),
            in_blocks: common(&self.in_blocks, &other.in_blocks),
        }
    }
}

/// Matches pods to atoms.
pub struct Matcher<'a> {
    namespaces: BTreeMap<&'a str, View<'a>>,
    blocks: Vec<(AtomIndex, &'a PortName)>,
    atoms: &'a Atoms,
    state: &'a ClusterState,
}

/// The atoms that can match pods of one namespace, and the classes of its pods.
struct View<'a> {
    atoms: Vec<(AtomIndex, Option<&'a Selector>, Option<&'a PortName>)>,
    keys: Vec<&'a str>,
    ports: Vec<&'a PortName>,
    classes: BTreeMap<Projection<'a>, Arc<PodClass>>,
}

impl<'a> Matcher<'a> {
    /// A matcher for these atoms.
    pub fn new(state: &'a ClusterState, atoms: &'a Atoms) -> Self {
        let blocks = atoms.blocks().filter_map(|(index, _)| {
            atoms
                .list
                .get(index)
                .and_then(|atom| atom.port())
                .map(|port| (index, port))
        });
        Self {
            namespaces: BTreeMap::new(),
            blocks: blocks.collect(),
            atoms,
            state,
        }
    }

    /// The class of a pod.
    pub fn class_of(&mut self, pod: &'a Pod) -> Arc<PodClass> {
        let Self {
            namespaces,
            blocks,
            atoms,
            state,
        } = self;
        let namespace = pod.key.namespace.as_str();
        let view = namespaces
            .entry(namespace)
            .or_insert_with(|| View::new(state, atoms, blocks, namespace));
        let values = values_of(&pod.labels, &view.keys);
        let numbers = view
            .ports
            .iter()
            .map(|port| pod.named_ports.get(port).copied())
            .collect();
        let View { atoms, classes, .. } = view;
        let class = classes.entry((values, numbers)).or_insert_with(|| {
            let number = |port: Option<&PortName>| match port {
                None => Some(0),
                Some(port) => pod.named_ports.get(port).copied(),
            };
            let selected = atoms.iter().filter(|(_, selector, _)| {
                selector.is_none_or(|selector| selector.matches(&pod.labels))
            });
            let elements = selected
                .filter_map(|(index, _, port)| Some((*index, number(*port)?)))
                .collect();
            let in_blocks = blocks
                .iter()
                .filter_map(|(index, port)| Some((*index, number(Some(port))?)))
                .collect();
            Arc::new(PodClass {
                elements,
                in_blocks,
            })
        });
        Arc::clone(class)
    }
}

impl<'a> View<'a> {
    fn new(
        state: &'a ClusterState,
        atoms: &'a Atoms,
        blocks: &[(AtomIndex, &'a PortName)],
        namespace: &str,
    ) -> Self {
        let labels = state
            .namespaces
            .get(namespace)
            .map(|namespace| &namespace.labels);
        let in_scope = |scope: &NamespaceScope| match scope {
            NamespaceScope::Own(own) => own == namespace,
            // Nothing is known of a namespace whose object is missing: a requirement that is met by
            // absent labels must not be taken as met.
            NamespaceScope::Matching(selector) => {
                labels.map_or(selector.is_everything(), |labels| selector.matches(labels))
            }
        };
        let mut found = Vec::new();
        for (index, atom) in atoms.list.iter().enumerate() {
            match atom.peer() {
                None => found.push((index, None, atom.port())),
                Some(Peer::Pods { namespaces, pods }) if in_scope(namespaces) => {
                    found.push((index, Some(pods), atom.port()));
                }
                Some(Peer::Pods { .. } | Peer::Block(_)) => {}
            }
        }
        let selectors = found.iter().filter_map(|(_, selector, _)| *selector);
        let mut keys: Vec<_> = selectors.flat_map(Selector::keys).collect();
        keys.sort_unstable();
        keys.dedup();
        let named = found.iter().filter_map(|(_, _, port)| *port);
        let mut ports: Vec<_> = named.chain(blocks.iter().map(|(_, port)| *port)).collect();
        ports.sort_unstable();
        ports.dedup();
        Self {
            atoms: found,
            keys,
            ports,
            classes: BTreeMap::new(),
        }
    }
}

/// Index of an identity; 0 is that of addresses that nothing matches.
pub type IdentityIndex = usize;

/// The distinct sets of elements.
pub struct Identities {
    list: Vec<Vec<Element>>,
    index: BTreeMap<Vec<Element>, IdentityIndex>,
}

impl Identities {
    /// Only that of addresses that nothing matches.
    pub fn new() -> Self {
        Self {
            list: vec![Vec::new()],
            index: BTreeMap::from([(Vec::new(), 0)]),
        }
    }

    /// The identity of sorted elements.
    pub fn intern(&mut self, elements: Vec<Element>) -> IdentityIndex {
        if let Some(index) = self.index.get(&elements) {
            return *index;
        }
        let index = self.list.len();
        self.list.push(elements.clone());
        self.index.insert(elements, index);
        index
    }

    /// All of them, each with its elements.
    pub fn iter(&self) -> impl Iterator<Item = (IdentityIndex, &[Element])> {
        self.list.iter().map(Vec::as_slice).enumerate()
    }
}
