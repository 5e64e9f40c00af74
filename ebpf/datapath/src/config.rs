//! The agent's word to every program.
//!
//! One entry, written by the agent only, while packets pass.

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

/// The current epoch, read now and not again: a decision is of the epoch that was current before it
/// looked at any map, or a change during it could be missed for ever.
#[inline(always)]
pub fn epoch(config: &Config) -> u32 {
    // SAFETY: a valid, aligned reference; volatile, because the agent writes it meanwhile.
    unsafe { core::ptr::read_volatile(&raw const config.epoch) }
}

/// The number of the current backends, as flows hold it; read like the epoch.
#[inline(always)]
pub fn backends_epoch(config: &Config) -> u16 {
    // SAFETY: as in `epoch`.
    (unsafe { core::ptr::read_volatile(&raw const config.backends_epoch) }) as u16
}
