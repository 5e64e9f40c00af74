//! The protocol between the plugin and the agent.
//!
//! One connection carries one request and one response, each a single line of JSON of at most
//! [`MAX_LINE`] bytes. Both are wrapped in an envelope with a protocol number: plugin and agent are
//! installed by the same agent, but a pod's DEL may come from a binary or a queue file that an older
//! or newer one left behind. The number changes when a message changes meaning; new optional fields
//! do not change it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::NetConf;
use crate::error::{CniError, code};
use crate::result::CniResult;

/// The protocol that this code speaks.
pub const PROTOCOL: u32 = 1;

/// The longest line either side sends or reads, in bytes, newline included.
pub const MAX_LINE: usize = 4 << 20;

/// What the runtime wants. VERSION never reaches the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach a container; succeeds when it is already gone.
    Del,
    /// Check that an attachment still is as ADD made it.
    Check,
    /// Remove every attachment that is not listed as valid.
    Gc,
    /// Say whether ADD can be served.
    Status,
}

impl Command {
    /// The command as `CNI_COMMAND` spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One invocation of the plugin, checked for form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// The container (sandbox); empty for GC and STATUS.
    pub container_id: String,
    /// Path of the container's network namespace; always there for ADD and CHECK.
    pub netns: Option<String>,
    /// The interface's name in the container; empty for GC and STATUS.
    pub ifname: String,
    /// What the runtime says about the pod.
    #[serde(default)]
    pub args: CniArgs,
    /// The network configuration; its version is a supported one and its name is valid.
    pub config: NetConf,
}

/// `CNI_ARGS`: what a Kubernetes runtime says about the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniArgs {
    /// `K8S_POD_NAMESPACE`.
    pub pod_namespace: Option<String>,
    /// `K8S_POD_NAME`.
    pub pod_name: Option<String>,
    /// `K8S_POD_UID`: tells apart pods that follow each other under one name.
    pub pod_uid: Option<String>,
    /// `K8S_POD_INFRA_CONTAINER_ID`.
    pub infra_container_id: Option<String>,
    /// Every other pair.
    pub other: BTreeMap<String, String>,
}

impl CniArgs {
    /// Parses `KEY=VALUE;KEY=VALUE`. Empty pairs are skipped, empty values count as absent.
    ///
    /// # Errors
    ///
    /// Code 4 when a pair has no `=` or no key.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = CniArgs::default();
        for pair in text
            .split(';')
            .map(str::trim)
            .filter(|pair| !pair.is_empty())
        {
            let Some((key, value)) = pair.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                return Err(CniError::new(
                    code::INVALID_ENVIRONMENT,
                    format!("CNI_ARGS: {pair:?} is not of the form KEY=VALUE"),
                ));
            };
            let known = match key {
                "K8S_POD_NAMESPACE" => &mut args.pod_namespace,
                "K8S_POD_NAME" => &mut args.pod_name,
                "K8S_POD_UID" => &mut args.pod_uid,
                "K8S_POD_INFRA_CONTAINER_ID" => &mut args.infra_container_id,
                _ => {
                    args.other.insert(key.to_owned(), value.to_owned());
                    continue;
                }
            };
            *known = Some(value.to_owned()).filter(|value| !value.is_empty());
        }
        Ok(args)
    }
}

/// The agent's answer: a result for ADD, nothing for the other commands, or an error that the plugin
/// hands to the runtime as it is.
pub type Response = Result<Option<CniResult>, CniError>;

/// The wire form of [`Response`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Success(Option<CniResult>),
    Failure(CniError),
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    protocol: u32,
    message: T,
}

/// Why a line of the other side is no message.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The message cannot be written as JSON, or is longer than [`MAX_LINE`].
    #[error("cannot encode the message: {0}")]
    Encode(String),
    /// The line is not a JSON message of the expected form.
    #[error("cannot decode the message: {0}")]
    Decode(#[from] serde_json::Error),
    /// The other side speaks another protocol.
    #[error(
        "the other side speaks protocol {theirs}, this side speaks {PROTOCOL}: plugin and agent \
         are of different releases; let the agent install its plugin"
    )]
    Version {
        /// The protocol of the other side.
        theirs: u32,
    },
}

impl From<ProtocolError> for CniError {
    fn from(error: ProtocolError) -> Self {
        let code = match error {
            ProtocolError::Version { .. } => code::TRY_AGAIN_LATER,
            ProtocolError::Encode(_) | ProtocolError::Decode(_) => code::INTERNAL,
        };
        CniError::new(
            code,
            "the CNI plugin and the Weft agent do not understand each other",
        )
        .with_details(error.to_string())
    }
}

/// A request as one line, newline included.
///
/// # Errors
///
/// When it is longer than [`MAX_LINE`].
pub fn encode_request(request: &Request) -> Result<Vec<u8>, ProtocolError> {
    encode(request)
}

/// Reads a request from one line.
///
/// # Errors
///
/// When it is not one, or is of another protocol. The agent answers with that error (it converts
/// to [`CniError`]); the plugin understands a failure of any protocol.
pub fn decode_request(line: &[u8]) -> Result<Request, ProtocolError> {
    decode(line)
}

/// A response as one line, newline included.
///
/// # Errors
///
/// When it is longer than [`MAX_LINE`].
pub fn encode_response(response: &Response) -> Result<Vec<u8>, ProtocolError> {
    encode(&match response.clone() {
        Ok(result) => Answer::Success(result),
        Err(error) => Answer::Failure(error),
    })
}

/// Reads a response from one line.
///
/// # Errors
///
/// When it is not one, or is of another protocol.
pub fn decode_response(line: &[u8]) -> Result<Response, ProtocolError> {
    // A failure keeps its form in every protocol, so that an agent of another release can say so.
    if let Ok(Envelope {
        message: Answer::Failure(error),
        ..
    }) = serde_json::from_slice(line)
    {
        return Ok(Err(error));
    }
    Ok(match decode(line)? {
        Answer::Success(result) => Ok(result),
        Answer::Failure(error) => Err(error),
    })
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let mut line = serde_json::to_vec(&Envelope {
        protocol: PROTOCOL,
        message,
    })
    .map_err(|error| ProtocolError::Encode(error.to_string()))?;
    line.push(b'\n');
    if line.len() > MAX_LINE {
        return Err(ProtocolError::Encode(format!(
            "{} bytes are more than the allowed {MAX_LINE}",
            line.len()
        )));
    }
    Ok(line)
}

fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, ProtocolError> {
    // The number first: a message of another protocol need not have the form of this one.
    let envelope: Envelope<Value> = serde_json::from_slice(line)?;
    if envelope.protocol != PROTOCOL {
        return Err(ProtocolError::Version {
            theirs: envelope.protocol,
        });
    }
    Ok(serde_json::from_value(envelope.message)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request() -> Request {
        Request {
            command: Command::Add,
            container_id: "c1".into(),
            netns: Some("/var/run/netns/c1".into()),
            ifname: "eth0".into(),
            args: CniArgs::parse("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p").unwrap(),
            config: NetConf::parse(br#"{"name":"weft","cniVersion":"1.0.0","x":{"y":"a\nb"}}"#)
                .unwrap(),
        }
    }

    #[test]
    fn a_request_is_one_line_and_comes_back() {
        let line = encode_request(&request()).unwrap();
        assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert_eq!(decode_request(&line).unwrap(), request());
    }

    #[test]
    fn responses_come_back() {
        for response in [
            Ok(None),
            Ok(Some(CniResult::default())),
            Err(CniError::new(11, "later")),
        ] {
            let line = encode_response(&response).unwrap();
            assert_eq!(decode_response(&line).unwrap(), response);
        }
    }

    #[test]
    fn another_protocol_is_refused_before_its_message_is_looked_at() {
        let line = json!({"protocol": 7, "message": "what?"}).to_string();
        let error = decode_request(line.as_bytes()).unwrap_err();
        assert!(
            matches!(error, ProtocolError::Version { theirs: 7 }),
            "{error}"
        );
        assert_eq!(CniError::from(error).code, code::TRY_AGAIN_LATER);
    }

    #[test]
    fn a_failure_of_another_protocol_is_understood() {
        let line = json!({"protocol": 7, "message": {"failure": {"code": 11, "msg": "old"}}});
        let response = decode_response(line.to_string().as_bytes()).unwrap();
        assert_eq!(response, Err(CniError::new(11, "old")));
    }

    #[test]
    fn broken_lines_are_errors() {
        for line in [
            "",
            "{",
            "[]",
            "{\"protocol\":1}",
            "{\"protocol\":1,\"message\":{}}",
        ] {
            assert!(decode_request(line.as_bytes()).is_err(), "{line}");
            assert!(decode_response(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn a_message_beyond_the_bound_is_not_sent() {
        let mut big = request();
        big.config.name = "x".repeat(MAX_LINE);
        assert!(matches!(
            encode_request(&big),
            Err(ProtocolError::Encode(_))
        ));
    }

    #[test]
    fn args_know_the_pod_and_keep_the_rest() {
        let args = CniArgs::parse(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u;\
             K8S_POD_INFRA_CONTAINER_ID=i;;IP=10.0.0.1=x;",
        )
        .unwrap();
        assert_eq!(args.pod_namespace.as_deref(), Some("ns"));
        assert_eq!(args.pod_name.as_deref(), Some("p"));
        assert_eq!(args.pod_uid.as_deref(), Some("u"));
        assert_eq!(args.infra_container_id.as_deref(), Some("i"));
        assert_eq!(args.other["IP"], "10.0.0.1=x");
        assert_eq!(CniArgs::parse("").unwrap(), CniArgs::default());
        assert_eq!(CniArgs::parse("K8S_POD_UID=").unwrap(), CniArgs::default());
        for bad in ["a", "=b", "A=1;b"] {
            assert_eq!(
                CniArgs::parse(bad).unwrap_err().code,
                code::INVALID_ENVIRONMENT,
                "{bad}"
            );
        }
    }
}
