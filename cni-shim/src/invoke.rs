//! An invocation by the runtime: environment and stdin, checked before anything is done.
//!
//! The environment comes in as a function and stdin as a reader, so that the rules are plain code.

use std::io::Read;

use serde_json::Value;

use crate::config::{NAME_RULE, NetConf, is_cni_name};
use crate::error::{CniError, code};
use crate::protocol::{CniArgs, Command, Request};
use crate::version::Version;

/// The longest configuration that is read from stdin, in bytes. It leaves room for the rest of a
/// request within [`crate::protocol::MAX_LINE`], also where JSON must escape.
pub const MAX_STDIN: usize = 1 << 20;

/// What the runtime asked for.
#[derive(Debug, PartialEq)]
pub enum Invocation {
    /// No `CNI_COMMAND`: a person ran the plugin.
    About,
    /// VERSION; stdin is not read.
    Version,
    /// A command for the agent.
    Request(Box<Request>),
}

/// An error with the version to report it in.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The version of the configuration, as far as it is known.
    pub version: Version,
    /// What is wrong.
    pub error: CniError,
}

impl Failure {
    /// A failure before, or apart from, any known version.
    pub fn unversioned(error: CniError) -> Self {
        Failure {
            version: Version::LATEST,
            error,
        }
    }
}

/// Reads and checks what the runtime gave.
///
/// `env` returns a variable's value, `Err` for one that is not UTF-8. Whether `CNI_NETNS` names a
/// usable namespace is not looked at: see [`crate::invoke::check_netns`].
///
/// # Errors
///
/// With the codes of the specification: 4 environment, 5 reading stdin, 6 decoding it, 1 version,
/// 2 a field that asks for what Weft does not do, 7 network configuration.
pub fn read(
    env: impl Fn(&str) -> Result<Option<String>, CniError>,
    stdin: impl Read,
) -> Result<Invocation, Failure> {
    let set = |name: &str| Ok(env(name)?.filter(|value| !value.is_empty()));
    let command = match set("CNI_COMMAND").map_err(Failure::unversioned)?.as_deref() {
        None => return Ok(Invocation::About),
        Some("VERSION") => return Ok(Invocation::Version),
        Some("ADD") => Command::Add,
        Some("DEL") => Command::Del,
        Some("CHECK") => Command::Check,
        Some("GC") => Command::Gc,
        Some("STATUS") => Command::Status,
        Some(other) => {
            return Err(Failure::unversioned(
                CniError::new(
                    code::INVALID_ENVIRONMENT,
                    format!("CNI_COMMAND: unknown command {other:?}"),
                )
                .with_details("known: ADD, DEL, CHECK, GC, STATUS, VERSION"),
            ));
        }
    };

    let config = read_stdin(stdin).and_then(|stdin| NetConf::parse(&stdin));
    let config = config.map_err(Failure::unversioned)?;
    let version = config.version().map_err(Failure::unversioned)?;
    request(command, version, config, set)
        .map(|request| Invocation::Request(Box::new(request)))
        .map_err(|error| Failure { version, error })
}

/// Checks that a namespace's path is not the plugin's own namespace: configuring that as a pod's
/// would cut off the node. Identity is what `stat` says, `device` and `inode` in that order.
///
/// # Errors
///
/// Code 8.
pub fn check_netns(path: &str, namespace: (u64, u64), own: (u64, u64)) -> Result<(), CniError> {
    if namespace == own {
        return Err(CniError::new(
            code::INVALID_NETNS,
            format!("CNI_NETNS: {path:?} is the network namespace that the plugin runs in"),
        )
        .with_details("set CNI_NETNS_OVERRIDE=1 if that is meant"));
    }
    Ok(())
}

fn read_stdin(stdin: impl Read) -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    stdin
        .take(MAX_STDIN as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| {
            CniError::new(code::IO, "cannot read the network configuration from stdin")
                .with_details(error.to_string())
        })?;
    if bytes.len() > MAX_STDIN {
        return Err(CniError::new(
            code::DECODE,
            format!("the network configuration on stdin is longer than {MAX_STDIN} bytes"),
        ));
    }
    Ok(bytes)
}

fn request(
    command: Command,
    version: Version,
    config: NetConf,
    set: impl Fn(&str) -> Result<Option<String>, CniError>,
) -> Result<Request, CniError> {
    let since = match command {
        Command::Add | Command::Del => Version::V0_1_0,
        Command::Check => Version::V0_4_0,
        Command::Gc | Command::Status => Version::V1_1_0,
    };
    if version < since {
        return Err(CniError::new(
            code::INCOMPATIBLE_VERSION,
            format!("{command} does not exist in CNI {version}, only since {since}"),
        )
        .with_details(format!(
            "supported versions: {}",
            Version::supported().join(", ")
        )));
    }
    config.validate()?;
    if matches!(command, Command::Add | Command::Check | Command::Status) {
        config.refuse_delegation()?;
    }
    if command == Command::Check && config.prev_result.as_ref().is_none_or(Value::is_null) {
        return Err(CniError::new(
            code::INVALID_CONFIG,
            "CHECK needs a \"prevResult\"",
        ));
    }

    let container = matches!(command, Command::Add | Command::Del | Command::Check);
    let mut required = Vec::new();
    if container {
        required.extend(["CNI_CONTAINERID", "CNI_IFNAME"]);
    }
    if matches!(command, Command::Add | Command::Check) {
        required.push("CNI_NETNS");
    }
    let mut missing = Vec::new();
    for name in required {
        if set(name)?.is_none() {
            missing.push(name);
        }
    }
    if !missing.is_empty() {
        return Err(CniError::new(
            code::INVALID_ENVIRONMENT,
            format!("{command} needs {}", missing.join(", ")),
        ));
    }

    // For GC and STATUS runtimes leave rubbish in the container's variables.
    let of_container = |name: &str| if container { set(name) } else { Ok(None) };
    let container_id = of_container("CNI_CONTAINERID")?.unwrap_or_default();
    let ifname = of_container("CNI_IFNAME")?.unwrap_or_default();
    if container {
        if !is_cni_name(&container_id) {
            return Err(CniError::new(
                code::INVALID_ENVIRONMENT,
                format!("CNI_CONTAINERID: {container_id:?} is invalid"),
            )
            .with_details(NAME_RULE));
        }
        check_ifname(&ifname)?;
    }
    let args = match of_container("CNI_ARGS")? {
        // A container must be able to go whatever its arguments are.
        Some(text) if command == Command::Del => CniArgs::parse(&text).unwrap_or_default(),
        Some(text) => CniArgs::parse(&text)?,
        None => CniArgs::default(),
    };
    let netns = of_container("CNI_NETNS")?;
    Ok(Request {
        command,
        container_id,
        netns,
        ifname,
        args,
        config,
    })
}

/// The kernel's rules for interface names.
fn check_ifname(name: &str) -> Result<(), CniError> {
    let why = if name.len() > 15 {
        "longer than 15 bytes"
    } else if name == "." || name == ".." {
        "a directory's name"
    } else if name
        .chars()
        .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
    {
        "it has a slash, colon, space or control character"
    } else {
        return Ok(());
    };
    Err(CniError::new(
        code::INVALID_ENVIRONMENT,
        format!("CNI_IFNAME: {name:?} is invalid"),
    )
    .with_details(why))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;

    use super::*;

    const CONF: &str = r#"{"cniVersion":"1.1.0","name":"weft","type":"weft-cni"}"#;

    fn invoke(env: &[(&str, &str)], stdin: &str) -> Result<Invocation, Failure> {
        let env: BTreeMap<_, _> = env.iter().copied().collect();
        read(
            |name| Ok(env.get(name).map(|value| (*value).to_owned())),
            stdin.as_bytes(),
        )
    }

    fn request(env: &[(&str, &str)], stdin: &str) -> Request {
        match invoke(env, stdin).unwrap() {
            Invocation::Request(request) => *request,
            other => panic!("no request: {other:?}"),
        }
    }

    fn code_of(env: &[(&str, &str)], stdin: &str) -> u32 {
        invoke(env, stdin).unwrap_err().error.code
    }

    fn add<'a>(id: &'a str, ifname: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", "/n"),
            ("CNI_IFNAME", ifname),
        ]
    }

    /// Fails the test when somebody reads it.
    struct Untouched;

    impl Read for Untouched {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("stdin was read");
        }
    }

    #[test]
    fn add_carries_everything() {
        let mut env = add("c1", "eth0");
        env.push((
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAME=p;K8S_POD_NAMESPACE=ns",
        ));
        let request = request(&env, CONF);
        assert_eq!(request.command, Command::Add);
        assert_eq!(request.container_id, "c1");
        assert_eq!(request.ifname, "eth0");
        assert_eq!(request.netns.as_deref(), Some("/n"));
        assert_eq!(request.args.pod_name.as_deref(), Some("p"));
        assert_eq!(request.config.name, "weft");
    }

    #[test]
    fn version_and_about_never_read_stdin() {
        let version = |name: &str| Ok((name == "CNI_COMMAND").then(|| "VERSION".to_owned()));
        assert_eq!(read(version, Untouched), Ok(Invocation::Version));
        assert_eq!(read(|_| Ok(None), Untouched), Ok(Invocation::About));
        assert_eq!(invoke(&[("CNI_COMMAND", "")], ""), Ok(Invocation::About));
    }

    #[test]
    fn del_needs_neither_netns_nor_good_args() {
        let env = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "e"),
            ("CNI_ARGS", "?"),
        ];
        assert_eq!(request(&env, CONF).netns, None);
    }

    #[test]
    fn gc_and_status_ignore_the_containers_variables() {
        for command in ["GC", "STATUS"] {
            let env = [
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", "???"),
                ("CNI_NETNS", "dummy"),
                ("CNI_IFNAME", "a/b"),
            ];
            let request = request(&env, CONF);
            assert_eq!((request.container_id.as_str(), request.netns), ("", None));
        }
    }

    #[test]
    fn missing_variables_are_all_named() {
        let failure = invoke(&[("CNI_COMMAND", "ADD")], CONF).unwrap_err();
        assert_eq!(failure.error.code, code::INVALID_ENVIRONMENT);
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            assert!(failure.error.msg.contains(name), "{}", failure.error.msg);
        }
        assert_eq!(
            code_of(&[("CNI_COMMAND", "DEL")], CONF),
            code::INVALID_ENVIRONMENT
        );
        assert_eq!(
            code_of(&[("CNI_COMMAND", "MAKE")], CONF),
            code::INVALID_ENVIRONMENT
        );
    }

    #[test]
    fn names_are_checked() {
        for (id, ifname) in [
            ("a/b", "eth0"),
            ("-a", "eth0"),
            ("a", "sixteen-letters-"),
            ("a", "."),
            ("a", ".."),
            ("a", "a/b"),
            ("a", "a:b"),
            ("a", "a b"),
            ("a", "a\t"),
        ] {
            assert_eq!(
                code_of(&add(id, ifname), CONF),
                code::INVALID_ENVIRONMENT,
                "{id} {ifname}"
            );
        }
        request(&add("a", "fifteen-letters"), CONF);
        let mut env = add("a", "eth0");
        env.push(("CNI_ARGS", "K8S_POD_NAME"));
        assert_eq!(code_of(&env, CONF), code::INVALID_ENVIRONMENT);
    }

    #[test]
    fn a_variable_that_is_no_text_is_reported() {
        let env = |name: &str| match name {
            "CNI_COMMAND" => Ok(Some("DEL".to_owned())),
            _ => Err(CniError::new(code::INVALID_ENVIRONMENT, name)),
        };
        let failure = read(env, CONF.as_bytes()).unwrap_err();
        assert_eq!(failure.error.code, code::INVALID_ENVIRONMENT);
    }

    #[test]
    fn bad_stdin_has_its_codes() {
        let env = add("a", "eth0");
        assert_eq!(code_of(&env, ""), code::DECODE);
        assert_eq!(code_of(&env, "not json"), code::DECODE);
        assert_eq!(code_of(&env, &" ".repeat(MAX_STDIN + 1)), code::DECODE);
        assert_eq!(code_of(&env, r#"{"cniVersion":"5.0.0","name":"a"}"#), 1);
        assert_eq!(
            code_of(&env, r#"{"cniVersion":"1.1.0"}"#),
            code::INVALID_CONFIG
        );
        assert_eq!(
            code_of(&env, r#"{"cniVersion":"1.1.0","name":"a b"}"#),
            code::INVALID_CONFIG
        );
    }

    #[test]
    fn errors_carry_the_configurations_version() {
        let failure = invoke(&add("a", "eth0"), r#"{"cniVersion":"0.4.0"}"#).unwrap_err();
        assert_eq!(failure.version, Version::V0_4_0);
        let failure = invoke(&add("a", "eth0"), "{}").unwrap_err();
        assert_eq!(failure.version, Version::V0_1_0);
    }

    #[test]
    fn commands_are_gated_by_version() {
        for (command, version, expected) in [
            ("CHECK", "0.3.1", code::INCOMPATIBLE_VERSION),
            ("CHECK", "0.4.0", code::INVALID_CONFIG), // no prevResult
            ("GC", "1.0.0", code::INCOMPATIBLE_VERSION),
            ("STATUS", "1.0.0", code::INCOMPATIBLE_VERSION),
        ] {
            let mut env = add("a", "eth0");
            env[0].1 = command;
            let conf = format!(r#"{{"cniVersion":"{version}","name":"weft"}}"#);
            assert_eq!(code_of(&env, &conf), expected, "{command} {version}");
        }
    }

    #[test]
    fn a_reader_that_fails_is_an_io_error() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let env: BTreeMap<_, _> = add("a", "eth0").into_iter().collect();
        let env = |name: &str| Ok(env.get(name).map(|value| (*value).to_owned()));
        assert_eq!(read(env, Broken).unwrap_err().error.code, code::IO);
    }

    #[test]
    fn the_plugins_own_namespace_is_refused() {
        assert_eq!(
            check_netns("/n", (4, 7), (4, 7)).unwrap_err().code,
            code::INVALID_NETNS
        );
        assert_eq!(check_netns("/n", (4, 8), (4, 7)), Ok(()));
    }
}
