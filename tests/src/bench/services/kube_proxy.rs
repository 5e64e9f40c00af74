//! The same services as kube-proxy has them in nftables, where there is `nft`: what a node does with
//! them without Weft.
//!
//! The rules have the shape that kube-proxy's nftables mode gives them: a verdict map from service
//! addresses to a chain for each service port, which chooses a chain for each endpoint at random,
//! which translates; one transaction for everything, or for what changed. What kube-proxy itself needs
//! to get there (list, compare, generate) is not in the figures; nor is what it removes later, chains
//! of endpoints that are gone.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::population::{ClusterIps, PORT, Population, TARGET};
use crate::netns::{self, Netns};
use crate::playground::Family;
use crate::playground::process::{self, Limit};

/// How long one transaction may take.
const PATIENCE: Limit = Limit(Duration::from_secs(600));
/// How long changes are measured, at most.
const CHANGES: Duration = Duration::from_secs(60);
/// Where administrators' programs are, whatever `PATH` says.
const DIRECTORIES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// `nft`, if the machine has it.
pub fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = DIRECTORIES.iter().map(PathBuf::from);
    env::split_paths(&path)
        .chain(usual)
        .map(|directory| directory.join("nft"))
        .find(|program| program.is_file())
}

/// What it took.
#[derive(Debug)]
pub struct Took {
    /// All rules, of nothing.
    pub load: Duration,
    /// Rules and elements in that.
    pub rules: u64,
    /// Each change of one endpoint.
    pub changes: Vec<Duration>,
}

/// Has `nft` load the rules into a namespace, and then change an endpoint of one service after the
/// other.
///
/// # Errors
///
/// When `nft` fails.
pub fn measure(
    program: &Path,
    netns: &Netns,
    directory: &Path,
    (population, ips): (Population, &ClusterIps),
    changes: u32,
) -> Result<Took> {
    let file = directory.join("kube-proxy.nft");
    let (text, rules) = ruleset(population, ips);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    let started = Instant::now();
    run(program, netns, &file, "")?;
    let load = started.elapsed();

    let begun = Instant::now();
    let mut took = Vec::new();
    for change in 0..changes {
        if begun.elapsed() > CHANGES {
            break;
        }
        let (service, text) = transaction(population, ips, change);
        let started = Instant::now();
        run(program, netns, Path::new("-"), &text)
            .with_context(|| format!("changing service {service}"))?;
        took.push(started.elapsed());
    }
    Ok(Took {
        load,
        rules,
        changes: took,
    })
}

fn run(program: &Path, netns: &Netns, file: &Path, input: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.arg("-f").arg(file);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    netns::enter(&mut command, netns, None)?;
    let output = process::run(&mut command, input.as_bytes(), PATIENCE)
        .with_context(|| format!("running {}", program.display()))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        let first: Vec<_> = told.lines().take(3).collect();
        bail!("{} fails: {}", program.display(), first.join(" | "));
    }
    Ok(())
}

/// Everything, as one transaction; and how many rules and elements that is.
fn ruleset(population: Population, ips: &ClusterIps) -> (String, u64) {
    let mut rules = Rules::default();
    for family in population.families.each() {
        rules.base(*family);
        for service in 0..population.services {
            let Some(ip) = cluster_ip(ips, service, *family) else {
                continue;
            };
            let addresses = (0..population.endpoints)
                .map(|endpoint| population.address(*family, service, endpoint));
            let addresses: Vec<_> = addresses.collect();
            for address in &addresses {
                rules.endpoint(*family, service, *address);
            }
            rules.service(*family, service, ip, &addresses);
            // Of what is named in the transaction, all must be there before.
            let chain = service_chain(service);
            rules.element(*family, "cluster-ips", &ip.to_string());
            let element = format!("{ip} . tcp . {PORT} : goto {chain}");
            rules.element(*family, "service-ips", &element);
        }
    }
    (rules.text, rules.count)
}

/// What changes when the first endpoint of a service is replaced: a chain for the new one, and the
/// service's chain anew.
fn transaction(population: Population, ips: &ClusterIps, change: u32) -> (u32, String) {
    let service = super::changed(change, population.services);
    let family = population.families.each()[0];
    let mut addresses: Vec<_> = (0..population.endpoints)
        .map(|endpoint| population.address(family, service, endpoint))
        .collect();
    let new = Population::replacement(family, change);
    if let Some(first) = addresses.first_mut() {
        *first = new;
    }
    let mut rules = Rules::default();
    if let Some(ip) = cluster_ip(ips, service, family) {
        rules.endpoint(family, service, new);
        rules.service(family, service, ip, &addresses);
    }
    (service, rules.text)
}

fn cluster_ip(ips: &ClusterIps, service: u32, family: Family) -> Option<IpAddr> {
    let ips = ips.get(service as usize)?;
    ips.iter().copied().find(|ip| Family::of(*ip) == family)
}

/// A text for `nft`.
#[derive(Default)]
struct Rules {
    text: String,
    count: u64,
}

impl Rules {
    fn line(&mut self, what: &str) {
        self.text += what;
        self.text.push('\n');
    }

    fn rule(&mut self, family: Family, chain: &str, rule: &str) {
        self.count += 1;
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.text,
            "add rule {} kube-proxy {chain} {rule}",
            table(family)
        );
    }

    fn element(&mut self, family: Family, set: &str, element: &str) {
        self.count += 1;
        let table = table(family);
        let _ = writeln!(
            self.text,
            "add element {table} kube-proxy {set} {{ {element} }}"
        );
    }

    fn chain(&mut self, family: Family, chain: &str) {
        let table = table(family);
        let _ = writeln!(self.text, "add chain {table} kube-proxy {chain}");
        let _ = writeln!(self.text, "flush chain {table} kube-proxy {chain}");
    }

    /// What there is whatever services there are.
    fn base(&mut self, family: Family) {
        let (table, address) = (table(family), address_type(family));
        self.line(&format!("add table {table} kube-proxy"));
        self.line(&format!(
            "add set {table} kube-proxy cluster-ips {{ type {address}; }}"
        ));
        for map in ["service-ips", "no-endpoint-services", "firewall-ips"] {
            self.line(&format!(
                "add map {table} kube-proxy {map} \
                 {{ type {address} . inet_proto . inet_service : verdict; }}"
            ));
        }
        for map in ["service-nodeports", "no-endpoint-nodeports"] {
            self.line(&format!(
                "add map {table} kube-proxy {map} {{ type inet_proto . inet_service : verdict; }}"
            ));
        }
        self.line(&format!(
            "add set {table} kube-proxy nodeport-ips {{ type {address}; }}"
        ));
        for (chain, hook) in [
            ("filter-input", "filter hook input priority -110"),
            ("filter-forward", "filter hook forward priority -110"),
            ("filter-output", "filter hook output priority -110"),
            ("nat-prerouting", "nat hook prerouting priority -100"),
            ("nat-output", "nat hook output priority -100"),
            ("nat-postrouting", "nat hook postrouting priority 100"),
        ] {
            self.line(&format!(
                "add chain {table} kube-proxy {chain} {{ type {hook}; }}"
            ));
        }
        for chain in [
            "services",
            "masquerading",
            "mark-for-masquerade",
            "service-endpoints-check",
            "cluster-ips-check",
        ] {
            self.chain(family, chain);
        }
        let daddr = format!("{table} daddr");
        for (chain, rule) in [
            ("filter-input", "ct state new jump service-endpoints-check"),
            (
                "filter-forward",
                "ct state new jump service-endpoints-check",
            ),
            ("filter-forward", "ct state new jump cluster-ips-check"),
            ("filter-output", "ct state new jump service-endpoints-check"),
            ("filter-output", "ct state new jump cluster-ips-check"),
            ("nat-prerouting", "jump services"),
            ("nat-output", "jump services"),
            ("nat-postrouting", "jump masquerading"),
            ("masquerading", "mark and 0x4000 == 0 return"),
            ("masquerading", "mark set mark xor 0x4000"),
            ("masquerading", "masquerade fully-random"),
            ("mark-for-masquerade", "mark set mark or 0x4000"),
        ] {
            self.rule(family, chain, rule);
        }
        let by_port = format!("{daddr} . meta l4proto . th dport vmap");
        self.rule(family, "services", &format!("{by_port} @service-ips"));
        let by_number = "meta l4proto . th dport vmap @service-nodeports";
        let nodeports = format!("{daddr} @nodeport-ips {by_number}");
        self.rule(family, "services", &nodeports);
        let check = format!("{by_port} @no-endpoint-services");
        self.rule(family, "service-endpoints-check", &check);
        let check = format!("{daddr} @cluster-ips reject");
        self.rule(family, "cluster-ips-check", &check);
    }

    /// A service port: any of its endpoints.
    fn service(&mut self, family: Family, service: u32, ip: IpAddr, endpoints: &[IpAddr]) {
        let chain = service_chain(service);
        self.chain(family, &chain);
        let (table, pods) = (table(family), pods(family));
        let masquerade = format!(
            "{table} daddr {ip} tcp dport {PORT} {table} saddr != {pods} jump mark-for-masquerade"
        );
        self.rule(family, &chain, &masquerade);
        let mut choice = format!("numgen random mod {} vmap {{ ", endpoints.len());
        for (number, endpoint) in endpoints.iter().enumerate() {
            let to = endpoint_chain(service, *endpoint);
            let _ = write!(choice, "{number} : goto {to}, ");
        }
        choice.push('}');
        self.rule(family, &chain, &choice);
    }

    /// One endpoint of it.
    fn endpoint(&mut self, family: Family, service: u32, address: IpAddr) {
        let chain = endpoint_chain(service, address);
        self.chain(family, &chain);
        let hairpin = format!("{} saddr {address} jump mark-for-masquerade", table(family));
        self.rule(family, &chain, &hairpin);
        let to = match address {
            IpAddr::V4(v4) => format!("{v4}:{TARGET}"),
            IpAddr::V6(v6) => format!("[{v6}]:{TARGET}"),
        };
        self.rule(family, &chain, &format!("meta l4proto tcp dnat to {to}"));
    }
}

/// With a hash of eight characters before it, as kube-proxy has it.
fn service_chain(service: u32) -> String {
    format!(
        "service-{service:08X}-bench/{}/tcp/http",
        Population::name(service)
    )
}

fn endpoint_chain(service: u32, address: IpAddr) -> String {
    // Colons are not for names.
    let address = address.to_string().replace(':', ".");
    let service = Population::name(service);
    format!("endpoint-00000000-bench/{service}/tcp/http__{address}/{TARGET}")
}

fn table(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

/// The pods' range.
fn pods(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:10:244::/56",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::playground::Families;

    #[test]
    fn a_ruleset_has_every_service_and_endpoint() {
        let population = Population {
            services: 3,
            endpoints: 4,
            families: Families::V4,
        };
        let ips: ClusterIps = (1..=3)
            .map(|n| vec![IpAddr::from([10, 96, 0, n])])
            .collect();
        let (text, _) = ruleset(population, &ips);
        let chains = |start: &str| {
            let start = format!("add chain ip kube-proxy {start}");
            text.lines().filter(|line| line.starts_with(&start)).count()
        };
        assert_eq!([chains("service-0"), chains("endpoint-")], [3, 12]);
        // One of a service replaced: its chain anew, with as many endpoints, of which one is new.
        let (service, change) = transaction(population, &ips, 1);
        assert_eq!(change.matches("add chain").count(), 2);
        assert_eq!(change.matches(" : goto ").count(), 4);
        assert!(change.contains(&service_chain(service)), "{change}");
    }
}
