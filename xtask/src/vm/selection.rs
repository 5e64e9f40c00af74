//! Which packet tests a machine runs.
//!
//! Emulated, a test takes seconds, most of them the verifier's; all take a quarter of an hour. What
//! other kernels do differently shows in one test of each concept: helpers, redirects, what programs
//! may read of a packet, and interfaces. Those run unless others are asked for.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::process;

/// One test of each concept, by its name in `tests/tests/packet`.
const CONCEPTS: [(&str, &str); 18] = [
    (
        "a known flow",
        "paths::an_established_flow_costs_one_lookup",
    ),
    (
        "the host stack",
        "paths::the_host_stacks_way_into_the_overlay",
    ),
    (
        "a service",
        "services::a_service_is_translated_there_and_back",
    ),
    (
        "masquerading",
        "uplink::a_pod_reaches_the_outside_with_its_nodes_address",
    ),
    (
        "native routing",
        "uplink::native_routing_keeps_addresses_within_the_cluster",
    ),
    (
        "hostPort",
        "hostport::the_outside_reaches_a_pod_by_a_port_of_the_node",
    ),
    (
        "ICMP errors",
        "icmp::an_error_about_a_masqueraded_packet_finds_its_pod",
    ),
    ("fragments", "fragments::pieces_are_masqueraded_alike"),
    ("policy", "policy::ingress_policy_lets_in_what_it_lists"),
    ("MTU", "mtu::what_does_not_fit_goes_to_the_stack"),
    ("IPv6", "v6::extension_headers_are_looked_through"),
    ("hostile input", "input::ip_options_are_walked"),
    (
        "sockets",
        "sockets::a_process_of_the_node_reaches_a_service",
    ),
    (
        "attached: a node's pods",
        "wire::a_pod_reaches_a_pod_of_its_node",
    ),
    (
        "attached: the overlay",
        "wire::the_overlay_takes_pods_to_each_other",
    ),
    (
        "attached: an uplink and errors",
        "icmp::the_path_is_too_narrow_and_the_pod_learns_it",
    ),
    (
        "bandwidth, with fq",
        "departure::packets_wait_for_their_departure",
    ),
    (
        "bandwidth, without",
        "departure::the_bucket_drops_what_is_too_much",
    ),
];

/// The packet tests that a machine runs.
pub enum Selection {
    /// One of each concept.
    Concepts,
    /// All of them.
    All,
    /// What the test harness makes of these arguments.
    Harness(Vec<String>),
}

impl Selection {
    /// Arguments for the test harness.
    ///
    /// Fails when a test that the list names is not there: the harness would not say so.
    pub fn arguments(&self, packet_tests: &Path) -> Result<Vec<String>> {
        match self {
            Self::All => Ok(Vec::new()),
            Self::Harness(arguments) => Ok(arguments.clone()),
            Self::Concepts => {
                let mut list = Command::new(packet_tests);
                let list = process::output(list.arg("--list"))?;
                exact(&list)
            }
        }
    }
}

/// The arguments that run the listed tests and no others; `list` is what the harness knows.
fn exact(list: &str) -> Result<Vec<String>> {
    let mut arguments = vec!["--exact".to_owned()];
    for (concept, test) in CONCEPTS {
        let line = format!("{test}: test");
        if !list.lines().any(|known| known == line) {
            bail!(
                "there is no packet test {test} ({concept}): correct the list in {}",
                file!()
            );
        }
        arguments.push(test.to_owned());
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_test_must_be_there() {
        let all: String = CONCEPTS
            .iter()
            .map(|(_, test)| format!("{test}: test\n"))
            .collect();
        let arguments = exact(&all).expect("all there");
        assert_eq!(arguments.len(), 1 + CONCEPTS.len());
        let error = exact(&all.replace(CONCEPTS[0].1, "renamed")).expect_err("one is gone");
        assert!(error.to_string().contains(CONCEPTS[0].1), "{error}");
    }
}
