//! The developer's tasks, one module each.
//!
//! ```text
//!   setup ── toolchain ──> ebpf ──> checks (lint, test), run (demo, bench), vm
//!     └───── kernel    (what the running kernel must offer; root)
//! ```
//!
//! Invariants: xtask depends on no crate of the workspace and only runs cargo on them. Everything it
//! makes lies below the workspace's `target` directory; the one exception is the compiler's own
//! `rust-src`. Every task may be repeated, and costs next to nothing when there is nothing to do.
#![forbid(unsafe_code)]

pub mod checks;
pub mod debian;
pub mod ebpf;
pub mod elf;
pub mod load;
pub mod netlink;
pub mod process;
pub mod run;
pub mod setup;
pub mod stack;
pub mod table;
pub mod vm;
pub mod workspace;
