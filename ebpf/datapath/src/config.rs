//! The agent's word to every program.
//!
//! One entry, written by the agent only. It is read once per packet, so that one packet sees one
//! epoch.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use weft_abi::{config::Config, drop::DropReason};

use crate::drops::Drop;

#[btf_map(name = "config")]
static CONFIG: Array<Config, 1> = Array::new();

/// The configuration, if the agent has written one.
#[inline(always)]
pub fn get() -> Result<&'static Config, Drop> {
    match CONFIG.get(0) {
        Some(config) if config.epoch != 0 => Ok(config),
        _ => Err(Drop::because(DropReason::NotConfigured)),
    }
}
