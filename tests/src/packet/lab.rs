//! The lab: the programs, their maps, and packets through them.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    EbpfLoader,
    maps::{HashMap, MapData, PerCpuArray},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::LinkVeth;
use weft_abi::{
    addr::{Addr4, Addr6},
    config::Config,
    drop::{DropCount, DropReason},
    flow::{Flow, FlowKey},
};
use weft_agent::bpf::{DATAPATH, load::Loaded, tables::Tables};
use weft_core::{
    compile::{Compiler, Desired},
    contents::Contents,
    diff::Step,
};

use super::{
    bytes::Packet,
    world::{Cluster, LocalPod},
};

/// The interface index that the overlay has in the lab's configuration; nothing has it.
const OVERLAY_IFINDEX: u32 = 4_242;

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// The interface at which the program runs; 0: the loopback device.
    pub ifindex: u32,
    /// The interface through which the packet entered the stack; 0: a local process sent it.
    pub ingress_ifindex: u32,
    /// The packet mark.
    pub mark: u32,
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed on, with this mark.
    Pass(Vec<u8>, u32),
    /// Redirected, with this mark.
    Redirect(Vec<u8>, u32),
    /// Dropped, for this reason.
    Drop(DropReason),
}

impl Verdict {
    /// The packet that went on, its checksums proven.
    ///
    /// # Panics
    ///
    /// When it was dropped, or is no good packet any more: that fails the test.
    #[must_use]
    #[track_caller]
    pub fn packet(&self) -> Packet {
        match self {
            Self::Pass(bytes, _) | Self::Redirect(bytes, _) => match Packet::parse(bytes) {
                Ok(packet) => packet,
                Err(error) => panic!("the packet that went on is broken: {error}"),
            },
            Self::Drop(reason) => panic!("dropped: {}", reason.name()),
        }
    }

    /// Whether it was redirected.
    #[must_use]
    pub const fn redirected(&self) -> bool {
        matches!(self, Self::Redirect(..))
    }

    /// Whether it was passed.
    #[must_use]
    pub const fn passed(&self) -> bool {
        matches!(self, Self::Pass(..))
    }
}

/// One node's datapath, in a network namespace of its own that ends with the test's thread.
pub struct Lab {
    loaded: Loaded,
    tables: Tables,
    flows: HashMap<MapData, FlowKey<Addr4>, Flow<Addr4>>,
    lookups: PerCpuArray<MapData, u64>,
    compiler: Compiler,
    contents: Contents,
    epoch: u32,
    interfaces: Vec<(Ipv4Addr, u32)>,
    /// What was compiled last.
    pub desired: Desired,
}

impl Lab {
    /// Loads the datapath for a node with these pods.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: root is needed.
    pub fn new(cluster: &mut Cluster, pods: &[LocalPod]) -> Result<Self> {
        Self::load(cluster, pods, true)
    }

    /// Like [`Lab::new`], as in production: lookups are not counted, and the flow table has its full
    /// size.
    ///
    /// # Errors
    ///
    /// As for [`Lab::new`].
    pub fn for_timing(cluster: &mut Cluster, pods: &[LocalPod]) -> Result<Self> {
        Self::load(cluster, pods, false)
    }

    fn load(cluster: &mut Cluster, pods: &[LocalPod], for_tests: bool) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET)
            .context("cannot make a network namespace: run as root")?;
        let interfaces = make_interfaces(pods)?;
        for (pod, (_, ifindex)) in pods.iter().zip(&interfaces) {
            cluster.plug(pod, *ifindex);
        }
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &0_u8, false);
        let counting = u8::from(for_tests);
        loader.override_global("COUNT_LOOKUPS", &counting, true);
        if for_tests {
            // Labs of many tests are loaded at once: what is preallocated is kept small.
            for table in ["flows4", "flows6"] {
                loader.map_max_entries(table, 4_096);
            }
        }
        let mut loaded = Loaded::new(loader.load(DATAPATH).context("cannot load the ELF")?);
        for name in weft_abi::maps::programs::ALL {
            program(&mut loaded, name)?
                .load()
                .with_context(|| format!("program {name}"))?;
        }
        let tables = Tables::new(&mut loaded)?;
        let mut take = |name: &str| {
            loaded
                .ebpf_mut()
                .take_map(name)
                .ok_or_else(|| anyhow!("the ELF has no map {name}"))
        };
        let flows = HashMap::try_from(take("flows4")?)?;
        let lookups = PerCpuArray::try_from(take("lookups")?)?;
        let mut lab = Self {
            loaded,
            tables,
            flows,
            lookups,
            compiler: Compiler::new(),
            contents: Contents::default(),
            epoch: 0,
            interfaces,
            desired: Desired::default(),
        };
        lab.update(cluster)?;
        Ok(lab)
    }

    /// Compiles the cluster and applies the difference, in the agent's order.
    ///
    /// # Errors
    ///
    /// When a map refuses a write.
    pub fn update(&mut self, cluster: &Cluster) -> Result<()> {
        self.desired = self.compiler.compile(&cluster.state);
        let changes = self.desired.changes(&self.contents);
        if self.epoch == 0 {
            self.bump()?;
        }
        for step in &changes.steps {
            match step {
                Step::Write(batch) => self.tables.write(batch, &mut self.contents)?,
                Step::BumpEpoch => self.bump()?,
            }
        }
        ensure!(
            self.tables.read()? == self.desired.contents,
            "the maps are not as compiled"
        );
        Ok(())
    }

    fn bump(&mut self) -> Result<()> {
        self.epoch += 1;
        self.tables.set_config(Config {
            epoch: self.epoch,
            overlay_ifindex: OVERLAY_IFINDEX,
            node_address: Addr6::mapped(Addr4::new([172, 30, 0, 11])),
            vni: 1,
            ticks_per_second: 250,
            overlay_mtu: 1450,
            overlay_port: 4789,
            ..Config::default()
        })?;
        Ok(())
    }

    /// The interface of a local pod.
    ///
    /// # Panics
    ///
    /// When there is no such pod.
    #[must_use]
    pub fn interface(&self, pod: &LocalPod) -> u32 {
        let found = self
            .interfaces
            .iter()
            .find(|(address, _)| *address == pod.address);
        found
            .map(|(_, ifindex)| *ifindex)
            .expect("a pod of this lab")
    }

    /// Pushes a packet through a program.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to run it, or the counters do not say why it was dropped.
    pub fn run(&mut self, name: &str, context: Context, packet: &[u8]) -> Result<Verdict> {
        let before = self.tables.drops()?;
        let mut data = vec![0; packet.len() + 256];
        let input = context.to_bytes();
        // Larger than any kernel's `struct __sk_buff`: one that is too small is an error.
        let mut output = [0; 512];
        let result = program(&mut self.loaded, name)?
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut data),
                ctx_in: Some(&input),
                ctx_out: Some(&mut output),
                ..TestRunOptions::new()
            })
            .with_context(|| format!("cannot run {name}"))?;
        data.truncate(usize::try_from(result.data_size_out)?);
        let mark = u32::from_ne_bytes([output[8], output[9], output[10], output[11]]);
        match result.return_value {
            0 => Ok(Verdict::Pass(data, mark)),
            7 => Ok(Verdict::Redirect(data, mark)),
            2 => {
                let after = self.tables.drops()?;
                let reason = counted_once(&before, &after);
                Ok(Verdict::Drop(
                    reason.context("a drop that no counter tells")?,
                ))
            }
            code => Err(anyhow!("{name} answered {code}")),
        }
    }

    /// Pushes a packet of a local pod through `from_container`.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[track_caller]
    pub fn send(&mut self, pod: &LocalPod, packet: &Packet) -> Verdict {
        let context = Context {
            ifindex: self.interface(pod),
            ..Context::default()
        };
        self.run("from_container", context, &packet.to_bytes())
            .expect("from_container runs")
    }

    /// Pushes a packet that the host stack has for a local pod through `to_container`;
    /// `ingress_ifindex` as in [`Context`].
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[track_caller]
    pub fn receive(&mut self, pod: &LocalPod, ingress_ifindex: u32, packet: &Packet) -> Verdict {
        let context = Context {
            ifindex: self.interface(pod),
            ingress_ifindex,
            ..Context::default()
        };
        self.run("to_container", context, &packet.to_bytes())
            .expect("to_container runs")
    }

    /// Whether this kernel lets a test run say through which interface a packet came; 5.10 does not.
    /// Says so when it does not: what needs it is skipped.
    pub fn takes_ingress(&mut self, pod: &LocalPod) -> bool {
        let context = Context {
            ifindex: self.interface(pod),
            // An interface that nobody has: the packet is dropped and leaves no flow.
            ingress_ifindex: 77,
            ..Context::default()
        };
        let packet = Packet::new(
            pod.address,
            pod.address,
            super::bytes::Payload::echo(true, 1),
        );
        let takes = self
            .run("to_container", context, &packet.to_bytes())
            .is_ok();
        if !takes {
            println!("skipped: this kernel's BPF_PROG_TEST_RUN takes no ingress_ifindex");
        }
        takes
    }

    /// Nanoseconds per run of a program over the same packet.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn time(&mut self, name: &str, context: Context, packet: &[u8], runs: u32) -> Result<f64> {
        let input = context.to_bytes();
        let result = program(&mut self.loaded, name)?.test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&input),
            repeat: runs,
            ..TestRunOptions::new()
        })?;
        // The kernel answers the average of the runs.
        Ok(result.duration.as_secs_f64() * 1e9)
    }

    /// The flow table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn flows(&self) -> Result<Vec<(FlowKey<Addr4>, Flow<Addr4>)>> {
        self.flows
            .iter()
            .map(|entry| entry.map_err(Into::into))
            .collect()
    }

    /// Writes an entry of the flow table: what only time or another CPU would make of it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_flow(&mut self, key: &FlowKey<Addr4>, flow: &Flow<Addr4>) -> Result<()> {
        Ok(self.flows.insert(key, flow, 0)?)
    }

    /// Removes an entry of the flow table, as the kernel does when it needs room.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn evict_flow(&mut self, key: &FlowKey<Addr4>) -> Result<()> {
        Ok(self.flows.remove(key)?)
    }

    /// Empties the flow table.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn forget_flows(&mut self) -> Result<()> {
        for (key, _) in self.flows()? {
            self.flows.remove(&key)?;
        }
        Ok(())
    }

    /// Map lookups so far: flows, endpoints, ipcache, policy, services.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn lookups(&self) -> Result<[u64; 5]> {
        let mut counts = [0; 5];
        for (index, count) in counts.iter_mut().enumerate() {
            *count = self.lookups.get(&u32::try_from(index)?, 0)?.iter().sum();
        }
        Ok(counts)
    }
}

fn program<'a>(loaded: &'a mut Loaded, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = loaded.ebpf_mut().program_mut(name);
    Ok(program
        .with_context(|| format!("the ELF has no program {name}"))?
        .try_into()?)
}

/// The one reason whose counter went up, by one.
fn counted_once(
    before: &[(DropReason, DropCount)],
    after: &[(DropReason, DropCount)],
) -> Option<DropReason> {
    let packets = |counts: &[(DropReason, DropCount)], reason| {
        counts
            .iter()
            .find(|(r, _)| *r == reason)
            .map_or(0, |(_, count)| count.packets)
    };
    let mut changed = after
        .iter()
        .map(|(reason, _)| *reason)
        .filter(|r| packets(before, *r) != packets(after, *r));
    let reason = changed.next()?;
    (changed.next().is_none() && packets(after, reason) == packets(before, reason) + 1)
        .then_some(reason)
}

/// Bytes of `struct __sk_buff` up to and including `ifindex`, rounded up to what old kernels know.
const SK_BUFF_BYTES: usize = 68;

impl Context {
    /// As `struct __sk_buff` (`include/uapi/linux/bpf.h`).
    fn to_bytes(self) -> [u8; SK_BUFF_BYTES] {
        let mut bytes = [0; SK_BUFF_BYTES];
        bytes[8..12].copy_from_slice(&self.mark.to_ne_bytes());
        bytes[36..40].copy_from_slice(&self.ingress_ifindex.to_ne_bytes());
        bytes[40..44].copy_from_slice(&self.ifindex.to_ne_bytes());
        bytes
    }
}

/// Makes an interface per pod, so that programs can be run at its index.
fn make_interfaces(pods: &[LocalPod]) -> Result<Vec<(Ipv4Addr, u32)>> {
    use futures::TryStreamExt as _;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let mut interfaces = Vec::new();
        for (index, pod) in pods.iter().enumerate() {
            let name = format!("pod{index}");
            let pair = LinkVeth::new(&name, &format!("peer{index}")).build();
            handle
                .link()
                .add(pair)
                .execute()
                .await
                .context("cannot make a veth")?;
            let link = handle
                .link()
                .get()
                .match_name(name)
                .execute()
                .try_next()
                .await?;
            interfaces.push((pod.address, link.context("the veth is gone")?.header.index));
        }
        connection.abort();
        Ok(interfaces)
    })
}
