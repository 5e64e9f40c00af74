//! Counts map lookups, for the promise of one per packet of an established flow.
//!
//! Off in production: the constant is in read-only data, so the verifier removes the counting code.
//! The benchmark loads the same ELF with the constant set and reads the counts.

use aya_ebpf::{Global, btf_maps::PerCpuArray, macros::btf_map};

/// Set at load to 1 to count.
#[unsafe(no_mangle)]
static COUNT_LOOKUPS: Global<u8> = Global::new(0);

#[btf_map(name = "lookups")]
static LOOKUPS: PerCpuArray<u64, 8> = PerCpuArray::new();

/// The maps that are counted, and their index in `lookups`.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Table {
    /// The flow table.
    Flows = 0,
    /// Local endpoints.
    Endpoints = 1,
    /// The ipcache.
    Ipcache = 2,
    /// Policy entries.
    Policy = 3,
    /// Frontends, slots and backends.
    Services = 4,
}

/// Counts one lookup.
#[inline(always)]
pub fn count(table: Table) {
    if COUNT_LOOKUPS.load() != 0
        && let Some(count) = LOOKUPS.get_ptr_mut(table as u32)
    {
        // SAFETY: a per-CPU slot, and programs of one CPU do not interrupt each other here.
        unsafe { *count += 1 };
    }
}
