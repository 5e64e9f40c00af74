//! The kernel's side of the agent: programs, maps, links, events.
//!
//! ```text
//!   DATAPATH --[load]--> pinned maps <--[tables]-- desired contents
//!                 |
//!                 `----> programs --[attach]--> pinned links on interfaces
//!                             |----[cgroup]--> pinned links on the node's root cgroup
//!                             `-----[events]--> drops, debug traces
//! ```
//!
//! Invariants:
//! - Maps and links are pinned: the datapath goes on, with the last contents, when the agent dies.
//! - A pinned map is used only if its layout is the ELF's.
//! - Programs are replaced within their links; there is no moment at which an attached interface is
//!   without a program.

pub mod attach;
mod batch;
pub mod cgroup;
mod elf;
pub mod events;
pub mod load;
pub mod resize;
pub mod tables;

pub use elf::DATAPATH;
