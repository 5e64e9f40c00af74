//! Loads an ELF into the running kernel and prints one line of JSON per program.
//!
//! A program of its own, and light, because `cargo xtask vm` runs it inside virtual machines.

use anyhow::{Context as _, Result};
use xtask::load;

fn main() -> Result<()> {
    let path = std::env::args_os()
        .nth(1)
        .context("usage: weft-load-report ELF")?;
    let elf =
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.to_string_lossy()))?;
    for report in load::report(&elf)? {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}
