//! The order of changes: what holds after each single write.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use weft_abi::{
    addr::{Addr4, Addr6},
    ipcache::IpcacheEntry,
};
use weft_core::{
    compile::Compiler,
    contents::{Contents, LpmKey},
    diff::{Changes, Step, diff},
    family::Address,
    lookup,
};

use crate::common::{cluster, ip, singles};

/// Applies changes entry by entry, and asks `check` after each.
pub fn replay(
    contents: &mut Contents,
    changes: &Changes,
    mut check: impl FnMut(&Contents) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    for step in &changes.steps {
        if let Step::Write(batch) = step {
            for write in singles(batch) {
                write.apply(contents);
                check(contents)?;
            }
        }
    }
    Ok(())
}

/// Prefixes of a sixteenth of the address space and longer, all within a few addresses.
fn prefixes() -> impl Strategy<Value = BTreeMap<LpmKey<Addr4>, IpcacheEntry>> {
    let one = (0_u8..16, 0_u32..5, 0_u32..3).prop_map(|(bits, length, identity)| {
        let key = LpmKey::address(Addr4::new([bits << 4, 0, 0, 0]), length);
        (
            key,
            IpcacheEntry {
                identity,
                ..IpcacheEntry::default()
            },
        )
    });
    vec(one, 0..12).prop_map(|entries| entries.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// An address always resolves to what it did before or to what it will.
    #[test]
    fn nested_prefixes_never_show_through(before in prefixes(), after in prefixes()) {
        let with = |ipcache: &BTreeMap<_, _>| {
            let mut contents = Contents::default();
            contents.policy.v4.ipcache.clone_from(ipcache);
            contents
        };
        let (mut contents, before, after) = (with(&before), with(&before), with(&after));
        let identity = |contents: &Contents, bits: u8| {
            lookup::ipcache(&contents.policy, ip(&format!("{}.0.0.0", bits << 4))).map(|(_, entry)| entry)
        };
        replay(&mut contents, &diff(&before, &after), |now| {
            for bits in 0..16 {
                let found = identity(now, bits);
                prop_assert!(
                    found == identity(&before, bits) || found == identity(&after, bits),
                    "{bits}: {found:?}",
                );
            }
            Ok(())
        })?;
        prop_assert_eq!(contents, after);
    }

    /// An endpoint's limit is there whenever the endpoint says so.
    #[test]
    fn limits_come_before_endpoints_and_go_after_them(states in vec(cluster(), 1..4)) {
        fn are_there<A: Address>(contents: &Contents) -> Result<(), TestCaseError> {
            for endpoint in A::policy(&contents.policy).endpoints.values() {
                let limited = contents.policy.bandwidth.contains_key(&endpoint.ifindex);
                prop_assert!(limited || endpoint.limits == 0, "{:?}", endpoint);
            }
            Ok(())
        }
        let mut compiler = Compiler::new();
        let mut contents = Contents::default();
        for state in &states {
            let changes = compiler.compile(state).changes(&contents.policy);
            replay(&mut contents, &changes, |now| {
                are_there::<Addr4>(now)?;
                are_there::<Addr6>(now)
            })?;
        }
    }
}
