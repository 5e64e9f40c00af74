//! Who serves a connection: traffic policies, terminating and unready endpoints, topology, session
//! affinity, endpoints that come and go under traffic, and the ways to choose one. From pods, from
//! processes of nodes and from outside, in both families.
//!
//! Agents learn of a change in their own time, so a check waits until what it expects is so. A check
//! that something is not let through comes after one that it was.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

#[path = "e2e_balancing/affinity.rs"]
mod affinity;
#[path = "e2e_balancing/algorithms.rs"]
mod algorithms;
#[path = "e2e_balancing/churn.rs"]
mod churn;
#[path = "e2e_balancing/ending.rs"]
mod ending;
#[path = "e2e_balancing/health.rs"]
mod health;
#[path = "e2e_balancing/policies.rs"]
mod policies;
#[path = "e2e_balancing/prober.rs"]
mod prober;
#[path = "e2e_balancing/rollouts.rs"]
mod rollouts;
#[path = "e2e_balancing/scene.rs"]
mod scene;
#[path = "e2e_balancing/topology.rs"]
mod topology;
