//! The versions of the CNI specification that Weft speaks.

use std::fmt;
use std::str::FromStr;

use crate::error::{CniError, code};

/// A version of the CNI specification, ordered by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.1.0, which is also what a configuration without a version means.
    V0_1_0,
    /// 0.2.0: adds VERSION.
    V0_2_0,
    /// 0.3.0: results with interfaces and any number of addresses.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: adds CHECK.
    V0_4_0,
    /// 1.0.0: addresses no longer carry their family.
    V1_0_0,
    /// 1.1.0: adds GC and STATUS, and more fields in interfaces and routes.
    V1_1_0,
}

impl Version {
    /// Every supported version, oldest first.
    pub const ALL: [Version; 7] = [
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// The newest supported version: the shape that results have inside Weft.
    pub const LATEST: Version = Version::V1_1_0;

    /// The version as the specification writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// All supported versions as text, as VERSION and error details list them.
    pub fn supported() -> Vec<&'static str> {
        Version::ALL
            .iter()
            .map(|version| version.as_str())
            .collect()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = CniError;

    /// Parses a `cniVersion`; an empty one means 0.1.0.
    ///
    /// # Errors
    ///
    /// Code 1 with the supported versions in the details, when Weft does not speak that version.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Version::V0_1_0);
        }
        Version::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| {
                CniError::new(
                    code::INCOMPATIBLE_VERSION,
                    format!("cniVersion {text:?} is not supported"),
                )
                .with_details(format!(
                    "supported versions: {}",
                    Version::supported().join(", ")
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_parses_back_and_is_ordered() {
        for pair in Version::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for version in Version::ALL {
            assert_eq!(version.as_str().parse(), Ok(version));
        }
        assert_eq!("".parse(), Ok(Version::V0_1_0));
    }

    #[test]
    fn an_unknown_version_is_refused_with_the_supported_ones() {
        for text in ["9.9.9", "1.1", "1.1.0 ", "latest"] {
            let error = text.parse::<Version>().unwrap_err();
            assert_eq!(error.code, code::INCOMPATIBLE_VERSION);
            assert!(error.details.contains("0.1.0, 0.2.0"), "{}", error.details);
            assert!(error.details.contains("1.1.0"), "{}", error.details);
        }
    }
}
