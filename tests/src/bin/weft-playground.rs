//! `weft-playground`: what people start in the playground. `cargo xtask demo` starts it, built and
//! with everything that it needs.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weft_tests::demo;

/// A cluster of network namespaces on this machine, to look at.
#[derive(Parser)]
#[command(name = "weft-playground", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what Weft does, on two nodes, and check it.
    Demo(demo::Options),
}

fn main() -> ExitCode {
    // The story is told on stdout; the playground's own troubles only when asked for.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let Command::Demo(options) = Cli::parse().command;
    demo::run(&options).unwrap_or_else(|error| {
        eprintln!("weft-playground: {error:#}");
        ExitCode::FAILURE
    })
}
