//! Reads a machine's console, and lays the findings of all machines side by side.

use std::collections::BTreeSet;

use anyhow::Error;

use crate::{load::Loaded, table};

/// Begins a line of the console that describes a loaded program, as JSON.
pub const PROGRAM: &str = "vm-program: ";
/// Begins the last line that `weft-vm-init` prints; `success` or `failure` follows.
pub const FINISHED: &str = "vm: ";

/// What one machine found.
pub struct Report {
    release: String,
    programs: Vec<Loaded>,
    tests: Option<Tests>,
    failed_tests: Vec<String>,
    skipped: Vec<String>,
    success: bool,
    error: Option<Error>,
}

#[derive(Debug, PartialEq, Eq)]
struct Tests {
    passed: u64,
    failed: u64,
}

/// Reads the console of the machine that ran `release`; `error` is why it did not end by itself.
pub fn read(release: &str, console: &str, error: Option<Error>) -> Report {
    let programs = console
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix(PROGRAM)?).ok());
    let success = console
        .lines()
        .any(|line| line == format!("{FINISHED}success"));
    Report {
        release: release.to_owned(),
        programs: programs.collect(),
        tests: console.lines().find_map(test_result),
        failed_tests: failed_tests(console),
        skipped: skipped(console),
        success: success && error.is_none(),
        error,
    }
}

/// The tests that the harness lists in the end. Where each is run, what it prints itself can come
/// between its name and its result.
fn failed_tests(console: &str) -> Vec<String> {
    let last = console
        .lines()
        .rev()
        .skip_while(|line| !line.starts_with("test result: "));
    let list = last.take_while(|line| *line != "failures:");
    let mut failed: Vec<String> = list
        .filter_map(|line| Some(line.strip_prefix("    ")?.to_owned()))
        .collect();
    failed.reverse();
    failed
}

/// What tests did not do, with their names where they precede it.
fn skipped(console: &str) -> Vec<String> {
    let skipped = console.lines().filter_map(|line| {
        let (test, why) = line.split_once("skipped: ")?;
        let test = test
            .strip_prefix("test ")
            .unwrap_or(test)
            .trim_end_matches(" ... ");
        Some(format!("{test}: {why}"))
    });
    skipped.collect()
}

/// Reads `test result: ok. 12 passed; 0 failed; ...`.
fn test_result(line: &str) -> Option<Tests> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |what: &str| {
        counts
            .split("; ")
            .find_map(|count| count.strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tests {
        passed: count("passed")?,
        failed: count("failed")?,
    })
}

impl Report {
    /// Whether every program loaded and every test passed.
    pub fn is_success(&self) -> bool {
        self.success
    }

    /// One line on the machine.
    pub fn verdict(&self) -> String {
        let outcome = if self.success { "success" } else { "FAILURE" };
        let programs = self.programs.len();
        let mut verdict = format!(
            "{}: {outcome}, {programs} programs loaded, packet tests: {}",
            self.release,
            self.tests()
        );
        if let Some(error) = &self.error {
            verdict.push_str(&format!("; {error:#}"));
        }
        for test in &self.failed_tests {
            verdict.push_str(&format!("\n  failed: {test}"));
        }
        for test in &self.skipped {
            verdict.push_str(&format!("\n  skipped: {test}"));
        }
        verdict
    }

    fn tests(&self) -> String {
        match &self.tests {
            Some(Tests { passed, failed: 0 }) => format!("{passed} passed"),
            Some(Tests { passed, failed }) => format!("{passed} passed, {failed} FAILED"),
            None => "none finished".to_owned(),
        }
    }

    fn verified(&self, program: &str) -> String {
        let loaded = self.programs.iter().find(|loaded| loaded.name == program);
        table::cell(loaded.and_then(|loaded| loaded.verified))
    }
}

/// Verifier instructions per program and kernel, and the tests' outcome.
pub fn table(reports: &[Report]) -> String {
    let mut header = vec!["verifier instructions"];
    header.extend(reports.iter().map(|report| report.release.as_str()));
    let programs: BTreeSet<&str> = reports
        .iter()
        .flat_map(|report| report.programs.iter().map(|program| program.name.as_str()))
        .collect();
    let mut rows: Vec<Vec<String>> = programs
        .into_iter()
        .map(|program| {
            let counts = reports.iter().map(|report| report.verified(program));
            std::iter::once(program.to_owned()).chain(counts).collect()
        })
        .collect();
    let tests = reports.iter().map(Report::tests);
    rows.push(
        std::iter::once("packet tests".to_owned())
            .chain(tests)
            .collect(),
    );
    table::render(&header, &rows)
}

/// The end of a console, which has what went wrong.
pub fn tail(console: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = console.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = concat!(
        "[    0.4] Linux version 6.1\n",
        "vm-program: {\"name\":\"to_container\",\"translated\":14,\"verified\":12,\"jited\":71,",
        "\"stack\":[8]}\n",
        "test hairpin ... ok\n",
        "test queued ... skipped: no queue\nok\n",
        "test spoofed ... FAILED\n",
        "\nfailures:\n\n---- spoofed stdout ----\n    left: 1\n\nfailures:\n    spoofed\n\n",
        "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n",
        "vm: failure\n",
    );

    #[test]
    fn a_console_tells_what_failed() {
        let report = read("6.1.0-50", CONSOLE, None);
        assert!(!report.is_success());
        assert_eq!(
            report.verdict(),
            "6.1.0-50: FAILURE, 1 programs loaded, packet tests: 2 passed, 1 FAILED\n  failed: \
             spoofed\n  skipped: queued: no queue"
        );
    }

    #[test]
    fn kernels_stand_side_by_side() {
        let silent = read("5.10.0-32", "", Some(Error::msg("the kernel gave up")));
        let table = table(&[silent, read("6.1.0-50", CONSOLE, None)]);
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(
            rows[0],
            "verifier instructions      5.10.0-32            6.1.0-50"
        );
        assert_eq!(
            rows[1],
            "to_container                       -                  12"
        );
        assert_eq!(
            rows[2],
            "packet tests           none finished  2 passed, 1 FAILED"
        );
    }

    #[test]
    fn success_needs_the_machine_to_end_well() {
        let console = "test result: ok. 2 passed; 0 failed; 0 ignored\nvm: success\n";
        assert!(read("6.1.0-50", console, None).is_success());
        assert!(!read("6.1.0-50", console, Some(Error::msg("hung"))).is_success());
        assert!(!read("6.1.0-50", "vm: ", None).is_success());
    }
}
