//! Limits of what a pod sends, with sockets at both ends: departure times where the uplink's queueing
//! discipline is `fq`, and the bucket where it is not.
//!
//! The receiver measures, by the kernel's clock, from the second second on: the first burst is over by
//! then. A limit is one of frames, so headers count.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use weft_abi::{config::CONFIG_DEPARTURE_TIME, drop::DropReason};
use weft_agent::bpf::load;
use weft_core::model::Limit;
use weft_tests::packet::{
    Ends, Family, Somewhere as _, Wire,
    scene::{OUTSIDE, PODS, REMOTE, WEB, cluster, families},
};

use crate::support::skipped;

/// Two megabits per second: slow enough for an emulated machine.
const LIMIT: Limit = Limit {
    bytes_per_second: 250_000,
    burst: 25_000,
};
/// Bytes of data in a datagram.
const DATAGRAM: usize = 1_400;
/// Datagrams of four seconds and more.
const DATAGRAMS: usize = 750;
/// Bytes by TCP, as many seconds.
const STREAM: usize = 1_000_000;
/// Where the outside listens.
const PORT: u16 = 9_000;
/// How long the first burst may take.
const SETTLING: Duration = Duration::from_secs(1);
/// How long a sender or a receiver may wait for the other.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nothing more comes when nothing came for this long. No departure is further away than two seconds.
const SILENCE: Duration = Duration::from_secs(3);

/// When something arrived, and how many bytes of frames it was.
type Arrival = (Instant, usize);

/// A wire whose pod `web` may send so much, and which has real sockets at its ends.
fn limited() -> (Wire, Ends) {
    let mut cluster = cluster(&[]);
    let mut wire = Wire::new(&mut cluster, &PODS).unwrap();
    cluster.endpoint(&WEB).egress_limit = Some(LIMIT);
    wire.lab.update(&cluster).unwrap();
    let ends = wire.inhabit(&WEB).unwrap();
    (wire, ends)
}

/// Whether programs of this kernel can set departure times.
fn kernel_sets_departures() -> bool {
    load::helpers().contains(&("HAVE_SKB_SET_TSTAMP", 1))
}

/// What the agent configures where the uplinks have `fq`.
fn use_departures(wire: &mut Wire) {
    wire.lab
        .configure(|config| config.flags |= CONFIG_DEPARTURE_TIME)
        .unwrap();
}

/// Ethernet and IP headers.
fn headers(address: IpAddr) -> usize {
    14 + Family::of(address).header()
}

/// A socket of the pod. What waits for its departure fills its buffer, as it would any socket's.
fn socket(ends: &Ends, from: IpAddr, to: IpAddr) -> UdpSocket {
    let socket = ends.in_pod(|| {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect((to, PORT))?;
        Ok(socket)
    });
    let socket = socket.unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    setsockopt(&socket, SndBuf, &32_768).unwrap();
    socket
}

/// Sends datagrams, in groups with a pause after each.
fn send(socket: &UdpSocket, datagrams: usize, group: usize, pause: Duration) {
    for sent in 0..datagrams {
        assert_eq!(socket.send(&[0; DATAGRAM]).unwrap(), DATAGRAM);
        if sent % group == group - 1 {
            thread::sleep(pause);
        }
    }
}

/// What arrives by UDP, until nothing does.
fn datagrams(socket: &UdpSocket, most: usize) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    let mut buffer = [0; 2 * DATAGRAM];
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let frame = headers(socket.local_addr().unwrap().ip()) + 8 + DATAGRAM;
    while arrivals.len() < most && socket.recv(&mut buffer).is_ok() {
        arrivals.push((Instant::now(), frame));
    }
    arrivals
}

/// What arrives by TCP, until the other end has closed it.
fn stream(mut connection: TcpStream) -> Vec<Arrival> {
    let mut arrivals = Vec::new();
    let mut buffer = [0; 65_536];
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    // Every segment has a header with timestamps, and is full.
    let headers = headers(connection.local_addr().unwrap().ip()) + 32;
    let data = 1_514 - headers;
    loop {
        match connection.read(&mut buffer).unwrap() {
            0 => return arrivals,
            read => arrivals.push((Instant::now(), read + read.div_ceil(data) * headers)),
        }
    }
}

/// That what arrived after the burst did so within a tenth of the limit.
#[track_caller]
fn assert_rate(what: &str, arrivals: &[Arrival]) {
    let (first, _) = arrivals.first().expect("something arrives");
    let settled = arrivals
        .iter()
        .filter(|(when, _)| *when > *first + SETTLING)
        .collect::<Vec<_>>();
    let ((from, first), (until, _)) = (settled.first().unwrap(), settled.last().unwrap());
    let bytes = settled.iter().map(|(_, bytes)| bytes).sum::<usize>() - first;
    let took = *until - *from;
    assert!(took > SETTLING, "{what}: {bytes} bytes within {took:?}");
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (rate, limit) = (
        bytes as f64 / took.as_secs_f64(),
        LIMIT.bytes_per_second as f64,
    );
    let percent = 100.0 * rate / limit;
    println!("{what}: {percent:.1} % of the limit: {bytes} bytes within {took:?}");
    assert!(
        (90.0..=110.0).contains(&percent),
        "{what}: {percent:.1} % of the limit"
    );
}

#[test]
fn packets_wait_for_their_departure() {
    let (mut wire, ends) = limited();
    assert!(!wire.sends_at_departure_times().unwrap());
    if !wire.queue("fq").unwrap() {
        return skipped("this kernel has no fq, and so no departure times");
    }
    assert!(wire.sends_at_departure_times().unwrap());
    if !kernel_sets_departures() {
        return skipped("programs of this kernel cannot set departure times");
    }
    use_departures(&mut wire);
    for f in families() {
        let receiver = ends
            .outside(|| UdpSocket::bind((OUTSIDE.at(f), PORT)))
            .unwrap();
        let sender = socket(&ends, WEB.at(f), OUTSIDE.at(f));
        let arrivals = thread::scope(|scope| {
            scope.spawn(|| send(&sender, DATAGRAMS, usize::MAX, Duration::ZERO));
            datagrams(&receiver, DATAGRAMS)
        });
        assert_rate(&format!("UDP {f:?}"), &arrivals);
        assert_eq!(arrivals.len(), DATAGRAMS, "nothing is lost");

        let listener = ends
            .outside(|| TcpListener::bind((OUTSIDE.at(f), PORT)))
            .unwrap();
        let target = SocketAddr::new(OUTSIDE.at(f), PORT);
        let sender = ends.in_pod(|| TcpStream::connect_timeout(&target, PATIENCE));
        let mut sender = sender.unwrap();
        sender.set_write_timeout(Some(PATIENCE)).unwrap();
        let (receiver, _) = listener.accept().unwrap();
        let arrivals = thread::scope(|scope| {
            scope.spawn(move || sender.write_all(&vec![0; STREAM]).unwrap());
            stream(receiver)
        });
        assert_rate(&format!("TCP {f:?}"), &arrivals);

        // By way of the overlay, whose packets the uplink sends as well.
        let sender = socket(&ends, WEB.at(f), REMOTE.at(f));
        wire.forget_outside().unwrap();
        let frame = headers(REMOTE.at(f)) + 8 + DATAGRAM;
        let arrivals: Vec<Arrival> = thread::scope(|scope| {
            scope.spawn(|| send(&sender, DATAGRAMS, usize::MAX, Duration::ZERO));
            let sent = 0..DATAGRAMS;
            sent.map(|_| {
                assert_eq!(wire.overlay_frame().unwrap().len(), frame);
                (Instant::now(), frame)
            })
            .collect()
        });
        assert_rate(&format!("overlay {f:?}"), &arrivals);
    }
    assert_eq!(wire.lab.drops(DropReason::Bandwidth).unwrap(), 0);
}

#[test]
fn the_bucket_drops_what_is_too_much() {
    let (mut wire, ends) = limited();
    if !kernel_sets_departures() && wire.queue("fq").unwrap() {
        // There it serves whatever the uplink does.
        use_departures(&mut wire);
    }
    for f in families() {
        let before = wire.lab.drops(DropReason::Bandwidth).unwrap();
        let receiver = ends
            .outside(|| UdpSocket::bind((OUTSIDE.at(f), PORT)))
            .unwrap();
        let sender = socket(&ends, WEB.at(f), OUTSIDE.at(f));
        let sent = 3 * DATAGRAMS;
        let arrivals = thread::scope(|scope| {
            // Three times the limit.
            scope.spawn(|| send(&sender, sent, 5, Duration::from_millis(9)));
            datagrams(&receiver, sent)
        });
        assert_rate(&format!("UDP {f:?}"), &arrivals);
        let dropped = wire.lab.drops(DropReason::Bandwidth).unwrap() - before;
        let lost = u64::try_from(sent - arrivals.len()).unwrap();
        assert_eq!(dropped, lost, "what does not arrive is counted");
    }
}
