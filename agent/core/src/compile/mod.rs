//! From the cluster state to the contents of the maps.

use std::collections::BTreeMap;

use crate::{
    contents::Contents,
    model::{ClusterState, Warning},
    rules::RuleTable,
};

/// What the maps should hold, and what the numbers in them mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The maps.
    pub contents: Contents,
    /// Meaning of rule numbers.
    pub rules: RuleTable,
    /// Meaning of identities: the peer selectors that match such an address.
    pub identities: BTreeMap<u32, Vec<String>>,
    /// Meaning of service numbers: `namespace/name:port`.
    pub services: BTreeMap<u32, String>,
    /// What an operator should know about the objects, beyond what converting them told.
    pub warnings: Vec<Warning>,
}

/// Compiles the cluster state, and keeps the numbers that it gave.
#[derive(Clone, Debug, Default)]
pub struct Compiler {}

impl Compiler {
    /// A compiler that gave no numbers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over the numbers of maps that an earlier agent filled, so that established flows keep
    /// their backends. Call it once, before the first [`Self::compile`].
    pub fn adopt(&mut self, _current: &Contents) {}

    /// What the maps should hold.
    pub fn compile(&mut self, _state: &ClusterState) -> Desired {
        Desired::default()
    }
}
