//! The pods' program against itself, in a namespace: a test that relies on its exit codes and counts
//! must be able to.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should say where"
)]

use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Output, Stdio};

use weft_tests::netns::{self, Netns};
use weft_tests::playground::{network, process};

/// A namespace with a loopback, and a server in it.
struct Place {
    netns: Option<Netns>,
    server: Option<Child>,
}

impl Place {
    fn new(name: &str) -> Self {
        let netns = Netns::create(&format!("weft-testpod-{name}-{}", std::process::id())).unwrap();
        network::prepare_pod(&netns).unwrap();
        Place {
            netns: Some(netns),
            server: None,
        }
    }

    fn netns(&self) -> &Netns {
        self.netns.as_ref().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-testpod"));
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        netns::enter(&mut command, self.netns(), None).unwrap();
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        process::run(&mut self.command(args), b"", process::Limit::CLIENT).unwrap()
    }

    /// What a successful client prints.
    #[track_caller]
    fn says(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Starts a server, and returns once it listens.
    fn serve(&mut self, args: &[&str]) {
        let mut all = vec!["serve"];
        if !args.contains(&"--name") {
            all.extend(["--name", "pod1"]);
        }
        all.extend(args);
        let mut server = self.command(&all).spawn().unwrap();
        let mut line = String::new();
        let output = server.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        self.server = Some(server);
        assert_eq!(line, "serving\n");
    }

    #[track_caller]
    fn report(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.says(args)).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        if let Some(netns) = self.netns.take() {
            netns.delete().unwrap();
        }
    }
}

#[test]
fn servers_answer_with_their_name_and_the_clients_address() {
    let mut place = Place::new("names");
    place.serve(&["--http", "80,81", "--tcp", "7", "--udp", "53"]);
    assert_eq!(place.says(&["connect", "http", "127.0.0.1:80"]), "pod1");
    assert_eq!(
        place.says(&["connect", "http", "127.0.0.1:81", "--path", "/echo?msg=hi"]),
        "hi"
    );
    let from = ["--source-port", "4001"];
    let says = |protocol, target, more: &[&str]| {
        place.says(&[&["connect", protocol, target][..], &from[..], more].concat())
    };
    assert_eq!(
        says("http", "127.0.0.1:80", &["--path", "/clientip"]),
        "127.0.0.1:4001"
    );
    assert_eq!(says("tcp", "127.0.0.1:7", &[]), "pod1 127.0.0.1:4001");
    assert_eq!(
        says("udp", "127.0.0.1:53", &[]),
        "pod1 127.0.0.1:4001 hello"
    );
}

#[test]
fn refused_timed_out_and_unreachable_can_be_told_apart() {
    let place = Place::new("codes");
    let silent_tcp = place
        .netns()
        .run(|| TcpListener::bind("127.0.0.1:7").unwrap())
        .unwrap();
    let silent_udp = place
        .netns()
        .run(|| UdpSocket::bind("127.0.0.1:53").unwrap())
        .unwrap();
    let code = |protocol, target| {
        place
            .run(&["connect", protocol, target, "--timeout", "0.3"])
            .status
            .code()
    };
    for protocol in ["tcp", "udp", "http"] {
        assert_eq!(
            code(protocol, "127.0.0.1:9"),
            Some(10),
            "{protocol} refused"
        );
        assert_eq!(
            code(protocol, "10.9.9.9:9"),
            Some(12),
            "{protocol} unreachable"
        );
    }
    assert_eq!(code("tcp", "127.0.0.1:7"), Some(11));
    assert_eq!(code("http", "127.0.0.1:7"), Some(11));
    assert_eq!(code("udp", "127.0.0.1:53"), Some(11));
    drop((silent_tcp, silent_udp));
}

#[test]
fn both_families_are_served_and_seen_as_what_they_are() {
    let mut place = Place::new("families");
    place.serve(&["--http", "80", "--tcp", "7", "--udp", "53"]);
    for (address, other) in [("127.0.0.1", "127.0.0.2"), ("[::1]", "[::1]")] {
        let target = |port: u16| format!("{address}:{port}");
        let source = other.trim_matches(['[', ']']);
        let from = ["--source", source, "--source-port", "4001"];
        let says = |protocol, port, more: &[&str]| {
            let target = target(port);
            place.says(&[&["connect", protocol, &target][..], &from[..], more].concat())
        };
        assert_eq!(
            says("http", 80, &["--path", "/clientip"]),
            format!("{other}:4001")
        );
        assert_eq!(says("tcp", 7, &[]), format!("pod1 {other}:4001"));
        assert_eq!(says("udp", 53, &[]), format!("pod1 {other}:4001 hello"));
        // Larger than any packet: the kernel fragments it.
        let large = ["--size", "40000"];
        assert_eq!(says("udp", 53, &large), format!("pod1 {other}:4001"));
        assert_eq!(says("tcp", 7, &large), format!("pod1 {other}:4001"));
    }
}

#[test]
fn sockets_say_whom_they_believe_to_talk_to() {
    let mut place = Place::new("ends");
    place.serve(&["--tcp", "7", "--udp", "53"]);
    let ends = |args: &[&str]| -> serde_json::Value {
        let more = ["--ends", "--source-port", "4001"];
        let output = place.says(&[&["connect"][..], args, &more[..]].concat());
        serde_json::from_str(output.lines().next().unwrap()).unwrap()
    };
    let (local, tcp, udp) = ("127.0.0.1:4001", "127.0.0.1:7", "127.0.0.1:53");
    assert_eq!(
        ends(&["tcp", tcp]),
        serde_json::json!({"local": local, "peer": tcp, "from": null})
    );
    assert_eq!(
        ends(&["udp", udp]),
        serde_json::json!({"local": local, "peer": udp, "from": udp})
    );
    assert_eq!(
        ends(&["udp", udp, "--unconnected"]),
        serde_json::json!({"local": "0.0.0.0:4001", "peer": null, "from": udp})
    );
}

#[test]
fn only_an_answer_that_is_the_payload_counts() {
    let place = Place::new("payload");
    let socket = place
        .netns()
        .run(|| UdpSocket::bind("127.0.0.1:53").unwrap())
        .unwrap();
    let server = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let (length, client) = socket.recv_from(&mut buffer).unwrap();
        buffer[length - 5] ^= 1;
        socket.send_to(&buffer[..length], client).unwrap();
    });
    let output = place.run(&["connect", "udp", "127.0.0.1:53", "--size", "1000"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    server.join().unwrap();
}

#[test]
fn fragments_arrive_in_any_order_and_not_without_one() {
    let mut place = Place::new("fragments");
    place.serve(&["--udp", "53"]);
    for (target, client) in [("127.0.0.1:53", "127.0.0.1"), ("[::1]:53", "[::1]")] {
        let from = ["--source-port", "4001", "--fragment-size", "1000"];
        let send = |more: &[&'static str]| [&["fragments", target][..], &from[..], more].concat();
        let says = format!("pod1 {client}:4001");
        assert_eq!(place.says(&send(&[])), says);
        let shuffled = ["--order", "3,1,0,2", "--gap", "0.01", "--id", "4712"];
        assert_eq!(place.says(&send(&shuffled)), says);
        let partly = ["--order", "0,1,3", "--id", "4713", "--timeout", "0.2"];
        assert_eq!(place.run(&send(&partly)).status.code(), Some(11));
    }
    let extended = ["fragments", "[::1]:53", "--extension", "destination"];
    assert!(place.says(&extended).starts_with("pod1 [::1]:"));
}

#[test]
fn many_connections_are_told_apart() {
    let mut place = Place::new("many");
    place.serve(&["--tcp", "7", "--udp", "53"]);
    for (protocol, target) in [("tcp", "127.0.0.1:7"), ("udp", "[::1]:53")] {
        let report = place.report(&["many", protocol, target, "--count", "2000"]);
        for field in ["opened", "held", "distinct"] {
            assert_eq!(report[field], 2000, "{field} in {report}");
        }
        let address = target.rsplit_once(':').unwrap().0.trim_matches(['[', ']']);
        assert_eq!(report["seen"], serde_json::json!([address]), "{report}");
        assert_eq!(report["servers"], serde_json::json!({"pod1": 2000}));
    }
    let refused = place.run(&["many", "tcp", "127.0.0.1:9", "--count", "3"]);
    assert_eq!(refused.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(report["failed"], serde_json::json!({"Refused": 3}));
}

#[test]
fn bulk_counts_what_arrives() {
    let mut place = Place::new("bulk");
    place.serve(&["--bulk", "5201"]);
    for target in ["127.0.0.1:5201", "[::1]:5201"] {
        for direction in ["up", "down"] {
            let run = |protocol, more: &[&str]| {
                let args = ["bulk", protocol, direction, target, "--duration", "0.3"];
                place.report(&[&args[..], more].concat())
            };
            let report = run("tcp", &[]);
            assert!(report["bytes"].as_u64().unwrap() > 0, "{report}");
            let report = run("udp", &["--bitrate", "8000000"]);
            let bytes = report["bytes"].as_u64().unwrap();
            // 250 datagrams are due; a late tick sends fewer, never more.
            assert!((1..=300_000).contains(&bytes), "{report}");
            assert_eq!(bytes % 1200, 0, "{report}");
        }
    }
}

#[test]
fn ping_reaches_the_loopback_and_nothing_else() {
    let place = Place::new("ping");
    for address in ["127.0.0.1", "::1"] {
        for size in ["0", "56", "4000"] {
            let output = place.says(&["ping", address, "--count", "3", "--size", size]);
            assert_eq!(output.lines().count(), 3, "{output}");
        }
    }
    assert_eq!(
        place
            .run(&["ping", "10.9.9.9", "--timeout", "0.3"])
            .status
            .code(),
        Some(12)
    );
}

#[test]
fn streams_count_every_message() {
    let mut place = Place::new("stream");
    place.serve(&["--tcp", "7", "--udp", "53"]);
    for (protocol, target) in [("tcp", "127.0.0.1:7"), ("udp", "127.0.0.1:53")] {
        let output = place.says(&[
            "stream",
            protocol,
            target,
            "--rate",
            "1000",
            "--duration",
            "0.2",
        ]);
        let (started, report) = output.split_once('\n').unwrap();
        assert_eq!(started, "started");
        let report: serde_json::Value = serde_json::from_str(report).unwrap();
        assert!(report["sent"].as_u64().unwrap() >= 100, "{report}");
        assert_eq!(report["received"], report["sent"], "{report}");
        assert_eq!(report["servers"], serde_json::json!(["pod1"]), "{report}");
    }
}

#[test]
fn a_stream_says_what_was_lost() {
    let place = Place::new("lost");
    // Answers every message but the third, the first one twice, the fifth before the fourth.
    let socket = place
        .netns()
        .run(|| UdpSocket::bind("127.0.0.1:53").unwrap())
        .unwrap();
    let server = std::thread::spawn(move || {
        let mut held = None;
        let mut buffer = [0; 64];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let number = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let send = |number: &str| {
                socket
                    .send_to(format!("x y {number}").as_bytes(), client)
                    .unwrap();
            };
            match number.as_str() {
                "0" => [send("0"), send("0")].into_iter().collect(),
                "2" => {}
                "3" => held = Some(number),
                "4" => [send("4"), send(&held.take().unwrap())]
                    .into_iter()
                    .collect(),
                "6" => return,
                other => send(other),
            }
        }
    });
    let args = [
        "stream",
        "udp",
        "127.0.0.1:53",
        "--rate",
        "100",
        "--duration",
        "0.5",
    ];
    let mut client = place
        .command(&[&args[..], &["--timeout", "0.2"]].concat())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "started");
    let report: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(1));
    server.join().unwrap();
    assert_eq!(report["received"], 5, "{report}");
    assert_eq!(report["duplicated"], 1, "{report}");
    assert_eq!(report["reordered"], 1, "{report}");
    assert!(report["lost"].as_u64().unwrap() >= 1, "{report}");
    // The server's socket is gone, and the kernel says so.
    assert!(!report["error"].is_null(), "{report}");
}

#[test]
fn connections_are_counted_by_who_answers() {
    let mut place = Place::new("count");
    place.serve(&["--tcp", "7", "--udp", "53", "--http", "80"]);
    let count = |args: &[&str]| {
        let output = place.run(&[&["count"], args].concat());
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.success(), report)
    };
    for (protocol, target, clients) in [
        ("tcp", "127.0.0.1:7", serde_json::json!(["127.0.0.2"])),
        ("udp", "127.0.0.1:53", serde_json::json!(["127.0.0.2"])),
        ("http", "127.0.0.1:80", serde_json::json!([])),
    ] {
        let args = [protocol, target, "--count", "3", "--source", "127.0.0.2"];
        let (clean, report) = count(&args);
        assert!(clean, "{report}");
        assert_eq!(report["servers"], serde_json::json!({ "pod1": 3 }));
        assert_eq!(report["clients"], clients);
    }
    let (clean, report) = count(&["tcp", "127.0.0.1:7", "--servers", "1"]);
    assert!(clean && report["answered"] == 1, "{report}");
    let (clean, report) = count(&["tcp", "127.0.0.1:8", "--count", "2"]);
    assert!(!clean);
    assert_eq!(report["failed"], serde_json::json!({ "Refused": 2 }));
}

#[test]
fn readiness_can_be_switched_and_any_status_be_read() {
    let mut place = Place::new("ready");
    place.serve(&["--http", "80", "--unready"]);
    let get =
        |path: &str| place.says(&["connect", "http", "127.0.0.1:80", "--whole", "--path", path]);
    assert!(get("/readyz").starts_with("HTTP/1.1 503 "));
    assert!(get("/ready").starts_with("HTTP/1.1 200 "));
    assert!(get("/readyz").starts_with("HTTP/1.1 200 "));
    get("/unready");
    assert!(get("/readyz").contains("not ready"));
}

#[test]
fn a_persistent_stream_outlives_its_servers_and_names_them() {
    let mut place = Place::new("persist");
    let mut client = place
        .command(&[
            "stream",
            "udp",
            "127.0.0.1:53",
            "--persistent",
            "--source-port",
            "4321",
            "--duration",
            "50",
            "--rate",
            "100",
            "--timeout",
            "0.1",
        ])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    // Nobody listens yet.
    assert_eq!(line(), "sending");
    for name in ["one", "two"] {
        assert_eq!(line(), "Refused");
        place.serve(&["--udp", "53", "--name", name]);
        assert_eq!(line(), name);
        let mut server = place.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }
    let pid = nix::unistd::Pid::from_raw(client.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let mut last = line();
    if last == "Refused" {
        last = line();
    }
    let report: serde_json::Value = serde_json::from_str(&last).unwrap();
    client.wait().unwrap();
    assert_eq!(report["servers"], serde_json::json!(["one", "two"]));
    assert_eq!(report["error"], serde_json::Value::Null, "{report}");
}

#[test]
fn sctp_is_answered_with_both_ends_names_and_never_elsewhere() {
    let mut place = Place::new("sctp");
    place.serve(&["--sctp", "9"]);
    for (target, source, seen) in [
        ("127.0.0.1:9", "127.0.0.2", "pod1 127.0.0.2:4711"),
        ("[::1]:9", "::1", "pod1 [::1]:4711"),
    ] {
        let args = ["connect", "sctp", target, "--source-port", "4711"];
        assert_eq!(
            place.says(&[&args[..], &["--source", source]].concat()),
            seen
        );
    }
    let other = place.run(&["connect", "sctp", "127.0.0.1:8", "--timeout", "0.2"]);
    assert_eq!(other.status.code(), Some(11), "{other:?}");
    let report = place.report(&["count", "sctp", "127.0.0.1:9", "--count", "3"]);
    assert_eq!(report["servers"], serde_json::json!({ "pod1": 3 }));
}
