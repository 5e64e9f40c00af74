//! The binary: the node agent, and the operator's tool that asks it.

use std::process::ExitCode;

use clap::Parser as _;
use weft_agent::cli::{Cli, Command};
use weft_agent::status::{Query, client};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => weft_agent::run::run(*args),
        Command::Status(args) => client::run(Query::Status, &args),
        Command::Endpoints(args) => client::run(Query::Endpoints, &args),
        Command::Services(args) => client::run(Query::Services, &args),
        Command::Policy(args) => client::run(Query::Policy, &args),
        Command::Drops(args) => client::run(Query::Drops, &args),
        Command::Cleanup(args) => weft_agent::cleanup::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
