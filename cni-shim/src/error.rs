//! CNI errors: a code that the runtime understands, and words for the operator.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::version::Version;

/// Error codes of the CNI specification, the two that its Go library adds and runtimes know, and
/// Weft's own.
pub mod code {
    /// The `cniVersion` is not supported, or the command does not exist in it.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is not supported; the message names it.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is not known; the runtime need not clean up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// An environment variable is missing or invalid; the message names it.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading or writing failed.
    pub const IO: u32 = 5;
    /// The configuration on stdin cannot be decoded.
    pub const DECODE: u32 = 6;
    /// The network configuration is invalid.
    pub const INVALID_CONFIG: u32 = 7;
    /// The network namespace is not one, or is the plugin's own (Go library).
    pub const INVALID_NETNS: u32 = 8;
    /// A passing condition; the runtime should try again later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot serve ADD.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: the plugin cannot serve ADD, and existing containers may have limited connectivity.
    pub const NOT_AVAILABLE_DEGRADED: u32 = 51;
    /// CHECK: something that ADD made is missing or another one now. The specification leaves codes
    /// from 100 on to plugins.
    pub const DAMAGED: u32 = 100;
    /// Anything else (Go library).
    pub const INTERNAL: u32 = 999;
}

/// What a plugin prints when it fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details} (code {code})", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// What failed, and on what.
    pub msg: String,
    /// Why, or what to do; may be empty.
    #[serde(default)]
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        CniError {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// The same error with details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The JSON object that goes to stdout.
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": self.code,
            "msg": self.msg,
        });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_shape_of_the_specification() {
        let plain = CniError::new(code::DECODE, "no");
        assert_eq!(
            plain.to_json(Version::V0_4_0),
            json!({"cniVersion": "0.4.0", "code": 6, "msg": "no"})
        );
        let detailed = plain.with_details("because");
        assert_eq!(
            detailed.to_json(Version::V1_1_0),
            json!({"cniVersion": "1.1.0", "code": 6, "msg": "no", "details": "because"})
        );
        assert_eq!(detailed.to_string(), "no: because (code 6)");
    }
}
