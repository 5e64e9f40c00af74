//! `cargo xtask bench <benchmark>`: measures Weft.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_tests::bench;

/// Weft's benchmarks. They need root.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", version)]
struct Cli {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// What a packet, a connection and a stream cost, through Weft and through plain routing.
    Datapath(bench::Datapath),
    /// How long a pod waits for its network: ADD and DEL, alone and many at once.
    Cni(bench::cni::Cni),
    /// How soon very many services are in the maps, and one change of them.
    Services(bench::services::Services),
}

fn main() -> ExitCode {
    let done = match Cli::parse().benchmark {
        Benchmark::Datapath(options) => bench::datapath(&options),
        Benchmark::Cni(options) => bench::cni::cni(&options),
        Benchmark::Services(options) => bench::services::services(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
