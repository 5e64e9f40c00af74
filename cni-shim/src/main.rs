//! The CNI plugin: reads what the runtime gave, asks the agent, prints its answer.
//!
//! Nothing but one JSON document goes to stdout; words for people go to stderr.
#![forbid(unsafe_code)]

use std::env::{self, VarError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::{fs, path::Path};

use serde_json::{Value, json};
use weft_cni::error::code;
use weft_cni::invoke::{self, Failure, Invocation};
use weft_cni::{CniError, Command, Request, Version, client};

fn main() -> ExitCode {
    let (document, status) = match run() {
        Ok(document) => (document, ExitCode::SUCCESS),
        Err(failure) => (
            Some(failure.error.to_json(failure.version)),
            ExitCode::FAILURE,
        ),
    };
    if let Some(document) = document
        && let Err(error) = print(&document)
    {
        // The runtime closed its end; stderr is all that is left. It may be closed as well.
        let _ = writeln!(io::stderr(), "weft-cni: cannot write to stdout: {error}");
        return ExitCode::FAILURE;
    }
    status
}

fn run() -> Result<Option<Value>, Failure> {
    match invoke::read(variable, io::stdin().lock())? {
        Invocation::About => {
            let _ = writeln!(
                io::stderr(),
                "weft-cni {}: the CNI plugin of Weft; container runtimes run it, people need not.\n\
                 CNI protocol versions supported: {}",
                env!("CARGO_PKG_VERSION"),
                Version::supported().join(", "),
            );
            Ok(None)
        }
        Invocation::Version => Ok(Some(json!({
            "cniVersion": Version::LATEST.as_str(),
            "supportedVersions": Version::supported(),
        }))),
        Invocation::Request(request) => {
            let failure = |version: Version| move |error: CniError| Failure { version, error };
            let version = request.config.version().map_err(Failure::unversioned)?;
            check_netns(&request).map_err(failure(version))?;
            let result = client::perform(&request).map_err(failure(version))?;
            match (request.command, result) {
                (Command::Add, Some(result)) => {
                    result.to_json(version).map(Some).map_err(failure(version))
                }
                (Command::Add, None) => Err(failure(version)(CniError::new(
                    code::INTERNAL,
                    "the Weft agent answered ADD without a result",
                ))),
                _ => Ok(None),
            }
        }
    }
}

/// A namespace that is gone is fine for DEL, and nothing else.
fn check_netns(request: &Request) -> Result<(), CniError> {
    let overridden = matches!(
        env::var("CNI_NETNS_OVERRIDE")
            .map(|text| text.to_ascii_lowercase())
            .as_deref(),
        Ok("1" | "t" | "true")
    );
    let Some(path) = request.netns.as_deref().filter(|_| !overridden) else {
        return Ok(());
    };
    match identity(Path::new(path)) {
        Ok(namespace) => {
            let own = identity(Path::new("/proc/self/ns/net")).map_err(|error| {
                CniError::new(code::IO, "cannot look at /proc/self/ns/net")
                    .with_details(error.to_string())
            })?;
            invoke::check_netns(path, namespace, own)
        }
        Err(_) if request.command == Command::Del => Ok(()),
        Err(error) => Err(CniError::new(
            code::INVALID_NETNS,
            format!("CNI_NETNS: cannot look at {path:?}"),
        )
        .with_details(error.to_string())),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn variable(name: &str) -> Result<Option<String>, CniError> {
    match env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(CniError::new(
            code::INVALID_ENVIRONMENT,
            format!("{name} is not valid UTF-8"),
        )),
    }
}

fn print(document: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, document)?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}
