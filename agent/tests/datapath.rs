//! Maps and links against the real kernel: what is pinned outlives its agent, and the next one takes
//! it over.
//!
//! Each test has a network namespace and a BPF file system of its own, which end with its thread.
//! Needs root; without it the tests say so and pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::{FdLink, Link as _, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcHandle};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use weft_abi::addr::{Addr4, Addr6};
use weft_abi::config::Config;
use weft_abi::endpoint::Endpoint;
use weft_abi::flow::{Flow, FlowKey};
use weft_abi::ipcache::IpcacheEntry;
use weft_abi::maps;
use weft_abi::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, Slot, SlotKey};
use weft_abi::socket::{SOCKET_BACK, SOCKET_FRONT, SocketKey, SocketPeer};
use weft_agent::bpf::attach::Attacher;
use weft_agent::bpf::cgroup;
use weft_agent::bpf::load::{self, LoadError, Loaded, Options};
use weft_agent::bpf::tables::{TableError, Tables};
use weft_agent::cli::AttachMode;
use weft_agent::netlink::{Netlink, overlay};
use weft_core::contents::{Contents, LpmKey};
use weft_core::diff::{Batch, Step, Writes, diff};

/// A node's BPF file system.
struct Bpffs {
    root: PathBuf,
}

impl Bpffs {
    fn options(&self) -> Options {
        Options {
            map_dir: self.root.join(format!("weft/v{}", weft_abi::ABI_VERSION)),
            // What is preallocated is kept small.
            capacities: BTreeMap::from([("flows4", 64), ("flows6", 64), ("endpoints4", 2)]),
            trace: false,
        }
    }

    fn load(&self) -> Loaded {
        load::load(&self.options()).expect("loads")
    }

    fn attacher(&self, mode: AttachMode) -> Attacher {
        Attacher::new(self.load(), self.links(), mode).expect("a directory")
    }

    fn links(&self) -> PathBuf {
        self.root.join("weft/links")
    }

    fn pinned_links(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.links()).expect("lists");
        entries
            .map(|e| {
                e.expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }
}

fn on_a_node(test: impl FnOnce(&Bpffs) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: loading BPF programs needs root");
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let root = dir.path().to_owned();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces");
        let none: Option<&str> = None;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).expect("private mounts");
        mount(Some("bpf"), &root, Some("bpf"), MsFlags::empty(), none).expect("a BPF file system");
        test(&Bpffs { root });
    });
    thread.join().expect("the test passes");
}

/// Makes an interface, or makes it anew.
fn make_interface(name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let netlink = Netlink::host().expect("a socket");
        if let Some(link) = netlink.find_link(name).await.expect("looked up") {
            netlink.delete_link(&link).await.expect("removed");
        }
        let pair = rtnetlink::LinkVeth::new(name, &format!("{name}p")).build();
        netlink.add_link(name, pair).await.expect("made");
    });
}

fn remove_interface(name: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let netlink = Netlink::host().expect("a socket");
        let link = netlink.link(name).await.expect("there");
        netlink.delete_link(&link).await.expect("removed");
    });
}

fn make_overlay() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let netlink = Netlink::host().expect("a socket");
        overlay::ensure(&netlink, 1450).await.expect("made");
    });
}

/// The ids of the programs on an interface.
fn attached(interface: &str, direction: TcAttachType) -> Vec<u32> {
    let (_, programs) = SchedClassifier::query_tcx(interface, direction).expect("asked");
    programs
        .iter()
        .map(aya::programs::ProgramInfo::id)
        .collect()
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "it does not come to be");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn endpoint(n: u8) -> (Addr4, Endpoint) {
    (
        Addr4::new([10, 0, 0, n]),
        Endpoint {
            ifindex: n.into(),
            ..Endpoint::default()
        },
    )
}

fn write(tables: &mut Tables, mirror: &mut Contents, to: &Contents) -> Result<(), TableError> {
    for step in diff(mirror, to).steps {
        if let Step::Write(batch) = step {
            tables.write(&batch, mirror)?;
        }
    }
    Ok(())
}

#[test]
fn maps_keep_what_an_agent_wrote() {
    on_a_node(|bpffs| {
        let mut desired = Contents::default();
        let policy = &mut desired.policy.v4;
        policy.endpoints.extend([endpoint(1), endpoint(2)]);
        let prefix = LpmKey::address(Addr4::new([10, 1, 0, 0]), 16);
        policy.ipcache.insert(
            prefix,
            IpcacheEntry {
                identity: 7,
                ..IpcacheEntry::default()
            },
        );
        let config = Config {
            epoch: 5,
            overlay_ifindex: 3,
            ..Config::default()
        };
        {
            let mut tables = Tables::new(&mut bpffs.load()).expect("maps");
            let mut mirror = tables.read().expect("reads");
            assert_eq!(mirror, Contents::default());
            write(&mut tables, &mut mirror, &desired).expect("writes");
            assert_eq!(mirror, desired);
            tables.set_config(config).expect("writes");
        }
        let mut tables = Tables::new(&mut bpffs.load()).expect("maps");
        let mut mirror = tables.read().expect("reads");
        assert_eq!(mirror, desired);
        assert_eq!(tables.config().expect("reads"), config);
        assert!(tables.drops().expect("reads").is_empty());

        write(&mut tables, &mut mirror, &Contents::default()).expect("deletes");
        assert_eq!(tables.read().expect("reads"), Contents::default());
        for name in fs::read_dir(bpffs.options().map_dir).expect("lists") {
            let name = name
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned();
            assert!(maps::PINNED.contains(&name.as_str()), "{name}");
        }
    });
}

#[test]
fn a_full_map_is_told_with_its_name_and_nothing_is_lost() {
    on_a_node(|bpffs| {
        let mut tables = Tables::new(&mut bpffs.load()).expect("maps");
        let mut mirror = Contents::default();
        let mut desired = Contents::default();
        desired
            .policy
            .v4
            .endpoints
            .extend([endpoint(1), endpoint(2), endpoint(3)]);
        match write(&mut tables, &mut mirror, &desired).expect_err("full") {
            TableError::Full { map, capacity, .. } => {
                assert_eq!((map, capacity), ("endpoints4", 2));
            }
            other => panic!("{other}"),
        }
        assert_eq!(
            mirror.policy.v4.endpoints,
            BTreeMap::from([endpoint(1), endpoint(2)])
        );
        assert_eq!(tables.read().expect("reads"), mirror);
        let fill = tables.fill(&mirror);
        let full = fill
            .iter()
            .find(|fill| fill.map == "endpoints4")
            .expect("told");
        assert_eq!((full.entries, full.capacity), (2, 2));
        // Room again: the same change goes on where it stopped.
        desired.policy.v4.endpoints.remove(&endpoint(1).0);
        let mut smaller = Contents::default();
        smaller.policy.v4.endpoints.extend([endpoint(2)]);
        write(&mut tables, &mut mirror, &smaller).expect("deletes");
        write(&mut tables, &mut mirror, &desired).expect("writes");
        assert_eq!(tables.read().expect("reads"), desired);
    });
}

#[test]
fn many_entries_are_written_as_few_are() {
    // More than one batch, and no whole number of them.
    const MANY: u32 = 9_001;
    on_a_node(|bpffs| {
        let mut options = bpffs.options();
        options.capacities.insert("slots", MANY + 10);
        let mut tables = Tables::new(&mut load::load(&options).expect("loads")).expect("maps");
        let mut desired = Contents::default();
        let slot = |slot| SlotKey { service: 7, slot };
        for number in 0..MANY {
            let backend = Slot { backend: !number };
            desired.services.slots.insert(slot(number), backend);
            let address = Addr6::new(u128::from(number).to_be_bytes());
            let entry = IpcacheEntry {
                identity: number,
                ..IpcacheEntry::default()
            };
            desired
                .policy
                .v6
                .ipcache
                .insert(LpmKey::address(address, 128), entry);
        }
        let mut mirror = Contents::default();
        write(&mut tables, &mut mirror, &desired).expect("writes");
        assert_eq!(mirror, desired);
        assert!(tables.read().expect("reads") == desired);

        // One that somebody else removed does not keep the others.
        let mut other = pinned::<SlotKey, Slot>(&options, "slots");
        other.remove(&slot(5_000)).expect("removes");
        let batch = Batch::Slots(Writes::Delete((0..MANY).map(slot).collect()));
        tables.write(&batch, &mut mirror).expect("deletes");
        assert!(mirror.services.slots.is_empty());
        assert!(tables.read().expect("reads").services.slots.is_empty());

        // The first entries that have room are in the map and in the mirror, no more and no less.
        let too_many = (0..MANY + 100).map(|number| (slot(number), Slot { backend: 1 }));
        let batch = Batch::Slots(Writes::Put(too_many.collect()));
        let error = tables.write(&batch, &mut mirror).expect_err("full");
        assert!(
            matches!(error, TableError::Full { map: "slots", .. }),
            "{error}"
        );
        assert!(mirror.services.slots.len() >= MANY as usize);
        assert!(tables.read().expect("reads").services.slots == mirror.services.slots);
    });
}

/// A pinned map, as somebody else opens it.
fn pinned<K: Pod, V: Pod>(options: &Options, name: &str) -> HashMap<MapData, K, V> {
    let data = MapData::from_pin(options.map_dir.join(name)).expect("pinned");
    let lru = Map::LruHashMap(data);
    HashMap::try_from(lru).expect("a hash map")
}

/// What the status says of a map: entries, capacity.
fn fill(loaded: &mut Loaded, map: &str) -> (usize, u32) {
    let tables = Tables::new(loaded).expect("maps");
    let mirror = tables.read().expect("reads");
    let fill = tables.fill(&mirror);
    let found = fill.iter().find(|fill| fill.map == map).expect("told");
    (found.entries, found.capacity)
}

#[test]
fn a_map_with_another_capacity_keeps_its_entries() {
    on_a_node(|bpffs| {
        let mut options = bpffs.options();
        let mut desired = Contents::default();
        desired
            .policy
            .v4
            .endpoints
            .extend([endpoint(1), endpoint(2)]);
        let prefix = LpmKey::address(Addr4::new([10, 1, 0, 0]), 16);
        let entry = IpcacheEntry {
            identity: 7,
            ..IpcacheEntry::default()
        };
        desired.policy.v4.ipcache.insert(prefix, entry);
        let mut tables = Tables::new(&mut bpffs.load()).expect("maps");
        write(&mut tables, &mut Contents::default(), &desired).expect("writes");
        drop(tables);
        type Flows = HashMap<MapData, FlowKey<Addr4>, Flow<Addr4>>;
        let mut earlier: Flows = pinned(&options, "flows4");
        let flow = |port| FlowKey {
            low_port: port,
            ..FlowKey::<Addr4>::default()
        };
        earlier.insert(flow(1), Flow::default(), 0).expect("writes");

        for (name, entries) in [("endpoints4", 5), ("flows4", 128), ("ipcache4", 9)] {
            options.capacities.insert(name, entries);
        }
        let mut loaded = load::load(&options).expect("loads");
        let later: Flows = pinned(&options, "flows4");
        let has = |port| later.get(&flow(port), 0).is_ok();
        assert!(has(1));
        // The programs of the earlier agent go on for a while.
        earlier.insert(flow(2), Flow::default(), 0).expect("writes");
        assert!(!has(2), "that is another map");
        loaded.catch_up();
        assert!(has(1) && has(2));
        assert_eq!(fill(&mut loaded, "endpoints4"), (2, 5));
        let mut loaded = load::load(&options).expect("loads");
        assert_eq!(fill(&mut loaded, "ipcache4"), (1, 9));
        assert!(has(2), "nothing is replaced without need");
        let tables = Tables::new(&mut load::load(&options).expect("loads")).expect("maps");
        assert_eq!(tables.read().expect("reads"), desired);
        drop(tables);

        // Too small for what is there.
        options.capacities.insert("endpoints4", 1);
        let mut loaded = load::load(&options).expect("loads");
        assert_eq!(fill(&mut loaded, "endpoints4"), (2, 5));

        // An agent that ended in between: what it made is not complete.
        options.capacities.insert("endpoints4", 5);
        let pin = options.map_dir.join("endpoints4");
        fs::rename(&pin, options.map_dir.join("endpoints4-old")).expect("renames");
        fs::rename(options.map_dir.join("endpoints6"), &pin).expect("renames");
        let mut loaded = load::load(&options).expect("loads");
        assert_eq!(fill(&mut loaded, "endpoints4"), (2, 5));
        let names = fs::read_dir(&options.map_dir).expect("lists");
        let names = names.map(|entry| entry.expect("an entry").file_name());
        assert!(!{ names }.any(|name| name.to_string_lossy().contains("-old")));
    });
}

#[test]
fn clients_of_a_service_are_forgotten_and_those_of_others_are_not() {
    on_a_node(|bpffs| {
        let options = bpffs.options();
        let mut tables = Tables::new(&mut bpffs.load()).expect("maps");
        let mut clients = pinned::<AffinityKey<Addr4>, Affinity>(&options, "affinity4");
        let client = |service: u32, last: u8| AffinityKey {
            client: Addr4::new([192, 0, 2, last]),
            service,
        };
        let remembered = Affinity {
            backend: 3,
            used: 1,
        };
        for (service, last) in [(1, 1), (2, 1), (2, 2), (3, 1)] {
            let key = client(service, last);
            clients.insert(key, remembered, 0).expect("writes");
        }
        let all = [1, 2, 3].into();
        assert_eq!(tables.forget_clients_except(&all).expect("none"), 0);
        let rest = [1, 3, 4].into();
        assert_eq!(tables.forget_clients_except(&rest).expect("done"), 2);
        let left: BTreeSet<_> = clients.keys().map(|key| key.expect("reads")).collect();
        assert_eq!(left, [client(1, 1), client(3, 1)].into());
    });
}

#[test]
fn sockets_are_deserted_when_their_backend_serves_no_more() {
    on_a_node(|bpffs| {
        let options = bpffs.options();
        let tables = Tables::new(&mut bpffs.load()).expect("maps");
        type Sockets = HashMap<MapData, SocketKey<Addr4>, SocketPeer<Addr4>>;
        let mut sockets: Sockets = pinned(&options, "sockets4");
        let address = |last| Addr4::new([10, 0, 0, last]);
        let led = |cookie: u32, last: u8, kind: u8, backend: u32| {
            let key = SocketKey {
                cookie: [cookie, 1],
                address: address(last),
                port: 53,
                protocol: 17,
                kind,
            };
            let peer = SocketPeer {
                backend,
                service: 9,
                ..SocketPeer::default()
            };
            (key, peer)
        };
        let mut mirror = Contents::default();
        for (number, last) in [(1, 1), (2, 99)] {
            let backend = Backend {
                address: address(last),
                service: 9,
                port: 53,
                flags: 0,
            };
            mirror.services.v4.backends.insert(number, backend);
        }
        let all = [
            led(1, 1, SOCKET_BACK, 1),  // Serves, if nobody new.
            led(2, 2, SOCKET_BACK, 2),  // The number is another backend's now.
            led(3, 3, SOCKET_BACK, 3),  // Gone.
            led(4, 3, SOCKET_FRONT, 3), // The address is the service's.
        ];
        for (key, peer) in all {
            sockets.insert(key, peer, 0).expect("writes");
        }
        let deserted = tables.deserted_sockets(&mirror.services).expect("reads");
        let told: Vec<_> = deserted
            .iter()
            .map(|socket| (socket.cookie, socket.backend.to_string(), socket.protocol))
            .collect();
        let cookie = |low: u64| 1 << 32 | low;
        assert_eq!(
            told,
            [
                (cookie(2), "10.0.0.2:53".to_owned(), 17),
                (cookie(3), "10.0.0.3:53".to_owned(), 17)
            ]
        );
    });
}

#[test]
fn pins_that_do_not_fit_are_refused_before_anything_happens() {
    on_a_node(|bpffs| {
        drop(bpffs.load());
        let dir = bpffs.options().map_dir;
        fs::rename(dir.join("slots"), dir.join("endpoints4")).expect("renames");
        match load::load(&bpffs.options()).expect_err("refused") {
            LoadError::Layout { path, .. } => assert_eq!(path, dir.join("endpoints4")),
            other => panic!("{other}"),
        }
        let elsewhere = Options {
            map_dir: Path::new("/proc/weft").to_owned(),
            ..bpffs.options()
        };
        assert!(matches!(
            load::load(&elsewhere),
            Err(LoadError::NotBpffs(_))
        ));
    });
}

#[test]
fn the_next_agent_swaps_its_programs_into_the_links() {
    on_a_node(|bpffs| {
        make_interface("weft1");
        make_overlay();
        let mut first = bpffs.attacher(AttachMode::Tcx);
        first.attach_pod("weft1").expect("attaches");
        first.attach_overlay().expect("attaches");
        let before = attached("weft1", TcAttachType::Ingress);
        assert_eq!(before.len(), 1);
        drop(first);
        assert_eq!(
            attached("weft1", TcAttachType::Ingress),
            before,
            "goes on without an agent"
        );

        let mut second = bpffs.attacher(AttachMode::Tcx);
        second.attach_pod("weft1").expect("swaps");
        second.attach_overlay().expect("swaps");
        let after = attached("weft1", TcAttachType::Ingress);
        assert_eq!(after.len(), 1, "in the place of the other, not beside it");
        assert_ne!(after, before);
        assert_eq!(attached("weft1", TcAttachType::Egress).len(), 1);
        assert_eq!(attached(overlay::DEVICE, TcAttachType::Egress).len(), 1);

        // Another interface of the same name: the pinned link is dead.
        make_interface("weft1");
        assert!(attached("weft1", TcAttachType::Ingress).is_empty());
        second.attach_pod("weft1").expect("attaches");
        assert_eq!(attached("weft1", TcAttachType::Ingress), after);
        assert_eq!(bpffs.pinned_links().len(), 4);

        make_interface("weft2");
        second.attach_pod("weft2").expect("attaches");
        second.forget("weft2");
        // An interface that exists keeps its programs, listed or not: its pod is just being added.
        second.sweep(&BTreeSet::new());
        assert_eq!(attached("weft1", TcAttachType::Ingress), after);
        remove_interface(overlay::DEVICE);
        second.sweep(&BTreeSet::new());
        let left = ["weft1-from_container", "weft1-to_container"].map(str::to_owned);
        assert_eq!(bpffs.pinned_links(), left.into());

        let error = second.attach_pod("nowhere").expect_err("no such interface");
        assert!(
            error
                .to_string()
                .contains("from_container to interface nowhere"),
            "{error}"
        );
    });
}

#[test]
fn uplinks_get_programs_keep_them_and_lose_them() {
    on_a_node(|bpffs| {
        // The BPF file system takes no dots, which VLAN interfaces have.
        for interface in ["eth0", "eth0.100"] {
            make_interface(interface);
        }
        let names = |attacher: &Attacher| attacher.pinned_uplinks().into_iter().collect::<Vec<_>>();
        let mut first = bpffs.attacher(AttachMode::Tcx);
        for interface in ["eth0", "eth0.100"] {
            first.attach_uplink(interface).expect("attaches");
        }
        let before = attached("eth0.100", TcAttachType::Ingress);
        assert_eq!(before.len(), 1);
        assert_eq!(attached("eth0.100", TcAttachType::Egress).len(), 1);
        drop(first);
        assert_eq!(attached("eth0.100", TcAttachType::Ingress), before);

        let mut second = bpffs.attacher(AttachMode::Tcx);
        assert_eq!(names(&second), ["eth0", "eth0.100"], "an earlier agent's");
        second.attach_uplink("eth0.100").expect("swaps");
        let after = attached("eth0.100", TcAttachType::Ingress);
        assert_eq!(after.len(), 1);
        assert_ne!(after, before);
        second.sweep(&BTreeSet::new());
        assert_eq!(names(&second).len(), 2, "interfaces that are there");

        second.detach_uplink("eth0").expect("detaches");
        wait_until(|| attached("eth0", TcAttachType::Ingress).is_empty());
        wait_until(|| attached("eth0", TcAttachType::Egress).is_empty());
        assert_eq!(attached("eth0.100", TcAttachType::Ingress), after);
        second.detach_uplink("eth0").expect("nothing there is fine");
        remove_interface("eth0.100");
        second.sweep(&BTreeSet::new());
        assert!(names(&second).is_empty());
        second.detach_uplink("eth0.100").expect("gone is fine");
    });
}

#[test]
fn without_tcx_an_uplinks_filters_stand_beside_those_of_others() {
    on_a_node(|bpffs| {
        make_interface("eth0");
        let mut others = bpffs.attacher(AttachMode::Clsact);
        // Filters of the handle that somebody would most likely take.
        others.attach_pod("eth0").expect("attaches");
        let there = |handle: TcHandle| {
            SchedClassifierLink::attached("eth0", TcAttachType::Ingress, 1, handle, None)
                .expect("an interface")
        };
        let mut attacher = bpffs.attacher(AttachMode::Clsact);
        for _ in 0..2 {
            attacher.attach_uplink("eth0").expect("attaches");
        }
        attacher.detach_uplink("eth0").expect("detaches");
        attacher
            .detach_uplink("eth0")
            .expect("nothing there is fine");
        there(TcHandle::new(0, 0x5745)).detach().expect_err("gone");
        there(TcHandle::new(0, 1)).detach().expect("another's");
        make_interface("eth1");
        attacher.detach_uplink("eth1").expect("no qdisc is fine");
    });
}

/// A cgroup that ends with the test.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn socket_programs_take_the_place_of_an_earlier_agents() {
    on_a_node(|bpffs| {
        let mut first = bpffs.attacher(AttachMode::Tcx);
        let Some(root) = cgroup::find_root().expect("readable") else {
            eprintln!("skipped: there is no cgroup2 file system");
            return;
        };
        let cgroup = Cgroup(root.join(format!("weft-test-{}", std::process::id())));
        fs::create_dir(&cgroup.0).expect("a cgroup");
        assert!(cgroup::is_cgroup2(&cgroup.0));
        assert!(!cgroup::is_cgroup2(&bpffs.root));
        assert!(first.loaded().has_socket_programs());

        let programs = || {
            let pins = maps::sockets::ALL.iter().map(|program| {
                let pin = bpffs.links().join(format!("cgroup-{program}"));
                let link = FdLink::from(PinnedLink::from_pin(&pin).expect("pinned"));
                (*program, link.info().expect("a link").program_id())
            });
            pins.collect::<BTreeMap<_, _>>()
        };
        first.attach_sockets(&cgroup.0).expect("attaches");
        assert_eq!(first.attached_sockets(), maps::sockets::ALL);
        let before = programs();
        let pins = bpffs.pinned_links();
        drop(first);
        assert_eq!(programs(), before, "they go on without an agent");

        // An agent that ended between its own pin and the earlier one's place.
        let link = PinnedLink::from_pin(bpffs.links().join("cgroup-connect4")).expect("pinned");
        FdLink::from(link)
            .pin(bpffs.links().join("cgroup-connect4-new"))
            .expect("pinned");
        let mut second = bpffs.attacher(AttachMode::Tcx);
        second.attach_sockets(&cgroup.0).expect("attaches");
        let after = programs();
        assert!(before.iter().all(|(name, id)| after[name] != *id));
        assert_eq!(bpffs.pinned_links(), pins, "nothing is left over");

        let error = second
            .attach_sockets(Path::new("/proc"))
            .expect_err("no cgroup");
        assert!(error.to_string().contains("cgroup /proc"), "{error}");
        assert_eq!(programs(), after);
    });
}

#[test]
fn without_tcx_a_filter_is_replaced_in_place() {
    on_a_node(|bpffs| {
        make_interface("weft1");
        bpffs
            .attacher(AttachMode::Tcx)
            .attach_pod("weft1")
            .expect("attaches");
        for _ in 0..2 {
            bpffs
                .attacher(AttachMode::Clsact)
                .attach_pod("weft1")
                .expect("attaches");
            // They would go before the filter. The kernel ends unpinned links in its own time.
            wait_until(|| attached("weft1", TcAttachType::Ingress).is_empty());
            // Exactly one filter of ours: it can be taken away once.
            let of_ours = || {
                SchedClassifierLink::attached(
                    "weft1",
                    TcAttachType::Ingress,
                    1,
                    TcHandle::new(0, 1),
                    None,
                )
                .expect("an interface")
            };
            of_ours().detach().expect("there");
            of_ours().detach().expect_err("gone");
            bpffs
                .attacher(AttachMode::Clsact)
                .attach_pod("weft1")
                .expect("attaches again");
        }
    });
}

#[test]
fn a_full_map_of_services_keeps_no_policy_out() {
    on_a_node(|node| {
        let mut options = node.options();
        options.capacities.insert("frontends4", 1);
        let mut loaded = load::load(&options).expect("loads");
        let mut tables = Tables::new(&mut loaded).expect("opens");
        let mut desired = Contents::default();
        for port in [80, 81] {
            let key = FrontendKey {
                address: Addr4::new([10, 96, 0, 1]),
                port,
                protocol: 6,
                scope: 0,
            };
            desired
                .services
                .v4
                .frontends
                .insert(key, Frontend::default());
        }
        desired.policy.v4.endpoints.extend([endpoint(1)]);
        let (mut mirror, mut config) = (Contents::default(), Config::default());
        let changes = diff(&mirror, &desired);
        let error = tables
            .apply(&changes, &mut mirror, &mut config)
            .expect_err("one of two has no room");
        assert!(
            matches!(
                error,
                TableError::Overflow {
                    map: "frontends4",
                    wanted: 2,
                    capacity: 1,
                }
            ),
            "{error}"
        );
        assert!(
            error.to_string().contains("--map-capacity frontends4="),
            "{error}"
        );
        let held = tables.read().expect("reads");
        assert_eq!(held, mirror, "the mirror tells what the maps hold");
        assert_eq!(held.policy, desired.policy);
        assert!(
            held.services.v4.frontends.is_empty(),
            "what does not fit is not begun"
        );
        assert_eq!(
            tables.config().expect("reads").epoch,
            1,
            "what was written counts"
        );
    });
}
