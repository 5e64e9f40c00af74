//! The real binary, run as a runtime runs it: what it prints, and how it exits.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use serde_json::{Value, json};
use weft_cni::queue::Queue;
use weft_cni::result::{CniResult, IpConfig};
use weft_cni::{CniError, Request, Response, protocol};

/// A plugin with an empty environment.
fn plugin(env: &[(&str, &str)], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The plugin may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The plugin must fail with this code, as JSON on stdout.
#[track_caller]
fn assert_code(output: &Output, code: u32) -> Value {
    let document = document(output);
    assert_eq!(document["code"], code, "{document}");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!document["msg"].as_str().unwrap().is_empty());
    document
}

fn env<'a>(command: &'a str, netns: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        (
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p",
        ),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
}

fn conf(version: &str, dir: &Path) -> Vec<u8> {
    let conf = json!({
        "cniVersion": version, "name": "weft", "type": "weft-cni",
        "socket": dir.join("cni.sock"), "queueDir": dir.join("queue"),
    });
    conf.to_string().into_bytes()
}

/// An agent for one request.
fn agent(dir: &Path, response: &Response) -> thread::JoinHandle<Request> {
    let listener = UnixListener::bind(dir.join("cni.sock")).unwrap();
    let answer = protocol::encode_response(response).unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = Vec::new();
        BufReader::new(&stream)
            .read_until(b'\n', &mut line)
            .unwrap();
        (&stream).write_all(&answer).unwrap();
        protocol::decode_request(&line).unwrap()
    })
}

#[test]
fn version_needs_no_stdin() {
    for stdin in [&b""[..], b"{\"cniVersion\":\"0.4.0\"}", b"rubbish"] {
        let output = plugin(&[("CNI_COMMAND", "VERSION")], stdin);
        assert!(output.status.success());
        let document = document(&output);
        assert_eq!(document["cniVersion"], "1.1.0");
        assert_eq!(document["supportedVersions"].as_array().unwrap().len(), 7);
    }
}

#[test]
fn without_a_command_it_says_what_it_is() {
    for env in [&[][..], &[("CNI_COMMAND", "")]] {
        let output = plugin(env, b"");
        assert!(output.status.success());
        assert!(output.stdout.is_empty());
        assert!(String::from_utf8_lossy(&output.stderr).contains("1.1.0"));
    }
}

#[test]
fn bad_input_fails_with_its_code() {
    let dir = tempfile::tempdir().unwrap();
    let good = conf("1.1.0", dir.path());
    let huge = vec![b' '; 8 << 20];
    let add = env("ADD", "/proc/1/nothing");
    assert_code(&plugin(&add, b""), 6);
    assert_code(&plugin(&add, b"ADD me"), 6);
    assert_code(&plugin(&add, b"[1]"), 6);
    assert_code(&plugin(&add, b"\xff\xfe"), 6);
    assert_code(&plugin(&add, &huge), 6);
    assert_code(&plugin(&add, b"{\"cniVersion\":\"1.1.0\"}"), 7);
    assert_code(&plugin(&[("CNI_COMMAND", "ADD")], &good), 4);
    assert_code(&plugin(&[("CNI_COMMAND", "PAINT")], &good), 4);
    assert_code(&plugin(&add, &good), 8); // no such namespace
    assert_code(&plugin(&env("ADD", "/proc/self/ns/net"), &good), 8);
    assert_code(&plugin(&env("DEL", "/proc/self/ns/net"), &good), 8);
    assert_code(&plugin(&env("STATUS", ""), &conf("1.0.0", dir.path())), 1);
    assert_code(&plugin(&env("GC", ""), &conf("1.0.0", dir.path())), 1);
    let check = env("CHECK", "/proc/1/nothing");
    assert_code(&plugin(&check, &conf("0.3.1", dir.path())), 1);
    assert_code(&plugin(&check, &good), 7); // without a prevResult
    for ifname in ["sixteen-letters-", "a/b", ".."] {
        let env = [&env("ADD", "/n")[..], &[("CNI_IFNAME", ifname)]].concat();
        assert_code(&plugin(&env, &good), 4);
    }
    let delegating = br#"{"cniVersion":"1.1.0","name":"a","ipam":{"type":"host-local"}}"#;
    assert_code(&plugin(&add, delegating), 2);

    let error = assert_code(&plugin(&add, &conf("3.0.0", dir.path())), 1);
    assert!(
        error["details"].as_str().unwrap().contains("1.1.0"),
        "{error}"
    );
}

#[test]
fn environment_that_is_not_text_fails_with_code_4() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let output = Command::new(env!("CARGO_BIN_EXE_weft-cni"))
        .env_clear()
        .env("CNI_COMMAND", OsStr::from_bytes(b"\xff"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_code(&output, 4);
}

#[test]
fn errors_have_the_version_of_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let error = assert_code(
        &plugin(&env("ADD", "/nothing"), &conf("0.4.0", dir.path())),
        8,
    );
    assert_eq!(error["cniVersion"], "0.4.0");
}

#[test]
fn without_an_agent_add_is_to_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut env = env("ADD", "/proc/self/ns/net");
    env.push(("CNI_NETNS_OVERRIDE", "1"));
    let error = assert_code(&plugin(&env, &conf("1.1.0", dir.path())), 11);
    assert!(error["msg"].as_str().unwrap().contains("agent"), "{error}");
    assert_code(
        &plugin(&self::env("STATUS", ""), &conf("1.1.0", dir.path())),
        50,
    );
}

#[test]
fn without_an_agent_del_is_kept_and_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let output = plugin(&env("DEL", "/gone"), &conf("1.1.0", dir.path()));
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout.is_empty());
    }
    let entries = Queue::new(dir.path().join("queue")).entries().unwrap();
    assert_eq!(entries.len(), 1);
    let request = entries[0].request.as_ref().unwrap();
    assert_eq!(request.container_id, "c1");
    assert_eq!(request.args.pod_name.as_deref(), Some("p"));
}

#[test]
fn the_agents_result_is_printed_in_the_version_asked_for() {
    let address = IpConfig {
        address: "10.0.1.5/32".parse().unwrap(),
        gateway: None,
        interface: None,
    };
    let response = Ok(Some(CniResult {
        ips: vec![address],
        ..CniResult::default()
    }));
    for (version, path) in [("1.1.0", "/ips/0/address"), ("0.2.0", "/ip4/ip")] {
        let dir = tempfile::tempdir().unwrap();
        let agent = agent(dir.path(), &response);
        let mut env = env("ADD", "/proc/self/ns/net");
        env.push(("CNI_NETNS_OVERRIDE", "true"));
        let output = plugin(&env, &conf(version, dir.path()));
        let request = agent.join().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(document(&output)["cniVersion"], version);
        assert_eq!(document(&output).pointer(path).unwrap(), "10.0.1.5/32");
        assert_eq!(request.args.pod_namespace.as_deref(), Some("ns"));
        assert_eq!(request.config.cni_version, version);
    }
}

#[test]
fn the_agents_error_is_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let refusal = CniError::new(11, "not yet").with_details("the watches have not synced");
    let agent = agent(dir.path(), &Err(refusal));
    let error = assert_code(
        &plugin(&env("DEL", "/gone"), &conf("1.1.0", dir.path())),
        11,
    );
    agent.join().unwrap();
    assert_eq!(error["details"], "the watches have not synced");
    assert!(
        !dir.path().join("queue").exists(),
        "an answered DEL is not kept"
    );
}
