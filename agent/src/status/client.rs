//! The operator's commands: ask the running agent, print the answer.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Query;
use crate::cli::{Output, QueryArgs};
use crate::config::status_socket;

/// How long the agent may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks and prints.
///
/// # Errors
///
/// When no agent answers.
pub fn run(query: Query, args: &QueryArgs) -> Result<()> {
    let answer = ask(query, args)?;
    let text = match args.output {
        Output::Json => format!("{answer:#}\n"),
        Output::Text => render(query, &answer),
    };
    // A reader that went away (`| head`) is no failure of ours.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn ask(query: Query, args: &QueryArgs) -> Result<Value> {
    let socket = status_socket(&args.run_dir);
    let mut stream = UnixStream::connect(&socket).with_context(|| {
        format!(
            "no agent answers on {}: is it running, and is --run-dir its own?",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    writeln!(stream, "{}", query.word()).context("cannot ask the agent")?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .context("the agent does not answer")?;
    let answer: Value = serde_json::from_slice(&answer).context("the agent's answer is no JSON")?;
    if let Some(error) = answer["error"].as_str() {
        bail!("the agent says: {error}");
    }
    Ok(answer)
}

fn render(query: Query, answer: &Value) -> String {
    match query {
        Query::Status => status(answer),
        Query::Endpoints => table(
            &[
                "POD",
                "ADDRESS",
                "INTERFACE",
                "SET",
                "INGRESS",
                "EGRESS",
                "READY",
            ],
            rows(
                &answer["endpoints"],
                &[
                    "pod",
                    "addresses",
                    "interface",
                    "policy_set",
                    "ingress",
                    "egress",
                    "ready",
                ],
            ),
        ),
        Query::Services => table(
            &["SERVICE", "FRONTEND", "PROTOCOL", "LOCAL", "BACKENDS"],
            rows(
                &answer["services"],
                &["service", "frontend", "protocol", "local_only", "backends"],
            ),
        ),
        Query::Policy => policy(answer),
        Query::Drops => drops(answer),
    }
}

fn status(answer: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<14}{value}");
    };
    let healthy = answer["healthy"].as_bool().unwrap_or_default();
    line(
        "Weft",
        format!(
            "{} (ABI {})",
            cell(&answer["version"]),
            cell(&answer["abi"])
        ),
    );
    line(
        "Health",
        if healthy {
            "ok".to_owned()
        } else {
            "not ok".to_owned()
        },
    );
    line(
        "Node",
        format!("{} {}", cell(&answer["node"]), cell(&answer["address"])),
    );
    line(
        "Pods",
        format!(
            "{} of {} ready; networks {}; MTU {}",
            cell(&answer["endpoints"]["ready"]),
            cell(&answer["endpoints"]["total"]),
            cell(&answer["pod_networks"]),
            cell(&answer["mtu"]),
        ),
    );
    for pool in answer["addresses"].as_array().into_iter().flatten() {
        line(
            "Addresses",
            format!(
                "{} of {} in use in {}",
                cell(&pool["used"]),
                cell(&pool["size"]),
                cell(&pool["pool"])
            ),
        );
    }
    if answer["addresses_outside"].as_u64().unwrap_or_default() > 0 {
        line(
            "Outside",
            format!(
                "{} addresses in use are of no pod network of the node; their pods keep them",
                cell(&answer["addresses_outside"])
            ),
        );
    }
    let api = &answer["api"];
    line(
        "API",
        format!(
            "{}, {}",
            if api["connected"] == true {
                "connected"
            } else {
                "not connected: the last state stays"
            },
            if api["synced"] == true {
                "synced"
            } else {
                "not synced"
            },
        ),
    );
    let applied = &answer["applied"];
    line(
        "Maps",
        format!(
            "{}, epoch {}, applied {} times, last {} entries in {} us, {} failures",
            if applied["clean"] == true {
                "as they should be"
            } else {
                "not as they should be"
            },
            cell(&answer["epoch"]),
            cell(&applied["count"]),
            cell(&applied["entries"]),
            cell(&applied["micros"]),
            cell(&applied["failures"]),
        ),
    );
    if let Some(error) = applied["error"].as_str() {
        line("Failure", error.to_owned());
    }
    let network = &answer["network"];
    line(
        "Routing",
        format!(
            "{}; underlay {}; overlay MTU {}",
            cell(&network["routing"]),
            cell(&network["underlay"]),
            cell(&network["overlay_mtu"]),
        ),
    );
    let masquerade = &network["masquerade"];
    line(
        "Masquerade",
        if masquerade["families"].as_array().is_none_or(Vec::is_empty) {
            "off".to_owned()
        } else {
            format!(
                "{}; ports {}; not to {}",
                cell(&masquerade["families"]),
                cell(&masquerade["ports"]),
                cell(&masquerade["except"]),
            )
        },
    );
    line("Bandwidth", cell(&network["bandwidth"]));
    line("Sockets", cell(&answer["sockets"]));
    line("Attachment", cell(&answer["attachment"]));
    line("Pins", cell(&answer["pins"]));
    let uplinks = table(
        &["UPLINK", "IPV4", "IPV6", "MTU"],
        rows(&network["uplinks"], &["name", "v4", "v6", "mtu"]),
    );
    let watches = api["watches"].as_object().into_iter().flatten();
    let watches = watches.map(|(kind, watch)| {
        let state = if watch["connected"] == true {
            "connected"
        } else {
            "retrying"
        };
        vec![
            kind.clone(),
            state.to_owned(),
            cell(&watch["objects"]),
            cell(&watch["lists"]),
            cell(&watch["errors"]),
            cell(&watch["last_error"]),
        ]
    });
    let watches = table(
        &["WATCH", "STATE", "OBJECTS", "LISTS", "ERRORS", "LAST ERROR"],
        watches.collect(),
    );
    let maps = table(
        &["MAP", "ENTRIES", "CAPACITY"],
        rows(&answer["maps"], &["map", "entries", "capacity"]),
    );
    let programs = table(
        &["PROGRAM", "ID", "VERIFIED INSTRUCTIONS"],
        rows(&answer["programs"], &["name", "id", "verified"]),
    );
    let _ = write!(out, "\n{uplinks}\n{watches}\n{maps}\n{programs}");
    let warnings = answer["warnings"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if !warnings.is_empty() {
        let _ = writeln!(out, "\nWARNINGS");
        for warning in warnings {
            let _ = writeln!(out, "  {}", cell(warning));
        }
    }
    out
}

fn policy(answer: &Value) -> String {
    let mut out = String::new();
    for set in answer["policy_sets"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "policy set {}: {}",
            cell(&set["set"]),
            cell(&set["pods"])
        );
        let rules = rows(
            &set["rules"],
            &["direction", "peers", "ports", "verdict", "rule"],
        );
        let _ = writeln!(
            out,
            "{}",
            table(&["DIRECTION", "PEERS", "PORTS", "VERDICT", "RULE"], rules)
        );
    }
    out
}

fn drops(answer: &Value) -> String {
    let counts = table(
        &["REASON", "PACKETS", "BYTES", "MEANING"],
        rows(
            &answer["counts"],
            &["reason", "packets", "bytes", "description"],
        ),
    );
    let last = answer["last"].as_array().into_iter().flatten().map(|drop| {
        let end = |side: &str| {
            let port = cell(&drop[format!("{side}_port")]);
            if let Some(service) = drop[format!("{side}_service")].as_str() {
                return format!("service {service}");
            }
            let pod = drop[format!("{side}_pod")].as_str();
            format!(
                "{}:{port}",
                pod.map_or_else(|| cell(&drop[side]), ToOwned::to_owned)
            )
        };
        vec![
            cell(&drop["reason"]),
            cell(&drop["point"]),
            cell(&drop["protocol_name"]),
            end("source"),
            end("destination"),
            cell(&drop["rule_text"]),
        ]
    });
    let last = table(
        &["REASON", "AT", "PROTOCOL", "FROM", "TO", "RULE"],
        last.collect(),
    );
    format!("{counts}\n{last}")
}

fn rows(list: &Value, fields: &[&str]) -> Vec<Vec<String>> {
    let list = list.as_array().into_iter().flatten();
    list.map(|item| fields.iter().map(|field| cell(&item[*field])).collect())
        .collect()
}

/// A value as a table cell: lists with commas, nothing as a dash.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Columns as wide as their widest cell; the last one ends where it ends.
fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let header = header
        .iter()
        .map(|name| (*name).to_owned())
        .collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tables_line_up() {
        let rows = rows(
            &json!([{"a": "x", "b": [1, 2]}, {"a": "longer"}]),
            &["a", "b"],
        );
        assert_eq!(
            table(&["A", "B"], rows),
            "A       B\nx       1,2\nlonger  -\n"
        );
    }

    #[test]
    fn every_answer_renders_even_an_empty_one() {
        for query in Query::ALL {
            assert_eq!(Query::from_word(query.word()), Some(query));
            render(query, &json!({}));
        }
        let drop = json!({"last": [{"reason": "policy-ingress", "source": "10.0.0.1",
            "source_pod": "shop/web", "source_port": 7, "destination": "10.0.0.2",
            "destination_port": 80, "rule_text": "NetworkPolicy shop/api"}]});
        let text = render(Query::Drops, &drop);
        assert!(
            text.contains("shop/web:7") && text.contains("10.0.0.2:80"),
            "{text}"
        );
    }

    #[test]
    fn without_an_agent_the_error_says_where_it_was_looked_for() {
        let dir = tempfile::tempdir().expect("tempdir");
        let args = QueryArgs {
            run_dir: dir.path().to_owned(),
            output: Output::Text,
        };
        let error = run(Query::Status, &args).expect_err("nobody there");
        assert!(format!("{error:#}").contains("weft.sock"), "{error:#}");
    }
}
