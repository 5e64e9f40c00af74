//! The lab: the programs, their maps, and packets through them.

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    EbpfLoader,
    maps::{HashMap, Map, MapData, PerCpuArray},
    programs::{Program, SchedClassifier, TestRun as _, TestRunOptions},
};
use weft_abi::{
    addr::{Addr4, Addr6},
    config::{CONFIG_MASQUERADE_V4, CONFIG_MASQUERADE_V6, Config, Uplink},
    drop::{DropCount, DropReason},
    flow::{Flow, FlowKey},
    maps::programs,
    service::{Affinity, AffinityKey},
};
use weft_agent::{
    bpf::{
        DATAPATH,
        load::{self, Loaded},
        tables::Tables,
    },
    netlink,
};
use weft_core::{
    compile::{Compiler, Desired},
    contents::Contents,
    diff::{Step, diff_services},
    model::Routing,
    services::{Dirty, ServiceCompiler},
};

use super::{
    Family, Place,
    bytes::{Packet, Payload},
    ends,
    flows::FlowEntry,
    interfaces::{self, Interfaces, Wanted},
    scene::NODE,
    world::{Cluster, LocalPod},
};

/// The interface index that the overlay has in the configuration of a lab without one; nothing has it.
const NO_OVERLAY: u32 = 4_242;
/// The first port that masquerading gives out.
pub const MASQUERADE_FIRST: u16 = 1_024;
/// How many it gives out: up to 29999, where the kernel's ephemeral ports do not begin yet.
pub const MASQUERADE_PORTS: u16 = 28_976;

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Whether the node has an uplink, with default routes, by which pods reach the outside. Without
    /// one, what leaves the cluster is left to the host stack.
    pub uplink: bool,
    /// What pods talk to the outside with: `CONFIG_MASQUERADE_` bits.
    pub masquerade: u16,
    /// Entries of each table of flows, and of what clients had; `None`: as in production.
    pub flows: Option<u32>,
    /// Whether lookups are counted.
    pub counting: bool,
    /// Whether there are routes to the pods, and an overlay device.
    pub wired: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            uplink: false,
            masquerade: 0,
            // Labs of many tests are loaded at once: what is preallocated is kept small.
            flows: Some(4_096),
            counting: true,
            wired: false,
        }
    }
}

impl Setup {
    /// With an uplink, and masquerading in both families.
    #[must_use]
    pub fn uplink() -> Self {
        Self {
            uplink: true,
            masquerade: CONFIG_MASQUERADE_V4 | CONFIG_MASQUERADE_V6,
            ..Self::default()
        }
    }

    /// As in production: lookups are not counted, and the flow tables have their full size.
    #[must_use]
    pub fn for_timing() -> Self {
        Self {
            flows: None,
            counting: false,
            ..Self::default()
        }
    }
}

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// The interface at which the program runs; 0: the loopback device.
    pub ifindex: u32,
    /// The interface through which the packet entered the stack; 0: a local process sent it.
    pub ingress_ifindex: u32,
    /// The packet mark.
    pub mark: u32,
    /// Bytes of transport data in each packet that this one stands for; 0: it stands for itself.
    pub gso_size: u32,
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
    /// Kept, because the datagram's first fragment has not come yet.
    Held,
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
            Self::Held => panic!("it waits for the datagram's first fragment"),
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
    flows4: HashMap<MapData, FlowKey<Addr4>, Flow<Addr4>>,
    flows6: HashMap<MapData, FlowKey<Addr6>, Flow<Addr6>>,
    affinity4: HashMap<MapData, AffinityKey<Addr4>, Affinity>,
    affinity6: HashMap<MapData, AffinityKey<Addr6>, Affinity>,
    lookups: PerCpuArray<MapData, u64>,
    uplinks: HashMap<MapData, u32, Uplink>,
    held: HashMap<MapData, [u8; PLACE_BYTES], [u8; HELD_BYTES]>,
    compiler: Compiler,
    services: ServiceCompiler,
    contents: Contents,
    config: Config,
    pods: Vec<LocalPod>,
    pub(super) interfaces: Interfaces,
    /// What was compiled last of policies.
    pub desired: Desired,
}

impl Lab {
    /// Loads the datapath for a node with these pods.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: root is needed.
    pub fn new(cluster: &mut Cluster, pods: &[LocalPod], setup: &Setup) -> Result<Self> {
        let wanted = Wanted {
            uplink: setup.uplink,
            wired: setup.wired,
            native: cluster.state.settings.routing == Routing::Native,
        };
        let interfaces = interfaces::make(pods, wanted)?;
        for (pod, ifindex) in pods.iter().zip(&interfaces.pods) {
            cluster.plug(pod, *ifindex);
        }
        let mut loader = EbpfLoader::new();
        loader.override_global("AYA_LOG_LEVEL", &0_u8, false);
        let helpers = load::helpers();
        for (constant, is_known) in &helpers {
            loader.override_global(constant, is_known, true);
        }
        let counting = u8::from(setup.counting);
        loader.override_global("COUNT_LOOKUPS", &counting, true);
        for table in ["flows4", "flows6", "affinity4", "affinity6"] {
            if let Some(entries) = setup.flows {
                loader.map_max_entries(table, entries);
            }
        }
        let mut loaded = Loaded::new(loader.load(DATAPATH).context("cannot load the ELF")?);
        let uplinks = HashMap::try_from(another_handle(&mut loaded, "uplinks")?)?;
        let affinity4 = HashMap::try_from(another_handle(&mut loaded, "affinity4")?)?;
        let affinity6 = HashMap::try_from(another_handle(&mut loaded, "affinity6")?)?;
        let tables = Tables::new(&mut loaded)?;
        let mut take = |name: &str| {
            loaded
                .ebpf_mut()
                .take_map(name)
                .ok_or_else(|| anyhow!("the ELF has no map {name}"))
        };
        let config = Config {
            overlay_ifindex: if interfaces.overlay == 0 {
                NO_OVERLAY
            } else {
                interfaces.overlay
            },
            node_address: Addr6::mapped(NODE.v4.into()),
            vni: 1,
            ticks_per_second: 250,
            overlay_mtu: interfaces::OVERLAY_MTU,
            overlay_port: interfaces::OVERLAY_PORT,
            flags: setup.masquerade,
            masquerade_first: MASQUERADE_FIRST,
            masquerade_ports: MASQUERADE_PORTS,
            netns_cookie: netlink::socket::netns_cookie().unwrap_or(0),
            node_v4: NODE.v4.into(),
            node_v6: NODE.v6.into(),
            ..Config::default()
        };
        let mut lab = Self {
            flows4: HashMap::try_from(take("flows4")?)?,
            flows6: HashMap::try_from(take("flows6")?)?,
            affinity4,
            affinity6,
            lookups: PerCpuArray::try_from(take("lookups")?)?,
            held: HashMap::try_from(take("held")?)?,
            loaded,
            tables,
            uplinks,
            compiler: Compiler::new(),
            services: ServiceCompiler::new(),
            contents: Contents::default(),
            config,
            pods: pods.to_vec(),
            interfaces,
            desired: Desired::default(),
        };
        if lab.interfaces.uplink != 0 {
            lab.set_uplink(Some(Uplink {
                v4: NODE.v4.into(),
                v6: NODE.v6.into(),
                mtu: interfaces::UPLINK_MTU,
            }))?;
        }
        lab.update(cluster)?;
        Ok(lab)
    }

    /// Says what the uplink is to the datapath, in a new epoch; `None`: no uplink.
    ///
    /// # Errors
    ///
    /// When the lab has none, or the kernel refuses.
    pub fn set_uplink(&mut self, uplink: Option<Uplink>) -> Result<()> {
        match uplink {
            Some(uplink) => self.uplinks.insert(self.interfaces.uplink, uplink, 0)?,
            None => self.uplinks.remove(&self.interfaces.uplink)?,
        }
        self.bump()
    }

    /// Changes the configuration, in a new epoch.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) -> Result<()> {
        change(&mut self.config);
        self.bump()
    }

    /// Gives the uplink the addresses of another place.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn add_address(&self, place: Place) -> Result<()> {
        interfaces::with_netlink(async |handle| {
            for address in place.addresses() {
                ends::own(handle, self.uplink(), address).await?;
            }
            Ok(())
        })
    }

    /// The index of the uplink.
    #[must_use]
    pub const fn uplink(&self) -> u32 {
        self.interfaces.uplink
    }

    /// Compiles the cluster and applies the difference, in the agent's order.
    ///
    /// # Errors
    ///
    /// When a map refuses a write.
    pub fn update(&mut self, cluster: &Cluster) -> Result<()> {
        self.desired = self.compiler.compile(&cluster.state);
        self.services.update(&cluster.state, &Dirty::everything());
        let services = diff_services(&self.contents.services, self.services.contents());
        let changes = services.then(self.desired.changes(&self.contents.policy));
        if self.config.epoch == 0 {
            self.bump()?;
        }
        for step in &changes.steps {
            match step {
                Step::Write(batch) => self.tables.write(batch, &mut self.contents)?,
                Step::BumpEpoch => self.bump()?,
                Step::BumpBackends => {
                    self.config.backends_epoch += 1;
                    self.tables.set_config(self.config)?;
                }
            }
        }
        let compiled = Contents {
            policy: self.desired.contents.clone(),
            services: self.services.contents().clone(),
        };
        ensure!(
            self.tables.read()? == compiled,
            "the maps are not as compiled"
        );
        Ok(())
    }

    /// Begins a new epoch: every flow is decided again.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn bump(&mut self) -> Result<()> {
        self.config.epoch += 1;
        Ok(self.tables.set_config(self.config)?)
    }

    /// The interface of a local pod.
    ///
    /// # Panics
    ///
    /// When there is no such pod.
    #[must_use]
    pub fn interface(&self, pod: &LocalPod) -> u32 {
        let index = self.pods.iter().position(|known| known.name == pod.name);
        let index = index.expect("a pod of this lab");
        self.interfaces.pods[index]
    }

    /// The local pods.
    #[must_use]
    pub fn pods(&self) -> &[LocalPod] {
        &self.pods
    }

    /// Packets dropped so far for this reason.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn drops(&self, reason: DropReason) -> Result<u64> {
        let counts = self.tables.drops()?;
        let count = counts.iter().find(|(counted, _)| *counted == reason);
        Ok(count.map_or(0, |(_, count)| count.packets))
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
                match counted_once(&before, &after) {
                    Some(reason) => Ok(Verdict::Drop(reason)),
                    None if self.is_held(packet)? => Ok(Verdict::Held),
                    None => Err(anyhow!("a drop that no counter tells")),
                }
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

    /// Pushes a packet that arrives at the uplink through `from_netdev`.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[track_caller]
    pub fn arrive(&mut self, packet: &Packet) -> Verdict {
        self.arrive_frame(&packet.to_bytes())
    }

    /// The same with any frame.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[track_caller]
    pub fn arrive_frame(&mut self, frame: &[u8]) -> Verdict {
        let context = Context {
            ifindex: self.uplink(),
            ..Context::default()
        };
        self.run(programs::FROM_NETDEV, context, frame)
            .expect("from_netdev runs")
    }

    /// Pushes a packet that is about to leave by the uplink through `to_netdev`.
    ///
    /// # Panics
    ///
    /// When the kernel refuses.
    #[track_caller]
    pub fn leave(&mut self, mark: u32, packet: &Packet) -> Verdict {
        let context = Context {
            ifindex: self.uplink(),
            mark,
            ..Context::default()
        };
        self.run(programs::TO_NETDEV, context, &packet.to_bytes())
            .expect("to_netdev runs")
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
        let packet = Family::V4.packet(pod, pod, Payload::echo(true, 1));
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

    /// The flow tables.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn flows(&self) -> Result<Vec<FlowEntry>> {
        let mut flows = Vec::new();
        for entry in &self.flows4 {
            let (key, flow) = entry?;
            flows.push(FlowEntry::of_v4(&key, &flow));
        }
        for entry in &self.flows6 {
            let (key, flow) = entry?;
            flows.push(FlowEntry { key, flow });
        }
        Ok(flows)
    }

    /// Writes an entry of a flow table: what only time or another CPU would make of it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_flow(&mut self, entry: &FlowEntry) -> Result<()> {
        match entry.to_v4() {
            Some((key, flow)) => Ok(self.flows4.insert(key, flow, 0)?),
            None => Ok(self.flows6.insert(entry.key, entry.flow, 0)?),
        }
    }

    /// Removes an entry of a flow table, as the kernel does when it needs room.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn evict_flow(&mut self, entry: &FlowEntry) -> Result<()> {
        match entry.to_v4() {
            Some((key, _)) => Ok(self.flows4.remove(&key)?),
            None => Ok(self.flows6.remove(&entry.key)?),
        }
    }

    /// Lets every flow idle for some seconds.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn idle(&mut self, seconds: u32) -> Result<()> {
        for mut entry in self.flows()? {
            let ticks = seconds * self.config.ticks_per_second;
            entry.flow.last_seen = entry.flow.last_seen.wrapping_sub(ticks);
            self.set_flow(&entry)?;
        }
        Ok(())
    }

    /// Lets every client stay away from its services for some seconds.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn stay_away(&mut self, seconds: u32) -> Result<()> {
        let ticks = seconds * self.config.ticks_per_second;
        age(&mut self.affinity4, ticks)?;
        age(&mut self.affinity6, ticks)
    }

    /// Empties the flow tables.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn forget_flows(&mut self) -> Result<()> {
        for entry in self.flows()? {
            self.evict_flow(&entry)?;
        }
        Ok(())
    }

    /// Whether a fragment waits for its datagram's first one.
    fn is_held(&self, frame: &[u8]) -> Result<bool> {
        for entry in &self.held {
            let (_, fragment) = entry?;
            if fragment[HELD_HEADER..].starts_with(frame) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A loaded program.
    ///
    /// # Errors
    ///
    /// When the ELF has none of that name.
    pub(super) fn program(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        program(&mut self.loaded, name)
    }

    /// Any program of the ELF.
    ///
    /// # Errors
    ///
    /// When the ELF has none of that name.
    pub(super) fn any_program(&mut self, name: &str) -> Result<&mut Program> {
        let program = self.loaded.ebpf_mut().program_mut(name);
        program.with_context(|| format!("the ELF has no program {name}"))
    }

    /// Whether socket programs know the lab's namespace; from 5.14 on kernels tell its number.
    #[must_use]
    pub const fn knows_its_namespace(&self) -> bool {
        self.config.netns_cookie != 0
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

/// A program of the ELF. It is loaded when it is first asked for: a test asks for few of them, and the
/// verifier takes its time.
fn program<'a>(loaded: &'a mut Loaded, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = loaded.ebpf_mut().program_mut(name);
    let program: &mut SchedClassifier = program
        .with_context(|| format!("the ELF has no program {name}"))?
        .try_into()?;
    if program.fd().is_err() {
        program.load().with_context(|| format!("program {name}"))?;
    }
    Ok(program)
}

/// Makes what clients had older.
fn age<A: Copy>(table: &mut HashMap<MapData, AffinityKey<A>, Affinity>, ticks: u32) -> Result<()>
where
    AffinityKey<A>: aya::Pod,
{
    let entries = table.iter().collect::<Result<Vec<_>, _>>()?;
    for (key, mut affinity) in entries {
        affinity.used = affinity.used.wrapping_sub(ticks);
        table.insert(key, affinity, 0)?;
    }
    Ok(())
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

/// Another handle of a hash map, whoever takes the first.
fn another_handle(loaded: &mut Loaded, name: &str) -> Result<Map> {
    match loaded.ebpf_mut().map(name) {
        Some(Map::HashMap(data)) => Ok(Map::HashMap(MapData::from_id(data.info()?.id())?)),
        Some(Map::LruHashMap(data)) => Ok(Map::LruHashMap(MapData::from_id(data.info()?.id())?)),
        _ => Err(anyhow!("the ELF has no hash map {name}")),
    }
}

/// Bytes of a key of the map `held`.
const PLACE_BYTES: usize = 48;
/// Bytes of a value of the map `held`.
const HELD_BYTES: usize = HELD_HEADER + 9_216;
/// Bytes of it before the frame.
const HELD_HEADER: usize = 16;
/// Bytes of `struct __sk_buff` up to and including `cb`: what every kernel knows.
const SK_BUFF_BYTES: usize = 68;
/// Bytes up to and including `gso_size`, padded.
const SK_BUFF_BYTES_GSO: usize = 184;

impl Context {
    /// As `struct __sk_buff` (`include/uapi/linux/bpf.h`).
    fn to_bytes(self) -> Vec<u8> {
        let gso = self.gso_size != 0;
        let mut bytes = vec![
            0;
            if gso {
                SK_BUFF_BYTES_GSO
            } else {
                SK_BUFF_BYTES
            }
        ];
        bytes[8..12].copy_from_slice(&self.mark.to_ne_bytes());
        bytes[36..40].copy_from_slice(&self.ingress_ifindex.to_ne_bytes());
        bytes[40..44].copy_from_slice(&self.ifindex.to_ne_bytes());
        if gso {
            bytes[164..168].copy_from_slice(&2_u32.to_ne_bytes());
            bytes[176..180].copy_from_slice(&self.gso_size.to_ne_bytes());
        }
        bytes
    }
}
