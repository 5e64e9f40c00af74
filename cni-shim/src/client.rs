//! The plugin's side of the agent's socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{CniError, code};
use crate::protocol::{self, Command, MAX_LINE, ProtocolError, Request, Response};
use crate::queue::Queue;

/// How long a connection may take; it waits only while the agent's backlog is full.
const fn connect_timeout(command: Command) -> Duration {
    Duration::from_secs(match command {
        Command::Status => 2,
        _ => 10,
    })
}

/// How long the agent may take to answer. Kubelet gives a sandbox two minutes, and asks for STATUS
/// every few seconds: an agent that does not answer that at once is not available.
const fn answer_timeout(command: Command) -> Duration {
    Duration::from_secs(match command {
        Command::Add | Command::Gc => 60,
        Command::Del | Command::Check => 30,
        Command::Status => 2,
    })
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect {
        /// The agent's socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke, or took too long.
    #[error("no answer on {}: {source}", socket.display())]
    Answer {
        /// The agent's socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What came is no answer.
    #[error("on {}: {source}", socket.display())]
    Protocol {
        /// The agent's socket.
        socket: PathBuf,
        /// Why not.
        source: ProtocolError,
    },
}

impl CallError {
    /// Whether an agent took the request and said nothing for as long as it may.
    fn is_silence(&self) -> bool {
        matches!(self, CallError::Answer { source, .. } if source.kind() == io::ErrorKind::TimedOut)
    }

    /// The error for the runtime.
    pub fn into_cni(self, command: Command) -> CniError {
        let status = command == Command::Status;
        if let CallError::Protocol { source, .. } = self {
            let error = CniError::from(source);
            let code = if status {
                code::NOT_AVAILABLE
            } else {
                error.code
            };
            return CniError { code, ..error };
        }
        let code = if status {
            code::NOT_AVAILABLE
        } else {
            code::TRY_AGAIN_LATER
        };
        CniError::new(
            code,
            "the Weft agent on this node cannot be reached; is it running?",
        )
        .with_details(self.to_string())
    }
}

/// Hands a request to the agent and waits for its answer. A DEL that no agent takes is kept in the
/// queue and counts as done.
///
/// # Errors
///
/// The agent's error, or why there is no answer.
pub fn perform(request: &Request) -> Response {
    let socket = request.config.socket();
    if request.command == Command::Del {
        return delete(request, &socket, &Queue::new(request.config.queue_dir()));
    }
    match call(&socket, request) {
        Ok(response) => response,
        Err(error) => Err(error.into_cni(request.command)),
    }
}

/// DEL, with the agent if there is one, on paper if not. See [`crate::queue`] for why there is a
/// second attempt.
///
/// # Errors
///
/// The agent's error; or, with neither agent nor a queue that can be written, why.
pub fn delete(request: &Request, socket: &Path, queue: &Queue) -> Response {
    let unreachable = match call(socket, request) {
        Ok(response) => return response,
        Err(error) => error,
    };
    let file = queue.push(request).map_err(|error| {
        CniError::new(
            code::TRY_AGAIN_LATER,
            "the Weft agent cannot be reached, and DEL cannot be kept for it",
        )
        .with_details(format!("{unreachable}; {error}"))
    })?;
    // Where nobody listens, or an agent died over the answer, another one may have come up since and
    // looked at the queue too early. One that is silent would not answer now either, and replays the
    // queue when it restarts.
    if !unreachable.is_silence()
        && let Ok(response) = call(socket, request)
    {
        // Should the file stay, the agent repeats a DEL, which is harmless.
        let _ = queue.remove(&file);
        return response;
    }
    Ok(None)
}

/// One request, one answer.
///
/// # Errors
///
/// When there is no answer; an answer that says no is not an error here.
pub fn call(socket: &Path, request: &Request) -> Result<Response, CallError> {
    call_within(socket, request, answer_timeout(request.command))
}

fn call_within(socket: &Path, request: &Request, timeout: Duration) -> Result<Response, CallError> {
    let protocol_error = |source| CallError::Protocol {
        socket: socket.to_owned(),
        source,
    };
    let line = protocol::encode_request(request).map_err(protocol_error)?;
    let stream =
        connect(socket, connect_timeout(request.command)).map_err(|source| CallError::Connect {
            socket: socket.to_owned(),
            source,
        })?;
    let answer =
        exchange(&stream, &line, Instant::now() + timeout).map_err(|source| CallError::Answer {
            socket: socket.to_owned(),
            source,
        })?;
    protocol::decode_response(&answer).map_err(protocol_error)
}

/// Connecting to a unix socket has no timeout in the standard library, and blocks while the
/// listener's backlog is full: a thread waits, and is left behind when it waits for too long (the
/// process ends soon after).
fn connect(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let (sender, receiver) = mpsc::channel();
    let path = socket.to_owned();
    thread::Builder::new()
        .name("connect".to_owned())
        .spawn(move || {
            // The receiver may have given up.
            let _ = sender.send(UnixStream::connect(path));
        })?;
    receiver
        .recv_timeout(timeout)
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn exchange(mut stream: &UnixStream, line: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(remaining(deadline)?))?;
    stream.write_all(line)?;
    let mut reader = BufReader::new(stream).take(MAX_LINE as u64);
    let mut answer = Vec::new();
    // A socket's timeout is for one read; the deadline is for the whole answer.
    loop {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        let (end, used) = match reader.fill_buf() {
            Ok(chunk) => match chunk.iter().position(|&byte| byte == b'\n') {
                Some(at) => {
                    answer.extend_from_slice(&chunk[..=at]);
                    (true, at + 1)
                }
                None => {
                    answer.extend_from_slice(chunk);
                    (chunk.is_empty(), chunk.len())
                }
            },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        };
        reader.consume(used);
        if end {
            break;
        }
    }
    if answer.last() != Some(&b'\n') {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the agent closed the connection before it had answered",
        ));
    }
    Ok(answer)
}

fn remaining(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::config::NetConf;
    use crate::protocol::CniArgs;
    use crate::result::CniResult;

    fn request(command: Command) -> Request {
        Request {
            command,
            container_id: "c1".into(),
            netns: Some("/n".into()),
            ifname: "eth0".into(),
            args: CniArgs::default(),
            config: NetConf {
                name: "weft".into(),
                ..NetConf::default()
            },
        }
    }

    /// An agent that takes one connection, reads its line, and sends these bytes.
    fn agent(socket: &Path, answer: Vec<u8>) -> thread::JoinHandle<Request> {
        let listener = UnixListener::bind(socket).unwrap();
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
    fn the_answer_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        for response in [
            Ok(Some(CniResult::default())),
            Ok(None),
            Err(CniError::new(11, "no")),
        ] {
            let _ = std::fs::remove_file(&socket);
            let agent = agent(&socket, protocol::encode_response(&response).unwrap());
            assert_eq!(call(&socket, &request(Command::Add)).unwrap(), response);
            assert_eq!(agent.join().unwrap(), request(Command::Add));
        }
    }

    #[test]
    fn half_an_answer_and_none_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        for answer in ["", "{\"protocol\":1,"] {
            let _ = std::fs::remove_file(&socket);
            let agent = agent(&socket, answer.into());
            let error = call(&socket, &request(Command::Add)).unwrap_err();
            assert!(matches!(error, CallError::Answer { .. }), "{error}");
            agent.join().unwrap();
        }
        for (command, expected) in [
            (Command::Add, code::INTERNAL),
            (Command::Status, code::NOT_AVAILABLE),
        ] {
            let _ = std::fs::remove_file(&socket);
            let agent = agent(&socket, b"rubbish\n".to_vec());
            let error = call(&socket, &request(command)).unwrap_err();
            assert!(matches!(error, CallError::Protocol { .. }), "{error}");
            assert_eq!(error.into_cni(command).code, expected);
            agent.join().unwrap();
        }
    }

    #[test]
    fn a_silent_agent_ends_in_a_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let error =
            call_within(&socket, &request(Command::Add), Duration::from_millis(20)).unwrap_err();
        let CallError::Answer { source, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(source.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn without_an_agent_add_is_to_be_tried_again_and_status_is_not_available() {
        let dir = tempfile::tempdir().unwrap();
        for (command, expected) in [
            (Command::Add, code::TRY_AGAIN_LATER),
            (Command::Status, code::NOT_AVAILABLE),
        ] {
            let mut request = request(command);
            request.config.socket = Some(dir.path().join("absent"));
            let error = perform(&request).unwrap_err();
            assert_eq!(error.code, expected);
            assert!(error.details.contains("absent"), "{}", error.details);
        }
    }

    #[test]
    fn del_is_kept_without_an_agent_and_not_kept_with_one() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let queue = Queue::new(dir.path().join("queue"));
        assert_eq!(delete(&request(Command::Del), &socket, &queue), Ok(None));
        assert_eq!(queue.entries().unwrap().len(), 1);
        let entry = &queue.entries().unwrap()[0];
        assert_eq!(entry.request.as_ref().unwrap(), &request(Command::Del));
        queue.remove(&entry.path).unwrap();

        let agent = agent(&socket, protocol::encode_response(&Ok(None)).unwrap());
        assert_eq!(delete(&request(Command::Del), &socket, &queue), Ok(None));
        agent.join().unwrap();
        assert!(queue.entries().unwrap().is_empty());
    }

    #[test]
    fn del_that_an_agent_died_over_goes_to_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let queue = Queue::new(dir.path().join("queue"));
        let listener = UnixListener::bind(&socket).unwrap();
        let agents = thread::spawn(move || {
            let answer = protocol::encode_response(&Ok(None)).unwrap();
            for answer in [&b""[..], &answer] {
                let (stream, _) = listener.accept().unwrap();
                let mut line = Vec::new();
                BufReader::new(&stream)
                    .read_until(b'\n', &mut line)
                    .unwrap();
                (&stream).write_all(answer).unwrap();
            }
        });
        assert_eq!(delete(&request(Command::Del), &socket, &queue), Ok(None));
        // Before the join, which would wait for a second attempt that is not made.
        assert!(queue.entries().unwrap().is_empty());
        agents.join().unwrap();
    }

    #[test]
    fn del_with_neither_agent_nor_queue_fails() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"").unwrap();
        let queue = Queue::new(dir.path().join("file/queue"));
        let error = delete(&request(Command::Del), &dir.path().join("s"), &queue).unwrap_err();
        assert_eq!(error.code, code::TRY_AGAIN_LATER);
    }
}
