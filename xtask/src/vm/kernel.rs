//! Debian's kernels for clouds: small, and with every driver that a virtual machine needs built in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{debian::Archive, process};

/// Where the kernels are, from the oldest supported line to the newest.
pub const SUITES: [&str; 4] = ["bullseye", "bookworm", "trixie", "trixie-backports"];

const FLAVOUR: &str = "-cloud-amd64";

/// What a kernel consists of. New releases split the image, its modules and their lists.
const PACKAGES: [&str; 4] = [
    "linux-image-",
    "linux-binary-",
    "linux-modules-",
    "linux-base-",
];

/// An unpacked kernel.
pub struct Kernel {
    /// The compressed image that QEMU boots.
    pub image: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

/// Every release that the archive has, for example `6.1.0-50`.
pub fn available(archive: &Archive) -> Result<Vec<String>> {
    let mut releases: Vec<String> = archive
        .names("linux-image-")?
        .iter()
        .filter_map(|name| release_of(name))
        .collect();
    releases.sort_by_key(|release| numbers(release));
    Ok(releases)
}

fn release_of(package: &str) -> Option<String> {
    let release = package
        .strip_prefix("linux-image-")?
        .strip_suffix(FLAVOUR)?;
    release
        .starts_with(|first: char| first.is_ascii_digit())
        .then(|| release.to_owned())
}

/// The newest release of the line that `wanted` names; `newest` is the newest of all.
pub fn choose<'a>(available: &'a [String], wanted: &str) -> Result<&'a str> {
    let in_line = |release: &str| match release.strip_prefix(wanted) {
        Some(rest) => !rest.starts_with(|next: char| next.is_ascii_digit()),
        None => wanted == "newest",
    };
    match available.iter().rev().find(|release| in_line(release)) {
        Some(release) => Ok(release),
        None => bail!(
            "Debian ({}) has no kernel {wanted}; it has {}",
            SUITES.join(", "),
            available.join(" ")
        ),
    }
}

/// The numbers in a release, which order releases: 6.12.107 is after 6.12.95.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Fetches and unpacks a release below `cache`, unless it is there.
pub fn fetch(archive: &Archive, release: &str, cache: &Path) -> Result<Kernel> {
    let root = cache.join(release);
    if !root.exists() {
        process::step(format!("fetching kernel {release} from Debian"));
        let staging = cache.join(format!("{release}.{}", std::process::id()));
        for prefix in PACKAGES {
            let package = format!("{prefix}{release}{FLAVOUR}");
            if let Some(version) = archive.versions(&package)?.first() {
                archive.unpack(&package, version, &staging)?;
            }
        }
        fs::rename(&staging, &root).with_context(|| format!("cannot place {}", root.display()))?;
    }
    find(&root, release).with_context(|| {
        format!(
            "{} is not a whole kernel; remove it to fetch it again",
            root.display()
        )
    })
}

/// The places of image and modules changed with Debian's releases.
fn find(root: &Path, release: &str) -> Result<Kernel> {
    let name = format!("{release}{FLAVOUR}");
    let places = [
        format!("usr/lib/modules/{name}"),
        format!("lib/modules/{name}"),
    ];
    let modules = places
        .into_iter()
        .map(|place| root.join(place))
        .find(|place| place.is_dir())
        .context("no modules in it")?;
    let image = [
        root.join(format!("boot/vmlinuz-{name}")),
        modules.join("vmlinuz"),
    ]
    .into_iter()
    .find(|place| place.is_file())
    .context("no image in it")?;
    Ok(Kernel { image, modules })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn releases() -> Vec<String> {
        let mut releases: Vec<String> = [
            "linux-image-6.12.95+deb12-cloud-amd64",
            "linux-image-6.12.107+deb13-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64-unsigned",
            "linux-image-cloud-amd64",
            "linux-image-7.2.12+deb13-cloud-amd64",
        ]
        .iter()
        .filter_map(|name| release_of(name))
        .collect();
        releases.sort_by_key(|release| numbers(release));
        releases
    }

    #[test]
    fn a_line_means_its_newest_release() {
        let releases = releases();
        assert_eq!(choose(&releases, "6.1").expect("there"), "6.1.0-50");
        assert_eq!(choose(&releases, "6.12").expect("there"), "6.12.107+deb13");
        assert_eq!(choose(&releases, "newest").expect("there"), "7.2.12+deb13");
    }

    #[test]
    fn an_exact_release_is_itself() {
        let releases = releases();
        assert_eq!(
            choose(&releases, "6.12.95+deb12").expect("there"),
            "6.12.95+deb12"
        );
    }

    #[test]
    fn an_unknown_line_tells_what_there_is() {
        let error = choose(&releases(), "4.19").expect_err("not there");
        assert!(error.to_string().contains("6.1.0-9 6.1.0-50"), "{error}");
    }
}
