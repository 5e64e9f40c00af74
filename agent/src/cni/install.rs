//! Installs the plugin and its configuration where the container runtime looks.
//!
//! The plugin first, and the configuration last, when the agent can serve: old runtimes take its
//! presence for readiness. Neither is removed when the agent stops: a runtime without a network
//! cannot even remove pods.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;
use tracing::info;
use weft_cni::PLUGIN_TYPE;

use crate::config::Config;
use crate::persist;

/// The configuration's file name: first in the alphabet among the usual ones.
pub const CONFLIST: &str = "05-weft.conflist";

/// Copies the plugin, if it differs from what is there. By rename: a plugin that is running at this
/// moment keeps its file.
///
/// # Errors
///
/// When it cannot be read or written.
pub fn plugin(from: &Path, dir: &Path) -> Result<()> {
    let to = dir.join(PLUGIN_TYPE);
    let context = || format!("cannot install {} as {}", from.display(), to.display());
    let content = fs::read(from).with_context(context)?;
    if fs::read(&to).is_ok_and(|there| there == content) {
        return Ok(());
    }
    fs::create_dir_all(dir).with_context(context)?;
    persist::write(&to, &content, 0o755).with_context(context)?;
    info!(file = %to.display(), "installed the CNI plugin");
    Ok(())
}

/// Writes the configuration, if it differs from what is there.
///
/// # Errors
///
/// When it cannot be written.
pub fn conflist(config: &Config, dir: &Path) -> Result<()> {
    let to = dir.join(CONFLIST);
    let context = || format!("cannot write {}", to.display());
    let content = render(config);
    if fs::read(&to).is_ok_and(|there| there == content) {
        return Ok(());
    }
    fs::create_dir_all(dir).with_context(context)?;
    persist::write(&to, &content, 0o644).with_context(context)?;
    // containerd's watcher misses some renames, never a write: the same bytes once more.
    OpenOptions::new()
        .write(true)
        .open(&to)
        .and_then(|mut file| file.write_all(&content))
        .with_context(context)?;
    info!(file = %to.display(), "installed the CNI configuration");
    Ok(())
}

fn render(config: &Config) -> Vec<u8> {
    let conflist = json!({
        "cniVersion": "1.1.0",
        "name": "weft",
        "plugins": [{
            "type": PLUGIN_TYPE,
            "capabilities": {
                "portMappings": true,
                "bandwidth": true,
                "mac": true,
                "ips": true,
                "io.kubernetes.cri.pod-annotations": true,
            },
            "socket": config.cni_socket(),
            "queueDir": config.cni_queue(),
        }],
    });
    format!("{conflist:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use weft_cni::NetConf;

    fn config() -> Config {
        let args = [
            "weft-agent",
            "run",
            "--node-name",
            "n1",
            "--run-dir",
            "/r",
            "--state-dir",
            "/s",
        ];
        match Cli::try_parse_from(args).expect("parses").command {
            Command::Run(args) => Config::new(*args).expect("valid"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_but_the_files_themselves_ever_looks_like_one() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (source, bin, conf) = (
            dir.path().join("built"),
            dir.path().join("bin"),
            dir.path().join("net.d"),
        );
        fs::write(&source, b"plugin").expect("writes");
        plugin(&source, &bin).expect("installs");
        conflist(&config(), &conf).expect("installs");
        let names = |dir: &Path| -> Vec<_> {
            fs::read_dir(dir)
                .expect("lists")
                .map(|e| e.expect("entry").file_name())
                .collect()
        };
        assert_eq!(names(&bin), [PLUGIN_TYPE]);
        assert_eq!(names(&conf), [CONFLIST]);
        let mode = fs::metadata(bin.join(PLUGIN_TYPE))
            .expect("is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);

        let installed = |path: &Path| fs::metadata(path).expect("is there").ino();
        let before = (
            installed(&bin.join(PLUGIN_TYPE)),
            installed(&conf.join(CONFLIST)),
        );
        plugin(&source, &bin).expect("is there");
        conflist(&config(), &conf).expect("is there");
        assert_eq!(
            before,
            (
                installed(&bin.join(PLUGIN_TYPE)),
                installed(&conf.join(CONFLIST))
            )
        );
        fs::write(&source, b"newer plugin").expect("writes");
        plugin(&source, &bin).expect("replaces");
        assert_eq!(
            fs::read(bin.join(PLUGIN_TYPE)).expect("reads"),
            b"newer plugin"
        );
        assert_ne!(before.0, installed(&bin.join(PLUGIN_TYPE)), "by rename");
    }

    #[test]
    fn the_plugin_understands_the_configuration() {
        let list: serde_json::Value = serde_json::from_slice(&render(&config())).expect("json");
        let mut plugin = list["plugins"][0].clone();
        plugin["name"] = list["name"].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        let conf = NetConf::parse(plugin.to_string().as_bytes()).expect("parses");
        conf.validate().expect("valid");
        assert_eq!(conf.socket(), Path::new("/r/cni.sock"));
        assert_eq!(conf.queue_dir(), Path::new("/s/cni-queue"));
    }
}
