//! The whole of address management, on a real directory.

use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use super::freed::REST;
use super::*;

fn owner(n: u32) -> Owner {
    Owner {
        container_id: format!("c{n}"),
        ifname: "eth0".to_owned(),
    }
}

fn open(dir: &Path, pools: &[&str]) -> Ipam {
    let mut ipam = Ipam::open(dir).expect("opens");
    let pools: Vec<IpNet> = pools
        .iter()
        .map(|pool| pool.parse().expect("a network"))
        .collect();
    ipam.set_pools(&pools);
    ipam
}

fn v4(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn network_and_broadcast_are_never_given() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ipam = open(dir.path(), &["10.1.0.0/30"]);
    assert_eq!(ipam.allocate(&owner(1)).expect("free"), [v4("10.1.0.1")]);
    assert_eq!(ipam.allocate(&owner(2)).expect("free"), [v4("10.1.0.2")]);
    let error = ipam.allocate(&owner(3)).expect_err("exhausted");
    assert_eq!(
        error.to_string(),
        "no free address: all 2 of 10.1.0.0/30 are in use"
    );
}

#[test]
fn an_owner_keeps_its_address() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
    let first = ipam.allocate(&owner(1)).expect("free");
    assert_eq!(ipam.allocate(&owner(1)).expect("kept"), first);
    assert_eq!(
        open(dir.path(), &["10.1.0.0/24"])
            .allocate(&owner(1))
            .expect("kept"),
        first
    );
    assert_eq!(ipam.release(&owner(1)).expect("released"), first);
    assert_eq!(
        ipam.release(&owner(1)).expect("nothing left"),
        [] as [IpAddr; 0]
    );
    assert!(open(dir.path(), &[]).allocations().is_empty());
}

#[test]
fn a_freed_address_rests_also_across_restarts() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut given = Vec::new();
    for n in 0..6 {
        // A new process each time.
        let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
        given.extend(ipam.allocate(&owner(n)).expect("free"));
        ipam.release(&owner(n)).expect("released");
    }
    let mut distinct = given.clone();
    distinct.dedup();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 6, "{given:?}");
    let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
    assert_eq!(ipam.allocate(&owner(9)).expect("wraps"), [v4("10.1.0.1")]);
}

#[test]
fn the_one_freed_the_longest_ago_is_next() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
    for n in 1..=6 {
        ipam.allocate(&owner(n)).expect("free");
    }
    // A cursor that goes round would come to 10.1.0.1 next, which has just been freed.
    for n in [3, 5, 1] {
        ipam.release(&owner(n)).expect("released");
    }
    let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
    let given: Vec<_> = (7..=9)
        .flat_map(|n| ipam.allocate(&owner(n)).expect("free"))
        .collect();
    assert_eq!(given, ["10.1.0.3", "10.1.0.5", "10.1.0.1"].map(v4));
}

#[test]
fn every_state_a_crash_can_leave_is_safe() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
    ipam.allocate(&owner(1)).expect("free");
    ipam.allocate(&owner(2)).expect("free");
    ipam.release(&owner(2)).expect("released");
    // Within an allocation: its file is there, and the note that the address was freed as well.
    std::fs::write(dir.path().join("freed-10.1.0.1"), "9").expect("writes");
    // Within the write of an allocation.
    std::fs::write(dir.path().join(".tmp-10.1.0.2~"), "{\"cont").expect("writes");
    let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
    assert_eq!(ipam.allocate(&owner(2)).expect("free"), [v4("10.1.0.3")]);
    assert_eq!(ipam.addresses_of(&owner(1)), [v4("10.1.0.1")]);
    assert!(!dir.path().join("freed-10.1.0.1").exists());
    // Before the allocation is on disk, nobody has it; after, its owner does.
    let reservation = ipam.reserve(&owner(4), &[]).expect("free");
    let mut after_a_crash = open(dir.path(), &["10.1.0.0/24"]);
    assert!(after_a_crash.addresses_of(&owner(4)).is_empty());
    reservation.store().expect("writes");
    after_a_crash = open(dir.path(), &["10.1.0.0/24"]);
    assert_eq!(
        after_a_crash.addresses_of(&owner(4)),
        reservation.addresses()
    );
    // Free on disk, not yet in memory.
    let release = ipam.releasing(&owner(4));
    release.store().expect("renames");
    after_a_crash = open(dir.path(), &["10.1.0.0/24"]);
    assert!(after_a_crash.addresses_of(&owner(4)).is_empty());
    assert_ne!(
        after_a_crash.allocate(&owner(5)).expect("free"),
        release.addresses()
    );
    release.store().expect("again");
    ipam.released(&release);
    assert!(ipam.addresses_of(&owner(4)).is_empty());
}

#[test]
fn what_cannot_be_written_is_not_given() {
    let dir = tempfile::tempdir().expect("tempdir");
    let state = dir.path().join("ipam");
    let mut ipam = open(&state, &["10.1.0.0/29", "fd00::/64"]);
    // Where a file should go there is a directory.
    std::fs::create_dir(state.join("fd00::1")).expect("makes");
    let error = ipam.allocate(&owner(1)).expect_err("cannot write");
    assert!(matches!(error, IpamError::Io { .. }), "{error}");
    assert!(ipam.allocations().is_empty());
    assert!(!state.join("10.1.0.1").exists());
    let given = ipam.allocate(&owner(1)).expect("the next ones");
    assert_eq!(given, ["10.1.0.2", "fd00::2"].map(v4));
}

#[test]
fn addresses_can_be_asked_for() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ipam = open(dir.path(), &["10.1.0.0/24", "fd00::/64"]);
    let wanted = ["10.1.0.77", "fd00::7:7"].map(v4);
    let reservation = ipam.reserve(&owner(1), &wanted).expect("free");
    assert_eq!(reservation.addresses(), wanted);
    reservation.store().expect("writes");
    for (wanted, why) in [
        (vec!["10.1.0.77"], "has it"),
        (vec!["10.2.0.1"], "no pod address of this node"),
        (vec!["10.1.0.0"], "no pod address of this node"),
        (vec!["10.1.0.255"], "no pod address of this node"),
        (vec!["fd00::"], "no pod address of this node"),
        (vec!["10.1.0.9", "10.1.0.8"], "one of each"),
    ] {
        let wanted: Vec<IpAddr> = wanted.into_iter().map(v4).collect();
        let error = ipam.reserve(&owner(2), &wanted).expect_err(why);
        assert!(error.to_string().contains(why), "{error}");
        assert!(ipam.addresses_of(&owner(2)).is_empty());
    }
    // One family asked for, the other by turn; and what its owner has may be asked for again.
    let reservation = ipam.reserve(&owner(2), &[v4("fd00::9")]).expect("free");
    assert_eq!(reservation.addresses(), ["10.1.0.1", "fd00::9"].map(v4));
    reservation.store().expect("writes");
    let again = ipam.reserve(&owner(1), &wanted).expect("kept");
    assert_eq!(again.addresses(), wanted);
}

#[test]
fn a_node_that_gets_another_network_keeps_what_pods_have() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
    let old = ipam.allocate(&owner(1)).expect("free");
    assert_eq!(ipam.outside(), 0);
    ipam.set_pools(&["10.2.0.0/24".parse().expect("a network")]);
    assert_eq!(ipam.outside(), 1);
    assert_eq!(ipam.allocate(&owner(1)).expect("kept"), old);
    assert_eq!(ipam.allocate(&owner(2)).expect("free"), [v4("10.2.0.1")]);
    ipam.release(&owner(1)).expect("released");
    assert_eq!(ipam.outside(), 0);
}

#[test]
fn exhaustion_is_told_per_family() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ipam = open(dir.path(), &["10.1.0.0/30", "fd00::/64"]);
    for n in 1..=2 {
        assert!(!ipam.usage()[0].is_exhausted());
        ipam.allocate(&owner(n)).expect("free");
    }
    let usage = ipam.usage();
    assert_eq!((usage[0].used, usage[0].size), (2, 2));
    assert!(usage[0].is_exhausted() && !usage[1].is_exhausted());
    assert_eq!(usage[1].size, u64::MAX);
    ipam.release(&owner(1)).expect("released");
    assert!(!ipam.usage()[0].is_exhausted());
}

#[test]
fn notes_end_but_not_before_their_rest() {
    let dir = tempfile::tempdir().expect("tempdir");
    let now = SystemTime::now();
    let old = now - REST - Duration::from_secs(60);
    for n in 0..3000_u32 {
        let path = dir
            .path()
            .join(format!("freed-{}", Ipv4Addr::from(0x0a01_0001 + n)));
        let file = std::fs::File::create(path).expect("makes");
        // The later half was freed just now.
        let at = if n < 1500 { old } else { now };
        file.set_modified(at).expect("sets");
    }
    let mut ipam = open(dir.path(), &["10.1.0.0/20"]);
    assert_eq!(ipam.freed.len(), 1500, "all that still rest, and no others");
    let given = ipam.allocate(&owner(1)).expect("free");
    assert_eq!(given, [v4("10.1.0.1")]);
    assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1501);
}

#[test]
fn a_large_network_is_gone_through_in_turn() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ipam = open(dir.path(), &["fd00::/64"]);
    let mut last = None;
    for n in 0..50 {
        let given = ipam.allocate(&owner(n)).expect("free");
        ipam.release(&owner(n)).expect("released");
        assert!(Some(&given) > last.as_ref(), "{given:?} after {last:?}");
        last = Some(given);
    }
}

#[test]
fn unreadable_files_take_nothing_but_their_address() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("10.1.0.1"), "garbage").expect("writes");
    std::fs::write(dir.path().join("freed-10.1.0.2"), "garbage").expect("writes");
    std::fs::write(dir.path().join("README"), "hello").expect("writes");
    let mut ipam = open(dir.path(), &["10.1.0.0/24"]);
    assert_eq!(ipam.allocate(&owner(1)).expect("free"), [v4("10.1.0.3")]);
}

#[test]
fn both_families_or_none() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut ipam = open(dir.path(), &["fd00::/126", "10.1.0.0/30", "10.2.0.0/24"]);
    assert_eq!(ipam.pools().len(), 2);
    // The first one is every router's.
    assert_eq!(
        ipam.allocate(&owner(1)).expect("free"),
        [v4("fd00::1"), v4("10.1.0.1")]
    );
    assert_eq!(
        ipam.allocate(&owner(2)).expect("free"),
        [v4("fd00::2"), v4("10.1.0.2")]
    );
    ipam.release(&owner(2)).expect("released");
    std::fs::write(dir.path().join("10.1.0.2"), "garbage").expect("writes");
    let mut ipam = open(dir.path(), &["fd00::/126", "10.1.0.0/30"]);
    ipam.allocate(&owner(3)).expect_err("no IPv4 address");
    assert_eq!(ipam.addresses_of(&owner(3)), [] as [IpAddr; 0]);
}

#[test]
fn without_a_pod_network_there_is_no_address() {
    let dir = tempfile::tempdir().expect("tempdir");
    assert!(matches!(
        open(dir.path(), &[]).allocate(&owner(1)),
        Err(IpamError::NoPool)
    ));
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u32),
    Release(u32),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..8_u32).prop_map(Step::Allocate),
        3 => (0..8_u32).prop_map(Step::Release),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_an_address_has_one_owner_and_rests(steps in steps()) {
        let dir = tempfile::tempdir().expect("tempdir");
        // Six usable addresses for up to eight owners.
        let pool: IpNet = "10.1.0.0/29".parse().expect("a network");
        let mut ipam = open(dir.path(), &["10.1.0.0/29"]);
        let mut model: BTreeMap<u32, IpAddr> = BTreeMap::new();
        let mut freed = None;
        for step in steps {
            match step {
                Step::Restart => ipam = open(dir.path(), &["10.1.0.0/29"]),
                Step::Release(n) => {
                    let released = ipam.release(&owner(n)).expect("released");
                    let had = model.remove(&n);
                    prop_assert_eq!(released, had.into_iter().collect::<Vec<_>>());
                    freed = had.or(freed);
                }
                Step::Allocate(n) => match ipam.allocate(&owner(n)) {
                    Err(error) => {
                        let exhausted = matches!(error, IpamError::Exhausted { .. });
                        prop_assert!(exhausted);
                        prop_assert_eq!(model.len(), 6);
                    }
                    Ok(addresses) => {
                        let address = addresses[0];
                        let kept = model.insert(n, address);
                        prop_assert!(kept.is_none_or(|kept| kept == address));
                        let others = model.iter().filter(|(m, _)| **m != n);
                        prop_assert!(others.clone().all(|(_, other)| *other != address));
                        prop_assert!(pool.contains(&address));
                        prop_assert!(address != pool.network() && address != pool.broadcast());
                        // With another address to give, the one freed last is not given.
                        if kept.is_none() && model.len() < 6 {
                            prop_assert_ne!(Some(address), freed);
                        }
                    }
                },
            }
            prop_assert_eq!(ipam.allocations().len(), model.len());
        }
    }
}
