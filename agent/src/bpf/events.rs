//! What the datapath reports: drops, and debug traces when they were asked for.
//!
//! The last drops are kept for the operator. A rule number is resolved when the event arrives,
//! because rules change.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{trace, warn};
use weft_abi::addr::Addr6;
use weft_abi::drop::DropReason;
use weft_abi::event::{DropEvent, point_name};
use weft_abi::maps::EVENTS;
use zerocopy::FromBytes as _;

use super::load::Loaded;

/// How many drops are kept.
const KEPT: usize = 4096;
/// How many records are read before others get their turn.
const BATCH: usize = 256;

/// One dropped packet, as the operator sees it.
#[derive(Clone, Debug, Serialize)]
pub struct DroppedPacket {
    /// Kernel monotonic time, nanoseconds.
    pub time: u64,
    /// Stable name of the reason.
    pub reason: String,
    /// The program that dropped it.
    pub point: &'static str,
    /// IP protocol number.
    pub protocol: u8,
    /// Source address.
    pub source: IpAddr,
    /// Source port, for protocols with ports.
    pub source_port: u16,
    /// Destination address, after service translation.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Interface at which the program ran.
    pub ifindex: u32,
    /// Bytes, Ethernet header included.
    pub length: u32,
    /// Number of the rule that decided; 0 for drops that are no policy's.
    pub rule: u32,
    /// The rule in words, if it decided and is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule_text: Option<String>,
}

/// The last drops, oldest first.
#[derive(Clone, Debug, Default)]
pub struct DropLog {
    drops: Arc<Mutex<VecDeque<DroppedPacket>>>,
}

impl DropLog {
    /// The last `count` drops, oldest first.
    pub fn last(&self, count: usize) -> Vec<DroppedPacket> {
        let drops = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
        drops
            .iter()
            .skip(drops.len().saturating_sub(count))
            .cloned()
            .collect()
    }

    fn push(&self, drop: DroppedPacket) {
        let mut drops = self.drops.lock().unwrap_or_else(PoisonError::into_inner);
        if drops.len() == KEPT {
            drops.pop_front();
        }
        drops.push_back(drop);
    }
}

/// The event ring's reader.
pub struct Reader {
    ring: RingBuf<MapData>,
}

impl Reader {
    /// Takes the event ring out of the loaded datapath.
    ///
    /// # Errors
    ///
    /// When the ELF has none.
    pub fn new(loaded: &mut Loaded) -> Result<Self> {
        let map = loaded
            .take_map(EVENTS)
            .context("the datapath ELF has no event ring")?;
        Ok(Self {
            ring: RingBuf::try_from(map).context("the event ring")?,
        })
    }

    /// Reads events into the log for ever. `resolve` puts a rule number in words.
    ///
    /// # Errors
    ///
    /// When the ring cannot be waited for.
    pub async fn run(
        self,
        log: DropLog,
        resolve: impl Fn(u32) -> Option<String> + Send,
    ) -> Result<()> {
        // SAFETY: the ring owns its descriptor: it stays the same and open until the ring is
        // dropped, which the registration does after it ended.
        let ring = unsafe { AsyncFd::register_with_interest(self.ring, Interest::READABLE) };
        let mut ring = ring
            .map_err(|error| error.into_parts().1)
            .context("cannot wait for events")?;
        loop {
            let mut guard = ring
                .readable_mut()
                .await
                .context("cannot wait for events")?;
            let ring = guard.get_inner_mut();
            let mut read = 0;
            while read < BATCH
                && let Some(record) = ring.next()
            {
                read += 1;
                match DropEvent::read_from_bytes(&record) {
                    Ok(event) => {
                        let drop = describe(&event, &resolve);
                        trace!(?drop, "dropped");
                        log.push(drop);
                    }
                    Err(_) => warn!(length = record.len(), "event of unknown form"),
                }
            }
            if read < BATCH {
                guard.clear_ready();
            } else {
                tokio::task::yield_now().await;
            }
        }
    }
}

fn describe(event: &DropEvent, resolve: impl Fn(u32) -> Option<String>) -> DroppedPacket {
    let reason = DropReason::from_number(event.reason).map_or_else(
        || format!("reason-{}", event.reason),
        |reason| reason.name().to_owned(),
    );
    DroppedPacket {
        time: event.time,
        reason,
        point: point_name(event.point),
        protocol: event.protocol,
        source: address(event.source),
        source_port: event.source_port,
        destination: address(event.destination),
        destination_port: event.destination_port,
        ifindex: event.ifindex,
        length: event.length,
        rule: event.rule,
        rule_text: (event.rule != 0).then(|| resolve(event.rule)).flatten(),
    }
}

fn address(address: Addr6) -> IpAddr {
    match address.as_mapped() {
        Some(v4) => Ipv4Addr::from(v4).into(),
        None => Ipv6Addr::from(address.octets).into(),
    }
}

/// Hands the datapath's debug traces to the log, for ever.
///
/// # Errors
///
/// When the datapath has no traces, or they cannot be waited for.
pub async fn log_traces(logger: aya_log::EbpfLogger<&'static dyn log::Log>) -> Result<()> {
    // SAFETY: the logger owns its ring's descriptor, as above.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = logger
        .map_err(|error| error.into_parts().1)
        .context("cannot wait for debug traces")?;
    loop {
        let mut guard = logger
            .readable_mut()
            .await
            .context("cannot wait for debug traces")?;
        guard.get_inner_mut().flush();
        guard.clear_ready();
    }
}

/// The reader of debug traces.
///
/// # Errors
///
/// When the datapath was built without.
pub fn traces(loaded: &mut Loaded) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>> {
    aya_log::EbpfLogger::init(&mut loaded.ebpf).context("the datapath has no debug traces")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_put_in_words() {
        let event = DropEvent {
            source: Addr6::mapped(Ipv4Addr::new(10, 0, 0, 1).into()),
            destination: Addr6::new([0xfe; 16]),
            reason: DropReason::PolicyIngress as u8,
            rule: 7,
            ..DropEvent::default()
        };
        let drop = describe(&event, |rule| Some(format!("rule {rule}")));
        assert_eq!(drop.reason, "policy-ingress");
        assert_eq!(drop.source.to_string(), "10.0.0.1");
        assert!(drop.destination.is_ipv6());
        assert_eq!(drop.rule_text.as_deref(), Some("rule 7"));
        let unknown = DropEvent {
            reason: 200,
            ..event
        };
        assert_eq!(describe(&unknown, |_| None).reason, "reason-200");
    }

    #[test]
    fn the_log_keeps_the_newest() {
        let log = DropLog::default();
        for length in 0..KEPT as u32 + 3 {
            log.push(describe(
                &DropEvent {
                    length,
                    ..DropEvent::default()
                },
                |_| None,
            ));
        }
        let last = log.last(2);
        assert_eq!(
            [last[0].length, last[1].length],
            [KEPT as u32 + 1, KEPT as u32 + 2]
        );
        assert_eq!(log.last(usize::MAX).len(), KEPT);
    }
}
