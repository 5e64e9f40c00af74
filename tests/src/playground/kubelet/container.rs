//! Containers: the process that stands for each.
//!
//! Every image holds one program, `weft-testpod`. A container's `command` and `args` are its
//! arguments as they would be the image's; without any, it serves the container's declared ports
//! (TCP ports speak HTTP), and waits when there are none. So manifests that name real images and
//! ports run unchanged.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::net::IpAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};
use kube::ResourceExt as _;
use tokio::process::Child;

use super::{Host, Sandbox};
use crate::netns;

/// The name of the program in the images.
const PROGRAM: &str = "weft-testpod";

/// Starts a container's process.
pub fn start(host: &Host, pod: &Pod, container: &Container, sandbox: &Sandbox) -> Result<Child> {
    let environment = environment(host, pod, container, sandbox)?;
    let arguments = arguments(container, &environment)?;
    let log = host.log_dir.join(format!(
        "{}_{}_{}.log",
        pod.namespace().unwrap_or_default(),
        pod.name_any(),
        container.name
    ));
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .with_context(|| format!("opening {}", log.display()))?;

    let mut command = std::process::Command::new(&host.program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    netns::enter(&mut command, &sandbox.netns, Some(&sandbox.cgroup))?;
    tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", host.program.display()))
}

/// The program's arguments.
fn arguments(container: &Container, environment: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let mut words = container.command.clone().unwrap_or_default();
    if let Some(program) = words.first() {
        if program.rsplit('/').next() != Some(PROGRAM) {
            bail!("the image has no program {program:?}, only {PROGRAM}");
        }
        words.remove(0);
    }
    words.extend(container.args.iter().flatten().cloned());
    if words.is_empty() {
        return Ok(default_arguments(container));
    }
    Ok(words.iter().map(|word| expand(word, environment)).collect())
}

fn default_arguments(container: &Container) -> Vec<String> {
    let mut arguments = Vec::new();
    for port in container.ports.iter().flatten() {
        match port.protocol.as_deref() {
            Some("UDP") => arguments.push(format!("--udp={}", port.container_port)),
            Some("TCP") | None => arguments.push(format!("--http={}", port.container_port)),
            Some("SCTP") => arguments.push(format!("--sctp={}", port.container_port)),
            Some(_) => {}
        }
    }
    let command = if arguments.is_empty() {
        "pause"
    } else {
        "serve"
    };
    arguments.insert(0, command.to_owned());
    arguments
}

fn environment(
    host: &Host,
    pod: &Pod,
    container: &Container,
    sandbox: &Sandbox,
) -> Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::from([("HOSTNAME".to_owned(), pod.name_any())]);
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => field(host, pod, sandbox, source)
                .with_context(|| format!("the environment variable {}", variable.name))?,
            None => expand(variable.value.as_deref().unwrap_or_default(), &environment),
        };
        environment.insert(variable.name.clone(), value);
    }
    Ok(environment)
}

fn field(host: &Host, pod: &Pod, sandbox: &Sandbox, source: &EnvVarSource) -> Result<String> {
    let path = source
        .field_ref
        .as_ref()
        .map(|field| field.field_path.as_str());
    Ok(match path {
        Some("metadata.name") => pod.name_any(),
        Some("metadata.namespace") => pod.namespace().unwrap_or_default(),
        Some("metadata.uid") => pod.uid().unwrap_or_default(),
        Some("spec.nodeName") => host.node.clone(),
        Some("status.podIP") => sandbox.address.to_string(),
        Some("status.podIPs") => list(&sandbox.addresses),
        Some("status.hostIP") => host.addresses.first().to_string(),
        Some("status.hostIPs") => list(&host.addresses.all()),
        Some(path) => bail!("the playground does not know the field {path:?}"),
        None => bail!("the playground takes values from fields only"),
    })
}

fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    texts.join(",")
}

/// Replaces `$(NAME)` by the variable's value, as the kubelet does; unknown names stay.
fn expand(text: &str, environment: &BTreeMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, reference)) = rest.split_once("$(") {
        expanded.push_str(before);
        match reference.split_once(')') {
            Some((name, after)) if environment.contains_key(name) => {
                expanded.push_str(&environment[name]);
                rest = after;
            }
            _ => {
                expanded.push_str("$(");
                rest = reference;
            }
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments_of(container: serde_json::Value) -> Result<Vec<String>> {
        let environment = BTreeMap::from([("PORT".to_owned(), "8080".to_owned())]);
        arguments(&serde_json::from_value(container).unwrap(), &environment)
    }

    #[test]
    fn command_and_args_are_the_programs() {
        let words = |container| arguments_of(container).unwrap().join(" ");
        let serve = json!(["serve", "--http", "$(PORT)", "$(NO)", "$("]);
        assert_eq!(
            words(json!({"name": "a", "args": serve})),
            "serve --http 8080 $(NO) $("
        );
        let command = json!({"name": "a", "command": ["/bin/weft-testpod", "pause"]});
        assert_eq!(words(command), "pause");
        let foreign = json!({"name": "a", "command": ["sh", "-c", "true"]});
        assert!(
            arguments_of(foreign)
                .unwrap_err()
                .to_string()
                .contains("sh")
        );
    }

    #[test]
    fn a_bare_container_serves_its_ports() {
        let ports = json!([
            {"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"},
            {"containerPort": 443, "protocol": "TCP"}, {"containerPort": 9, "protocol": "SCTP"},
        ]);
        let served = arguments_of(json!({"name": "a", "ports": ports})).unwrap();
        assert_eq!(
            served,
            ["serve", "--http=80", "--udp=53", "--http=443", "--sctp=9"]
        );
        assert_eq!(arguments_of(json!({"name": "a"})).unwrap(), ["pause"]);
    }
}
