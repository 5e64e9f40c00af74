//! The network configuration that a plugin reads from stdin.
//!
//! Keys that Weft does not know are kept: libcni and other plugins own them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{CniError, code};
use crate::result::CniResult;
use crate::version::Version;

/// Where the agent listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weft/cni.sock";

/// Where DELs wait for an absent agent unless the configuration says otherwise.
pub const DEFAULT_QUEUE_DIR: &str = "/var/lib/weft/cni-queue";

/// One plugin's network configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    /// The version that the result must have; empty means 0.1.0.
    #[serde(default)]
    pub cni_version: String,
    /// The network's name.
    #[serde(default)]
    pub name: String,
    /// The plugin's binary.
    #[serde(default, rename = "type")]
    pub plugin_type: String,
    /// MTU of pod interfaces in bytes; the agent's own choice when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The agent's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The directory in which DELs wait for the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_dir: Option<PathBuf>,
    /// What the runtime gives for the declared capabilities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_config: Option<Value>,
    /// The result of the plugin before this one, or (DEL, CHECK) of the whole ADD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<Value>,
    /// GC: the attachments to keep. Absent and `null` both mean that the runtime did not say.
    #[serde(
        default,
        rename = "cni.dev/valid-attachments",
        skip_serializing_if = "Option::is_none"
    )]
    pub valid_attachments: Option<Vec<Attachment>>,
    /// Every other key.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A container's attachment to the network, as GC lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

impl NetConf {
    /// Parses what came on stdin. Only the form is checked here; [`NetConf::version`] and
    /// [`NetConf::validate`] check the content.
    ///
    /// # Errors
    ///
    /// Code 6 when it is not a JSON object of the right form.
    pub fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        serde_json::from_slice(stdin).map_err(|error| {
            CniError::new(
                code::DECODE,
                "the network configuration on stdin cannot be decoded as JSON",
            )
            .with_details(error.to_string())
        })
    }

    /// The version that the runtime speaks.
    ///
    /// # Errors
    ///
    /// Code 1 when Weft does not speak it.
    pub fn version(&self) -> Result<Version, CniError> {
        self.cni_version.parse()
    }

    /// Checks the network's name.
    ///
    /// # Errors
    ///
    /// Code 7 when it is missing or has characters that the specification forbids.
    pub fn validate(&self) -> Result<(), CniError> {
        if self.name.is_empty() {
            return Err(CniError::new(
                code::INVALID_CONFIG,
                "the network configuration has no \"name\"",
            ));
        }
        if !is_cni_name(&self.name) {
            return Err(CniError::new(
                code::INVALID_CONFIG,
                format!("the network name {:?} is invalid", self.name),
            )
            .with_details(NAME_RULE));
        }
        Ok(())
    }

    /// Refuses a configuration that hands address management to another plugin: Weft's agent has
    /// the addresses, and a pod must not run with one that its operator did not mean.
    ///
    /// # Errors
    ///
    /// Code 2 with the key and its value.
    pub fn refuse_delegation(&self) -> Result<(), CniError> {
        let Some(ipam) = self.extra.get("ipam") else {
            return Ok(());
        };
        let delegates = ipam
            .get("type")
            .and_then(Value::as_str)
            .is_some_and(|plugin| !plugin.is_empty());
        if !delegates {
            return Ok(());
        }
        Err(CniError::new(
            code::UNSUPPORTED_FIELD,
            format!("\"ipam\": {ipam} is not supported"),
        )
        .with_details(
            "the Weft agent gives addresses out of the Node's spec.podCIDRs; remove \"ipam\"",
        ))
    }

    /// The previous result, if there is one, in the shape that Weft uses inside.
    ///
    /// # Errors
    ///
    /// Code 1 or 6 when it is of an unknown version or form.
    pub fn previous(&self) -> Result<Option<CniResult>, CniError> {
        let Some(value) = &self.prev_result else {
            return Ok(None);
        };
        if value.is_null() {
            return Ok(None);
        }
        CniResult::parse(value, self.version()?).map(Some)
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into())
    }

    /// The directory in which DELs wait for the agent.
    pub fn queue_dir(&self) -> PathBuf {
        self.queue_dir
            .clone()
            .unwrap_or_else(|| DEFAULT_QUEUE_DIR.into())
    }
}

/// What [`is_cni_name`] demands, in words.
pub(crate) const NAME_RULE: &str =
    "it must begin with a letter or digit and may go on with letters, digits, '_', '.' and '-'";

/// Whether a text is a valid container id or network name: `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
pub(crate) fn is_cni_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_follow_the_specification() {
        for good in ["a", "9", "weft", "a_b.c-d", "0123abcdef"] {
            assert!(is_cni_name(good), "{good}");
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "a\n", "ä"] {
            assert!(!is_cni_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn unknown_keys_survive_a_round_trip() {
        let text = json!({
            "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "mtu": 1400,
            "args": {"cni": {"labels": []}}, "io.kubernetes.cri.pod-annotations": {"a": "b"},
            "runtimeConfig": {"portMappings": []},
            "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
        });
        let conf = NetConf::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(conf.mtu, Some(1400));
        assert_eq!(conf.extra.len(), 2);
        assert_eq!(serde_json::to_value(&conf).unwrap(), text);
    }

    #[test]
    fn form_and_content_fail_with_their_codes() {
        let parse = |text: &str| NetConf::parse(text.as_bytes());
        for bad in [
            "",
            "{",
            "[]",
            "\"x\"",
            "{\"mtu\": \"big\"}",
            "{\"mtu\": -1}",
            "nope",
        ] {
            assert_eq!(parse(bad).unwrap_err().code, code::DECODE, "{bad}");
        }
        for bad in ["{}", "{\"name\": \"\"}", "{\"name\": \"a b\"}"] {
            let error = parse(bad).unwrap().validate().unwrap_err();
            assert_eq!(error.code, code::INVALID_CONFIG, "{bad}");
        }
        assert_eq!(
            parse("{\"name\": \"a\"}").unwrap().version(),
            Ok(Version::V0_1_0)
        );
    }

    #[test]
    fn addresses_of_another_plugin_are_refused() {
        let conf = |ipam: &str| {
            NetConf::parse(format!("{{\"name\":\"a\",\"ipam\":{ipam}}}").as_bytes()).unwrap()
        };
        let error = conf("{\"type\":\"host-local\"}")
            .refuse_delegation()
            .unwrap_err();
        assert_eq!(error.code, code::UNSUPPORTED_FIELD);
        assert!(error.msg.contains("host-local"), "{}", error.msg);
        for nothing in ["{}", "null", "{\"type\":\"\"}"] {
            assert_eq!(conf(nothing).refuse_delegation(), Ok(()), "{nothing}");
        }
        assert_eq!(NetConf::default().refuse_delegation(), Ok(()));
    }

    #[test]
    fn a_null_attachment_list_is_no_list() {
        let absent = NetConf::parse(b"{}").unwrap();
        let null = NetConf::parse(br#"{"cni.dev/valid-attachments": null}"#).unwrap();
        let empty = NetConf::parse(br#"{"cni.dev/valid-attachments": []}"#).unwrap();
        assert_eq!(absent.valid_attachments, None);
        assert_eq!(null.valid_attachments, None);
        assert_eq!(empty.valid_attachments, Some(Vec::new()));
    }
}
