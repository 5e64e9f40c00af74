//! Packages from Debian's archive, fetched and unpacked without installing anything or touching
//! the system's package sources.

use std::{
    fs,
    os::unix,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long package lists are taken as they are.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// How long the mirror may take for lists or for one package.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// The packages of some suites, by lists kept in a directory of ours.
pub struct Archive {
    directory: PathBuf,
}

impl Archive {
    /// Fetches the package lists of `suites` into `directory`, unless they are there and of today.
    pub fn open(directory: &Path, suites: &[&str]) -> Result<Self> {
        ensure!(
            process::on_path("apt-get") && process::on_path("dpkg") && Path::new(KEYRING).exists(),
            "this machine has no Debian package tools (apt-get, dpkg and {KEYRING})"
        );
        fs::create_dir_all(directory.join("lists/partial"))
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let archive = Self {
            directory: directory.to_owned(),
        };
        let mirror = mirror()?;
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        let list = directory.join("sources.list");
        let stamp = directory.join("updated");
        let unchanged = fs::read_to_string(&list).is_ok_and(|known| known == sources);
        if unchanged && is_fresh(&stamp) {
            return Ok(archive);
        }
        fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))?;
        process::step(format!(
            "fetching Debian's package lists: {}",
            suites.join(", ")
        ));
        // The lists of one suite may be missing on a mirror; what is needed is looked up next.
        let updated = process::run_within(
            archive
                .apt("apt-get")
                .args(["--quiet=2", "update"])
                .stdout(Stdio::null()),
            PATIENCE,
        );
        match updated {
            Ok(()) => fs::write(&stamp, "").context("cannot write the stamp of package lists")?,
            Err(error) => eprintln!("xtask: package lists are incomplete: {error:#}"),
        }
        Ok(archive)
    }

    /// The names of all packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = process::output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The versions of a package, newest first.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let table = process::output(self.apt("apt-cache").args(["madison", package]))?;
        Ok(table
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(|version| version.trim().to_owned())
            .collect())
    }

    /// Downloads `package` in `version` and unpacks it into `root`.
    pub fn unpack(&self, package: &str, version: &str, root: &Path) -> Result<()> {
        let debs = self.directory.join(format!("deb-{}", std::process::id()));
        fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
        let unpacked = self.download(package, version, &debs).and_then(|deb| {
            fs::create_dir_all(root)?;
            process::run(Command::new("dpkg").arg("-x").arg(deb).arg(root))
        });
        fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))?;
        unpacked.with_context(|| format!("cannot fetch Debian's package {package} {version}"))
    }

    fn download(&self, package: &str, version: &str, into: &Path) -> Result<PathBuf> {
        process::run_within(
            self.apt("apt-get")
                .args(["--quiet=2", "download", &format!("{package}={version}")])
                .current_dir(into)
                .stdout(Stdio::null()),
            PATIENCE,
        )?;
        let mut files = fs::read_dir(into)?.filter_map(|entry| Some(entry.ok()?.path()));
        files
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get left no package")
    }

    fn apt(&self, program: &str) -> Command {
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        for setting in [
            option("Dir::Etc::SourceList", &self.directory.join("sources.list")),
            option("Dir::State::Lists", &self.directory.join("lists")),
            "Dir::Etc::SourceParts=-".to_owned(),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            // Old stable releases stay signed when their lists are no longer renewed.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // The directory is root's own; apt's user need not read it.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.arg("-o").arg(setting);
        }
        command
    }
}

/// The mirror that the machine's own apt configuration uses for Debian.
fn mirror() -> Result<String> {
    let targets = process::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(CREATED_BY) $(REPO_URI) $(RELEASE)",
    ]))?;
    match pick_mirror(&targets) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!("apt's configuration names no Debian mirror (`apt-get indextargets`)"),
    }
}

/// Of `Packages <URI> <release>` lines, the URI of the archive proper: not of its security part,
/// not of another vendor.
fn pick_mirror(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (kind, uri, release) = (fields.next()?, fields.next()?, fields.next()?);
        let is_archive =
            uri.trim_end_matches('/').ends_with("/debian") && !release.ends_with("-security");
        (kind == "Packages" && is_archive).then_some(uri)
    })
}

fn is_fresh(stamp: &Path) -> bool {
    let age = fs::metadata(stamp)
        .and_then(|metadata| metadata.modified())
        .map(|modified| {
            SystemTime::now()
                .duration_since(modified)
                .unwrap_or_default()
        });
    age.is_ok_and(|age| age < FRESH)
}

/// Replaces `link` by a symbolic link to `original`.
pub fn relink(original: &Path, link: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot remove {}", link.display()));
        }
    }
    unix::fs::symlink(original, link).with_context(|| format!("cannot link {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_archive_itself() {
        let targets = "Packages http://mirror.example/other bookworm\n\
                       Packages http://mirror.example/debian-security/ bookworm-security\n\
                       Translations http://mirror.example/debian/ bookworm\n\
                       Packages http://mirror.example/debian/ bookworm\n";
        assert_eq!(pick_mirror(targets), Some("http://mirror.example/debian/"));
        assert_eq!(
            pick_mirror("Packages http://mirror.example/other stable\n"),
            None
        );
    }
}
