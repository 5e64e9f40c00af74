//! Who reaches whom: what is tried, what should come out, and how it is drawn.
//!
//! A cell stands for every pod of its client: each tries the service once, or each pod of the target
//! by its address. So a cell covers pods of the same node and of other nodes, and it says "reached"
//! or "stopped" only when all attempts agree.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, anyhow};

use super::app::{
    API, Application, DATABASE, FRONTEND, NAMESERVER, PROMETHEUS, RunningPod, VISITOR, Workload,
};
use super::table::{Align, Cell, Table};
use super::terminal::{Style, Terminal};
use crate::interrupt::Interrupt;
use crate::playground::{PATIENCE, Playground, wait};

/// How many attempts run at a time: most of them wait for an answer that does not come.
const AT_A_TIME: usize = 16;

/// Seconds until an attempt without an answer counts as stopped. Everything is on one machine.
const TIMEOUT: &str = "0.8";

/// How a target is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By its service's ClusterIP.
    Service,
    /// By the address of each of its pods.
    Pods,
}

/// What a target speaks, as `weft-testpod connect` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http,
    Tcp,
    Udp,
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    way: Way,
    workload: Workload,
    protocol: Protocol,
    port: u16,
}

const CLIENTS: [Workload; 5] = [FRONTEND, API, DATABASE, PROMETHEUS, VISITOR];

const fn target(way: Way, workload: Workload, protocol: Protocol, port: u16) -> Target {
    Target {
        way,
        workload,
        protocol,
        port,
    }
}

const SHOP: Target = target(Way::Service, FRONTEND, Protocol::Http, 80);
const CALLS: Target = target(Way::Service, API, Protocol::Http, 80);
const METRICS: Target = target(Way::Service, API, Protocol::Http, 9090);
const STORE: Target = target(Way::Service, DATABASE, Protocol::Tcp, 5432);
const NAMES: Target = target(Way::Service, NAMESERVER, Protocol::Udp, 53);
const CALLS_BY_POD: Target = target(Way::Pods, API, Protocol::Http, 8080);
const STORE_BY_POD: Target = target(Way::Pods, DATABASE, Protocol::Tcp, 5432);

/// The columns, those through services first.
const TARGETS: [Target; 7] = [
    SHOP,
    CALLS,
    METRICS,
    STORE,
    NAMES,
    CALLS_BY_POD,
    STORE_BY_POD,
];

/// What `40-policies.yaml` lets pass.
const ALLOWED: [(Workload, &[Target]); 5] = [
    (FRONTEND, &[CALLS, CALLS_BY_POD, NAMES]),
    (API, &[STORE, STORE_BY_POD, NAMES]),
    (DATABASE, &[NAMES]),
    (PROMETHEUS, &[SHOP, METRICS, NAMES]),
    (VISITOR, &[SHOP, NAMES]),
];

/// Which policies are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walls {
    /// None.
    Absent,
    /// Those of [`super::app::POLICIES`].
    Present,
}

/// One client's row and one target's column.
#[derive(Clone, Copy, Debug)]
struct Place {
    client: Workload,
    target: Target,
}

impl Place {
    fn all() -> impl Iterator<Item = Place> {
        let row = |client| TARGETS.map(|target| Place { client, target });
        CLIENTS.into_iter().flat_map(row)
    }

    /// A workload calling itself proves nothing: a pod may end up at its own door.
    fn is_self(self) -> bool {
        self.client == self.target.workload
    }

    fn expected(self, walls: Walls) -> bool {
        let allowed = ALLOWED.iter().find(|(client, _)| *client == self.client);
        walls == Walls::Absent || allowed.is_some_and(|(_, list)| list.contains(&self.target))
    }
}

/// What came of the attempts of a cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    attempts: usize,
    reached: usize,
    /// Refused or unreachable: somebody answered, which no wall does.
    answered: usize,
}

impl Tally {
    fn is(self, reached: bool) -> bool {
        let agreed = if reached { self.attempts } else { 0 };
        self.attempts > 0 && self.reached == agreed && self.answered == 0
    }

    fn cell(self, expected: bool) -> Cell {
        let text = match self {
            Tally { answered: 1.., .. } => "refused".to_owned(),
            Tally {
                attempts, reached, ..
            } if attempts == reached => "✔".to_owned(),
            Tally { reached: 0, .. } => "✘".to_owned(),
            Tally {
                attempts, reached, ..
            } => format!("{reached}/{attempts}"),
        };
        match (self.is(expected), expected) {
            (true, true) => Cell::new(Style::Good, text),
            (true, false) => Cell::new(Style::Stopped, text),
            (false, true) => Cell::new(Style::Wrong, format!("{text} not ✔")),
            (false, false) => Cell::new(Style::Wrong, format!("{text} not ✘")),
        }
    }
}

/// A matrix as measured.
#[derive(Debug)]
pub struct Matrix {
    walls: Walls,
    cells: Vec<(Place, Tally)>,
}

impl Matrix {
    /// Tries every cell until all are as they should be: what was applied takes a moment until it is
    /// in force everywhere. Gives up after a while and returns what it is then.
    ///
    /// # Errors
    ///
    /// When attempts cannot be made at all.
    pub fn measure(
        playground: &Playground,
        application: &Application,
        walls: Walls,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let places: Vec<Place> = Place::all().filter(|place| !place.is_self()).collect();
        let mut matrix = Matrix {
            walls,
            cells: Vec::new(),
        };
        for place in places {
            matrix.cells.push((place, Tally::default()));
        }
        let settled = wait("every cell is as expected", PATIENCE, || {
            interrupt.check()?;
            matrix.try_wrong_cells(playground, application)?;
            match matrix.wrong() {
                0 => Ok(()),
                wrong => Err(anyhow!(Unexpected(wrong))),
            }
        });
        match settled {
            Err(error) if !error.is::<Unexpected>() => Err(error),
            _ => Ok(matrix),
        }
    }

    /// How many cells there are.
    pub fn cells(&self) -> usize {
        self.cells.len()
    }

    /// How many connections were tried at the last time of each cell.
    pub fn attempts(&self) -> usize {
        self.cells.iter().map(|(_, tally)| tally.attempts).sum()
    }

    /// How many cells are not as they should be.
    pub fn wrong(&self) -> usize {
        let wrong = |(place, tally): &&(Place, Tally)| !tally.is(place.expected(self.walls));
        self.cells.iter().filter(wrong).count()
    }

    /// Draws it.
    pub fn render(&self, terminal: Terminal) -> String {
        let mut columns = vec![Align::Left];
        columns.extend(TARGETS.map(|_| Align::Centre));
        let by_service = TARGETS
            .iter()
            .filter(|target| target.way == Way::Service)
            .count();
        let mut table = Table::new(columns).grouped(vec![
            ("from".to_owned(), 1),
            ("through a service".to_owned(), by_service),
            ("by pod address".to_owned(), TARGETS.len() - by_service),
        ]);
        let names = TARGETS.iter().map(|target| target.workload.name.to_owned());
        table.header([String::new()].into_iter().chain(names));
        let ports = TARGETS.iter().map(|target| match target.protocol {
            Protocol::Udp => format!(":{}/udp", target.port),
            Protocol::Http | Protocol::Tcp => format!(":{}", target.port),
        });
        table.header([String::new()].into_iter().chain(ports));
        for client in CLIENTS {
            let mut line = vec![Cell::plain(format!("{}/{}", client.namespace, client.name))];
            for target in TARGETS {
                line.push(self.cell(Place { client, target }));
            }
            table.line(line);
        }
        table.render(terminal)
    }

    fn cell(&self, wanted: Place) -> Cell {
        let found = self
            .cells
            .iter()
            .find(|(place, _)| place.client == wanted.client && place.target == wanted.target);
        match found {
            Some((place, tally)) => tally.cell(place.expected(self.walls)),
            None => Cell::new(Style::Faint, "·"),
        }
    }

    fn try_wrong_cells(
        &mut self,
        playground: &Playground,
        application: &Application,
    ) -> Result<()> {
        let mut attempts = Vec::new();
        for (index, (place, tally)) in self.cells.iter_mut().enumerate() {
            if tally.is(place.expected(self.walls)) {
                continue;
            }
            *tally = Tally::default();
            for client in application.pods_of(place.client) {
                for address in addresses(application, place.target)? {
                    let protocol = place.target.protocol;
                    attempts.push(Attempt {
                        cell: index,
                        client,
                        protocol,
                        address,
                    });
                }
            }
        }
        for (cell, outcome) in run_all(playground, &attempts)? {
            let (_, tally) = &mut self.cells[cell];
            tally.attempts += 1;
            match outcome {
                Outcome::Reached => tally.reached += 1,
                Outcome::Answered => tally.answered += 1,
                Outcome::Silence => {}
            }
        }
        Ok(())
    }
}

/// Some cells are not as they should be.
#[derive(Debug, thiserror::Error)]
#[error("{0} cells are not as expected")]
struct Unexpected(usize);

/// One connection to be tried.
struct Attempt<'a> {
    /// The index of the cell that it counts for.
    cell: usize,
    client: &'a RunningPod,
    protocol: Protocol,
    address: SocketAddr,
}

/// How a connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The server said its name.
    Reached,
    /// A reset or an ICMP error.
    Answered,
    /// Nothing came.
    Silence,
}

impl Attempt<'_> {
    fn run(&self, playground: &Playground) -> Result<Outcome> {
        let protocol = match self.protocol {
            Protocol::Http => "http",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let address = self.address.to_string();
        let words = ["connect", protocol, &address, "--timeout", TIMEOUT];
        let output = playground.exec(self.client.workload.namespace, &self.client.name, &words)?;
        match output.status.code() {
            Some(0) => Ok(Outcome::Reached),
            // The exit codes of `weft-testpod`.
            Some(11) => Ok(Outcome::Silence),
            Some(10 | 12) => Ok(Outcome::Answered),
            _ => Err(anyhow!(
                "connecting from {} to {address}: {}: {}",
                self.client.name,
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )),
        }
    }
}

fn addresses(application: &Application, target: Target) -> Result<Vec<SocketAddr>> {
    Ok(match target.way {
        Way::Service => vec![application.service(target.workload, target.port)?],
        Way::Pods => application
            .pods_of(target.workload)
            .map(|pod| SocketAddr::new(pod.address, target.port))
            .collect(),
    })
}

/// Makes all attempts, several at a time; each outcome with its cell.
fn run_all(playground: &Playground, attempts: &[Attempt]) -> Result<Vec<(usize, Outcome)>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        while let Some(attempt) = attempts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = attempt.run(playground)?;
            let mut outcomes = outcomes
                .lock()
                .map_err(|_| anyhow!("an attempt panicked"))?;
            outcomes.push((attempt.cell, outcome));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| {
            worker
                .join()
                .map_err(|_| anyhow!("an attempt panicked"))
                .and_then(|done| done)
        });
        joined.fold(Ok(()), Result::and)
    })?;
    outcomes.into_inner().ok().context("an attempt panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(walls: Walls, reached: impl Fn(Place) -> bool) -> Matrix {
        let tally = |place| Tally {
            attempts: 2,
            reached: if reached(place) { 2 } else { 0 },
            answered: 0,
        };
        let cells = Place::all().filter(|place| !place.is_self());
        Matrix {
            walls,
            cells: cells.map(|place| (place, tally(place))).collect(),
        }
    }

    #[test]
    fn without_walls_everything_must_be_reached() {
        assert_eq!(matrix(Walls::Absent, |_| true).wrong(), 0);
        let all = matrix(Walls::Absent, |_| false);
        assert_eq!(all.wrong(), all.cells());
    }

    #[test]
    fn behind_walls_both_a_leak_and_a_lock_out_are_wrong() {
        let as_allowed = |place: Place| place.expected(Walls::Present);
        assert_eq!(matrix(Walls::Present, as_allowed).wrong(), 0);
        let leak = |place: Place| {
            as_allowed(place) || (place.client == VISITOR && place.target == STORE_BY_POD)
        };
        let leaking = matrix(Walls::Present, leak);
        assert_eq!(leaking.wrong(), 1);
        assert!(leaking.render(Terminal::plain()).contains("✔ not ✘"));
        let locked = |place: Place| as_allowed(place) && place.client != API;
        assert_eq!(matrix(Walls::Present, locked).wrong(), 3);
    }

    #[test]
    fn a_cell_counts_only_when_all_attempts_agree_and_nobody_refuses() {
        let mixed = Tally {
            attempts: 3,
            reached: 1,
            answered: 0,
        };
        assert!(!mixed.is(true) && !mixed.is(false));
        let refused = Tally {
            attempts: 3,
            reached: 0,
            answered: 3,
        };
        assert!(!refused.is(false));
        assert!(!Tally::default().is(true) && !Tally::default().is(false));
    }
}
