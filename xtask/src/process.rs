//! Running other programs: every failure names the command, and nothing runs unbounded unless the
//! developer watches it.

use std::{
    ffi::OsStr,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Says what a long step is about to do.
pub fn step(message: impl AsRef<str>) {
    eprintln!("==> {}", message.as_ref());
}

/// Runs `command` with this terminal, and fails unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| start_failure(command))?;
    ensure!(status.success(), "`{}` failed: {status}", line(command));
    Ok(())
}

/// Runs `command` and returns what it wrote to standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| start_failure(command))?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        line(command),
        output.status
    );
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something that is not UTF-8", line(command)))
}

/// Runs `command` like [`run`], and kills it when it takes longer than `limit`.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command.spawn().with_context(|| start_failure(command))?;
    let deadline = Instant::now() + limit;
    let status: ExitStatus = loop {
        if let Some(status) = child.try_wait().with_context(|| start_failure(command))? {
            break status;
        }
        if Instant::now() > deadline {
            child
                .kill()
                .with_context(|| format!("cannot kill `{}`", line(command)))?;
            child
                .wait()
                .with_context(|| format!("cannot reap `{}`", line(command)))?;
            bail!(
                "`{}` took longer than {} s and was killed",
                line(command),
                limit.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(20));
    };
    ensure!(status.success(), "`{}` failed: {status}", line(command));
    Ok(())
}

/// Whether a program of that name is on PATH.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    })
}

/// A command as one would type it, for messages.
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

fn start_failure(command: &Command) -> String {
    format!("cannot run `{}`", command.get_program().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command() {
        let error = run(Command::new("false").arg("argument")).expect_err("false fails");
        assert!(
            error.to_string().contains("`false argument` failed"),
            "{error}"
        );
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let error = run_within(Command::new("sleep").arg("600"), Duration::from_millis(50))
            .expect_err("the limit is shorter than the sleep");
        assert!(error.to_string().contains("was killed"), "{error}");
    }

    #[test]
    fn output_is_returned() {
        let text = output(Command::new("echo").arg("weft")).expect("echo runs");
        assert_eq!(text, "weft\n");
    }
}
