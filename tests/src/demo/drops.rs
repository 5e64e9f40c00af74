//! What was dropped, why, and by whose order: the agents' own account.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::app::Application;
use super::table::{Align, Cell, Table};
use super::terminal::{Style, Terminal};
use crate::interrupt::Interrupt;
use crate::playground::{PATIENCE, Playground, wait};

/// How many lines of the table are shown.
const SHOWN: usize = 12;

/// The drop reasons of policies; both must have occurred.
const BY_POLICY: [&str; 2] = ["policy-egress", "policy-ingress"];

/// What `weft-agent drops -o json` answers, as far as it is of interest here.
#[derive(Debug, Deserialize)]
struct Answer {
    counts: Vec<Count>,
    last: Vec<Dropped>,
}

#[derive(Debug, Deserialize)]
struct Count {
    reason: String,
    packets: u64,
}

#[derive(Debug, Deserialize)]
struct Dropped {
    reason: String,
    source: IpAddr,
    destination: IpAddr,
    destination_port: u16,
    protocol_name: String,
    rule_text: Option<String>,
}

/// Drops that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    from: String,
    to: String,
    reason: String,
    decided_by: String,
}

/// The drops of all nodes.
#[derive(Debug, Default)]
pub struct Drops {
    /// Packets by reason, since the agents' maps exist.
    counts: BTreeMap<String, u64>,
    /// The last of them, by kind.
    kinds: BTreeMap<Kind, usize>,
}

impl Drops {
    /// Asks the agents until they know of drops in both directions, each with the policies that
    /// decided: events take a moment.
    ///
    /// # Errors
    ///
    /// When they do not, or do not answer.
    pub fn wait(
        playground: &Playground,
        application: &Application,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        wait("the agents have told of drops by policy", PATIENCE, || {
            interrupt.check()?;
            let mut drops = Drops::default();
            for node in playground.nodes() {
                let output = playground.ask_agent(&node.name, &["drops", "-o", "json"])?;
                if !output.status.success() {
                    bail!(
                        "weft-agent drops: {}",
                        String::from_utf8_lossy(&output.stderr).trim()
                    );
                }
                let answer = serde_json::from_slice(&output.stdout)
                    .with_context(|| format!("the answer of the agent of {}", node.name))?;
                drops.add(answer, application);
            }
            drops.complete()?;
            Ok(drops)
        })
    }

    /// Packets dropped by policy, as the datapath counted them.
    pub fn by_policy(&self) -> u64 {
        BY_POLICY
            .iter()
            .filter_map(|reason| self.counts.get(*reason))
            .sum()
    }

    /// All reasons with their counts.
    pub fn summary(&self) -> String {
        let counts = self.counts.iter().filter(|(_, packets)| **packets > 0);
        counts
            .map(|(reason, packets)| format!("{reason} {packets}"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Draws the most frequent kinds.
    pub fn render(&self, terminal: Terminal) -> String {
        let mut kinds: Vec<_> = self.kinds.iter().collect();
        kinds.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let mut table = Table::new(vec![
            Align::Left,
            Align::Left,
            Align::Right,
            Align::Left,
            Align::Left,
        ]);
        table.header([
            "from",
            "to",
            "packets",
            "reason",
            "no rule of these policies allows it",
        ]);
        for (kind, packets) in kinds.iter().take(SHOWN) {
            table.line(vec![
                Cell::plain(kind.from.as_str()),
                Cell::plain(kind.to.as_str()),
                Cell::plain(packets.to_string()),
                Cell::new(Style::Stopped, kind.reason.as_str()),
                Cell::plain(policies(&kind.decided_by)),
            ]);
        }
        let mut drawn = table.render(terminal);
        if let Some(more) = kinds.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            drawn.push_str(&format!("   ... and {more} kinds more\n"));
        }
        drawn
    }

    fn add(&mut self, answer: Answer, application: &Application) {
        for count in answer.counts {
            *self.counts.entry(count.reason).or_default() += count.packets;
        }
        for dropped in answer.last {
            let name = |address| application.name_of(address);
            let Dropped {
                source,
                destination,
                destination_port,
                ..
            } = dropped;
            let to = match name(destination) {
                Some(name) => format!("{name}:{destination_port}"),
                None => SocketAddr::new(destination, destination_port).to_string(),
            };
            let kind = Kind {
                from: name(source).unwrap_or_else(|| source.to_string()),
                to: format!("{to} {}", dropped.protocol_name),
                reason: dropped.reason,
                decided_by: dropped.rule_text.unwrap_or_default(),
            };
            *self.kinds.entry(kind).or_default() += 1;
        }
    }

    fn complete(&self) -> Result<()> {
        for reason in BY_POLICY {
            let mut of_reason = self.kinds.keys().filter(|kind| kind.reason == reason);
            match of_reason.next() {
                None => bail!("no drop with the reason {reason} is known"),
                Some(kind) if !kind.decided_by.contains("NetworkPolicy") => {
                    bail!(
                        "the drop from {} to {} names no NetworkPolicy",
                        kind.from,
                        kind.to
                    )
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// The policies that a rule's text names; the direction is in the reason already.
fn policies(rule: &str) -> &str {
    rule.split_once(" rule of NetworkPolicy ")
        .map_or(rule, |(_, policies)| policies)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(reason: &str, rule: Option<&str>) -> Answer {
        serde_json::from_value(serde_json::json!({
            "counts": [{"reason": reason, "packets": 3, "bytes": 222, "description": ""}],
            "last": [{
                "time": 1, "reason": reason, "point": "from_container", "protocol": 6,
                "protocol_name": "TCP", "source": "10.244.0.2", "source_port": 40_000,
                "destination": "10.244.1.2", "destination_port": 5432, "ifindex": 4,
                "length": 74, "rule": 1, "rule_text": rule, "source_pod": null,
            }],
            "error": null,
        }))
        .expect("an answer")
    }

    #[test]
    fn drops_are_complete_once_both_directions_name_their_policy() {
        let application = Application::default();
        let mut drops = Drops::default();
        drops.add(
            answer("policy-egress", Some("NetworkPolicy shop/default-deny")),
            &application,
        );
        assert!(drops.complete().is_err());
        drops.add(answer("policy-ingress", None), &application);
        assert!(drops.complete().is_err(), "the ingress drop has no rule");
        drops.kinds.clear();
        drops.add(
            answer("policy-egress", Some("NetworkPolicy shop/default-deny")),
            &application,
        );
        drops.add(
            answer("policy-ingress", Some("NetworkPolicy shop/database")),
            &application,
        );
        drops.complete().expect("both directions have their policy");
        assert_eq!(drops.by_policy(), 12);
        assert!(
            drops
                .render(Terminal::plain())
                .contains("10.244.1.2:5432 TCP")
        );
    }
}
