//! The kernel modules that Weft needs, in an order in which they can be loaded.
//!
//! Debian makes `modules.dep` when a package is installed, which these are not; but every module
//! says itself what it depends on.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

/// What the agent and the packet tests use; absent modules may be built into the kernel.
const WANTED: [&str; 6] = [
    "veth",
    "vxlan",
    "bridge",
    "sch_ingress",
    "cls_bpf",
    "sch_fq",
];

/// A module, ready to be loaded.
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The ELF, decompressed.
    pub elf: Vec<u8>,
}

/// The wanted modules below `directory` and all that they depend on, dependencies first.
pub fn needed(directory: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(directory, &mut files)?;
    let list = directory.join("modules.builtin");
    let built_in = fs::read_to_string(&list)
        .with_context(|| format!("cannot read {}", list.display()))?
        .lines()
        .filter_map(|line| name_of(Path::new(line)))
        .collect();
    let mut order = Order {
        files,
        built_in,
        seen: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in WANTED {
        order.add(name)?;
    }
    Ok(order.modules)
}

struct Order {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order {
    fn add(&mut self, name: &str) -> Result<()> {
        if self.built_in.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            bail!("there is no module {name}, nor is it built in");
        };
        let elf = read(path).with_context(|| format!("cannot read {}", path.display()))?;
        for dependency in dependencies(&elf).with_context(|| format!("module {name}"))? {
            self.add(&dependency)?;
        }
        self.modules.push(Module {
            name: name.to_owned(),
            elf,
        });
        Ok(())
    }
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = name_of(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/net/sched/sch_ingress.ko.xz` is `sch_ingress`; a hyphen in it means an underscore.
fn name_of(path: &Path) -> Option<String> {
    let (name, extension) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(extension, "" | ".xz").then(|| name.replace('-', "_"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(path)?);
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .context("cannot run `xz` (Debian: `apt-get install xz-utils`)")?;
    if !output.status.success() {
        bail!(
            "`xz` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(output.stdout)
}

fn dependencies(elf: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(elf).context("not an ELF file")?;
    let section = file
        .section_by_name(".modinfo")
        .context("no section .modinfo")?;
    let info = section.data().context("section .modinfo cannot be read")?;
    Ok(depends(info))
}

/// Of the fields of `.modinfo`, ended by zeroes, the list after `depends=`.
fn depends(info: &[u8]) -> Vec<String> {
    info.split(|&byte| byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.strip_prefix("depends="))
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_one_name() {
        let name = |path: &str| name_of(Path::new(path));
        assert_eq!(
            name("kernel/net/sched/sch_ingress.ko.xz").as_deref(),
            Some("sch_ingress")
        );
        assert_eq!(
            name("kernel/drivers/net/vxlan/vxlan.ko").as_deref(),
            Some("vxlan")
        );
        assert_eq!(
            name("kernel/lib/libcrc32-c.ko").as_deref(),
            Some("libcrc32_c")
        );
        assert_eq!(name("modules.dep"), None);
    }

    #[test]
    fn dependencies_are_listed_by_the_module() {
        let info = b"license=GPL\0depends=udp_tunnel,ip6-udp-tunnel\0retpoline=Y\0";
        assert_eq!(depends(info), ["udp_tunnel", "ip6_udp_tunnel"]);
        assert!(depends(b"depends=\0").is_empty());
    }
}
