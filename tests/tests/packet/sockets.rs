//! The node's own processes: a service's address becomes a backend's in the socket.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use weft_tests::packet::{
    Somewhere as _,
    scene::{NODE, VIP, families, service, uplink_lab},
};

use crate::support::skipped;

/// How long a socket waits for another.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_process_of_the_node_reaches_a_service() {
    // A backend in the node's network, as the API server's are.
    let (mut lab, _) = uplink_lab(&[service("s", VIP, &[NODE])]);
    if !lab.knows_its_namespace() {
        return skipped("this kernel numbers no namespaces: sockets are those of its first one");
    }
    let sockets = lab.attach_sockets().unwrap();
    for f in families() {
        let (vip, node) = (VIP.at(f), NODE.at(f));
        let listener = TcpListener::bind((node, 8080)).unwrap();
        let server = UdpSocket::bind((node, 5353)).unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        thread::scope(|scope| {
            // The programs see only this thread's sockets.
            let process = scope.spawn(|| {
                sockets.enter().unwrap();
                let mut stream = TcpStream::connect_timeout(&(vip, 80).into(), PATIENCE).unwrap();
                assert_eq!(stream.peer_addr().unwrap(), (vip, 80).into());
                stream.write_all(b"hello").unwrap();

                let client = UdpSocket::bind((node, 0)).unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                client.send_to(b"question", (vip, 53)).unwrap();
                let mut answer = [0; 16];
                let (length, from) = client.recv_from(&mut answer).unwrap();
                assert_eq!(&answer[..length], b"answer");
                assert_eq!(from, (vip, 53).into(), "it sees whom it asked");
            });
            let mut question = [0; 16];
            let (length, client) = server.recv_from(&mut question).unwrap();
            assert_eq!(&question[..length], b"question");
            server.send_to(b"answer", client).unwrap();
            process.join().unwrap();
        });
        let mut hello = String::new();
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_to_string(&mut hello).unwrap();
        assert_eq!(hello, "hello");
    }
}
