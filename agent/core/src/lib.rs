//! From Kubernetes objects to map contents, without effects.
//!
//! The pure half of the agent. It watches nothing, writes nothing and knows no time; the agent
//! feeds it objects and applies what it answers.
//!
//! ```text
//!   API objects --convert--> model::ClusterState --compile--> contents::Contents (desired)
//!   (untrusted)  warnings       (typed)                            |
//!                                                                  v
//!   maps, read back ------------> contents::Contents (current) --diff--> ordered changes
//! ```
//!
//! Invariants:
//! - Nothing here panics on any input. What cannot be understood becomes a warning, and fails
//!   closed: a peer that makes no sense matches nothing, its policy isolates all the same.
//! - Everything is deterministic: the same state compiles to the same contents, in another process
//!   too, so that a restarted agent finds nothing to change.
//! - The same type, [`contents::Contents`], is what was compiled and what was read back. There is
//!   no third state to be out of step with.
#![forbid(unsafe_code)]

pub mod compile;
pub mod contents;
pub mod convert;
pub mod diff;
pub mod family;
pub mod lookup;
pub mod model;
pub mod name;
pub mod podnet;
pub mod rules;
pub mod selector;
pub mod services;
