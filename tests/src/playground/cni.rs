//! The runtime's side of CNI: finds the network's configuration and runs its plugins, as containerd
//! does through libcni.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use weft_cni::{CniError, CniResult, Version};

use super::process::{self, Limit};
use crate::netns::{self, Netns};

/// One attachment of a sandbox to the network.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// The sandbox's id.
    pub container_id: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// The interface to make in it.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// What the runtime has to say, by capability. Each plugin gets, as `runtimeConfig`, what its
    /// configuration declares.
    pub capabilities: Map<String, Value>,
}

/// A node's CNI set-up.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Where network configurations are.
    pub conf_dir: PathBuf,
    /// Where plugins are.
    pub bin_dir: PathBuf,
    /// The cgroup in which plugins run; none for the caller's.
    pub cgroup: Option<PathBuf>,
}

/// A network as it was when a sandbox was attached to it: DEL gets the same configuration, whatever
/// has been installed since.
#[derive(Clone, Debug)]
pub struct Network {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

impl Runtime {
    /// The first network configuration by file name, as runtimes choose it; `None` when there is
    /// none yet.
    pub fn network(&self) -> Result<Option<Network>> {
        let mut files = Vec::new();
        let listing = fs::read_dir(&self.conf_dir)
            .with_context(|| format!("listing {}", self.conf_dir.display()))?;
        for file in listing {
            let path = file?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("conf" | "conflist" | "json")) {
                files.push(path);
            }
        }
        files.sort();
        let Some(path) = files.first() else {
            return Ok(None);
        };
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Network::parse(&text)
            .map(Some)
            .with_context(|| format!("in {}", path.display()))
    }

    /// ADD through all plugins; the last one's result is the sandbox's.
    pub fn add(&self, node: &Netns, network: &Network, attachment: &Attachment) -> Result<Value> {
        let mut previous = None;
        for plugin in &network.plugins {
            let conf = network.conf_for(plugin, previous.as_ref(), attachment);
            let output = self.run(node, "ADD", plugin, &conf, Some(attachment))?;
            let result = success("ADD", plugin, &output)?;
            let result: Value = serde_json::from_slice(result)
                .with_context(|| format!("the result of {} is not JSON", type_of(plugin)))?;
            previous = Some(result);
        }
        previous.context("the network has no plugins")
    }

    /// DEL through all plugins in reverse order, with the result of ADD if there is one. All are
    /// run, whatever the others say.
    pub fn del(
        &self,
        node: &Netns,
        network: &Network,
        attachment: &Attachment,
        result: Option<&Value>,
    ) -> Result<()> {
        let mut failure = Ok(());
        for plugin in network.plugins.iter().rev() {
            let conf = network.conf_for(plugin, result, attachment);
            let done = self
                .run(node, "DEL", plugin, &conf, Some(attachment))
                .and_then(|output| success("DEL", plugin, &output).map(drop));
            failure = failure.and(done);
        }
        failure
    }

    /// CHECK through all plugins with the result of ADD: whether the attachment is as it was made.
    pub fn check(
        &self,
        node: &Netns,
        network: &Network,
        attachment: &Attachment,
        result: &Value,
    ) -> Result<()> {
        for plugin in &network.plugins {
            let conf = network.conf_for(plugin, Some(result), attachment);
            let output = self.run(node, "CHECK", plugin, &conf, Some(attachment))?;
            success("CHECK", plugin, &output)?;
        }
        Ok(())
    }

    /// GC through all plugins: what belongs to none of these attachments is to go. With `None` the
    /// runtime does not say which are valid, as libcni does without arguments. All plugins are run,
    /// whatever the others say.
    pub fn gc(&self, node: &Netns, network: &Network, valid: Option<&[Attachment]>) -> Result<()> {
        let mut failure = Ok(());
        for plugin in &network.plugins {
            let mut conf = network.conf_of(plugin, None);
            if let Some(valid) = valid {
                let listed: Value = valid
                    .iter()
                    .map(|a| json!({ "containerID": a.container_id, "ifname": a.ifname }))
                    .collect();
                conf["cni.dev/valid-attachments"] = listed.clone();
                // What libcni sends besides, for plugins of before the final specification.
                conf["cni.dev/attachments"] = listed;
            }
            let done = self
                .run(node, "GC", plugin, &conf, None)
                .and_then(|output| success("GC", plugin, &output).map(drop));
            failure = failure.and(done);
        }
        failure
    }

    /// STATUS of all plugins: whether ADD can be served.
    pub fn status(&self, node: &Netns, network: &Network) -> Result<()> {
        for plugin in &network.plugins {
            let conf = network.conf_of(plugin, None);
            let output = self.run(node, "STATUS", plugin, &conf, None)?;
            success("STATUS", plugin, &output)?;
        }
        Ok(())
    }

    fn run(
        &self,
        node: &Netns,
        command: &str,
        plugin: &Map<String, Value>,
        conf: &Value,
        attachment: Option<&Attachment>,
    ) -> Result<Output> {
        let binary = self.bin_dir.join(type_of(plugin));
        let mut process = Command::new(&binary);
        process
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", &self.bin_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(attachment) = attachment {
            process
                .env("CNI_CONTAINERID", &attachment.container_id)
                .env("CNI_NETNS", &attachment.netns)
                .env("CNI_IFNAME", &attachment.ifname)
                .env("CNI_ARGS", &attachment.args);
        }
        netns::enter(&mut process, node, self.cgroup.as_deref())?;
        process::run(&mut process, conf.to_string().as_bytes(), Limit::PLUGIN)
            .with_context(|| format!("running {} for {command}", binary.display()))
    }
}

impl Network {
    /// Reads a configuration or a list of them.
    ///
    /// # Errors
    ///
    /// When no runtime would take it.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let conf: Map<String, Value> = serde_json::from_slice(text)?;
        let text_of = |key: &str| conf.get(key).and_then(Value::as_str).unwrap_or_default();
        let (name, version) = (text_of("name").to_owned(), text_of("cniVersion").to_owned());
        if name.is_empty() {
            bail!("the network has no name");
        }
        let plugins = match conf.get("plugins") {
            Some(Value::Array(plugins)) => plugins
                .iter()
                .map(|plugin| {
                    plugin
                        .as_object()
                        .cloned()
                        .context("a plugin is not an object")
                })
                .collect::<Result<_>>()?,
            Some(_) => bail!("plugins is not a list"),
            None => vec![conf],
        };
        let network = Network {
            name,
            version,
            plugins,
        };
        for plugin in &network.plugins {
            let kind = type_of(plugin);
            if kind.is_empty() || kind.contains('/') {
                bail!("{kind:?} is not a plugin's type");
            }
        }
        Ok(network)
    }

    /// What a plugin gets on stdin: its own part, and what the runtime injects.
    fn conf_of(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut conf = plugin.clone();
        conf.insert("name".to_owned(), json!(self.name));
        conf.insert("cniVersion".to_owned(), json!(self.version));
        conf.remove("capabilities");
        if let Some(previous) = previous {
            conf.insert("prevResult".to_owned(), previous.clone());
        }
        Value::Object(conf)
    }

    /// The same with what the runtime says about an attachment, as far as the plugin wants it.
    fn conf_for(
        &self,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
        attachment: &Attachment,
    ) -> Value {
        let mut conf = self.conf_of(plugin, previous);
        let declared = |name: &str| {
            let capabilities = plugin.get("capabilities").and_then(Value::as_object);
            capabilities.is_some_and(|all| all.get(name) == Some(&Value::Bool(true)))
        };
        let wanted: Map<String, Value> = attachment
            .capabilities
            .iter()
            .filter(|(name, _)| declared(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !wanted.is_empty() {
            conf["runtimeConfig"] = Value::Object(wanted);
        }
        conf
    }

    /// Reads a result of this network's plugins.
    pub fn result(&self, value: &Value) -> Result<CniResult> {
        let version: Version = self.version.parse()?;
        Ok(CniResult::parse(value, version)?)
    }
}

/// What a successful plugin printed, or its error.
fn success<'a>(command: &str, plugin: &Map<String, Value>, output: &'a Output) -> Result<&'a [u8]> {
    if output.status.success() {
        return Ok(&output.stdout);
    }
    let kind = type_of(plugin);
    match serde_json::from_slice::<CniError>(&output.stdout) {
        // The error itself stays at hand, for its code.
        Ok(error) => {
            Err(anyhow::Error::new(error).context(format!("plugin {kind} failed {command}")))
        }
        Err(_) => bail!(
            "plugin {kind} failed {command} ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

fn type_of(plugin: &Map<String, Value>) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `CNI_ARGS` as a Kubernetes runtime gives them.
pub fn kubernetes_args(namespace: &str, name: &str, uid: &str, container_id: &str) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
         K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID={uid}"
    )
}

/// What to say when there is no network.
pub fn no_network(conf_dir: &Path) -> String {
    format!(
        "no CNI network configuration in {}; is the agent up?",
        conf_dir.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_configuration_by_name_counts_and_other_files_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (conf_dir, bin_dir) = (dir.path().to_owned(), dir.path().to_owned());
        let runtime = Runtime {
            conf_dir,
            bin_dir,
            cgroup: None,
        };
        assert!(runtime.network().unwrap().is_none());
        fs::write(dir.path().join("00-half.conflist.tmp"), "{").unwrap();
        fs::write(dir.path().join("10-b.conf"), r#"{"name":"b","type":"t"}"#).unwrap();
        assert_eq!(runtime.network().unwrap().unwrap().name, "b");
        let list = r#"{"cniVersion":"1.1.0","name":"a","plugins":[{"type":"x"},{"type":"y"}]}"#;
        fs::write(dir.path().join("05-a.conflist"), list).unwrap();
        let network = runtime.network().unwrap().unwrap();
        assert_eq!((network.name.as_str(), network.plugins.len()), ("a", 2));
        fs::write(dir.path().join("01-broken.conf"), "{").unwrap();
        assert!(runtime.network().is_err());
    }

    #[test]
    fn plugins_get_the_networks_name_and_the_previous_result() {
        let text = br#"{"cniVersion":"1.1.0","name":"n","plugins":[
            {"type":"x","mtu":1400,"capabilities":{"portMappings":true}}]}"#;
        let network = Network::parse(text).unwrap();
        let previous = json!({"cniVersion": "1.1.0"});
        assert_eq!(
            network.conf_of(&network.plugins[0], Some(&previous)),
            json!({"cniVersion": "1.1.0", "name": "n", "type": "x", "mtu": 1400,
                   "prevResult": {"cniVersion": "1.1.0"}})
        );
    }

    #[test]
    fn plugins_get_of_the_runtimes_words_what_they_declare() {
        let text = br#"{"cniVersion":"1.1.0","name":"n","plugins":[
            {"type":"x","capabilities":{"portMappings":true,"bandwidth":false}}, {"type":"y"}]}"#;
        let network = Network::parse(text).unwrap();
        let mut attachment = Attachment::default();
        let conf = |index: usize, attachment: &Attachment| {
            network.conf_for(&network.plugins[index], None, attachment)
        };
        assert_eq!(conf(0, &attachment).get("runtimeConfig"), None);
        for name in ["portMappings", "bandwidth", "unknown"] {
            attachment.capabilities.insert(name.to_owned(), json!([]));
        }
        assert_eq!(
            conf(0, &attachment)["runtimeConfig"],
            json!({"portMappings": []})
        );
        assert_eq!(conf(1, &attachment).get("runtimeConfig"), None);
    }

    #[test]
    fn configurations_that_no_runtime_takes_are_refused() {
        for text in [
            "[]",
            "{}",
            r#"{"name":"n"}"#,
            r#"{"name":"n","type":"../x"}"#,
            r#"{"name":"n","plugins":{}}"#,
            r#"{"name":"n","plugins":[1]}"#,
        ] {
            assert!(Network::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
