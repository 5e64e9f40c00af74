//! Policy: may this flow be?
//!
//! Every precedence was resolved by the compiler; here are at most two lookups per direction.

use aya_ebpf::{
    btf_maps::{LpmTrie, lpm_trie::Key},
    macros::btf_map,
};
use weft_abi::{
    drop::DropReason,
    endpoint::{ENFORCE_EGRESS, ENFORCE_INGRESS},
    ipcache::KIND_HOST,
    maps,
    policy::{ALLOW, EGRESS, IDENTITY_ANY, INGRESS, POLICY_PREFIX_PORT, PolicyKey, PolicyVerdict},
};

use crate::{
    addresses::End,
    drops::Drop,
    lookups::{self, Table},
};

#[btf_map(name = "policy")]
static POLICY: LpmTrie<PolicyKey, PolicyVerdict, { maps::POLICY }> = LpmTrie::new();

/// What is asked of policy: a flow, in the direction in which it was opened.
pub struct Question {
    /// IP protocol.
    pub protocol: u8,
    /// Big-endian destination port; for ICMP type and code.
    pub port: [u8; 2],
    /// Opened by a process of this node.
    pub own_node: bool,
}

/// The rules that allowed a flow; 0 where nothing was asked.
#[derive(Clone, Copy, Default)]
pub struct Allowed {
    /// At the initiator.
    pub egress_rule: u32,
    /// At the responder.
    pub ingress_rule: u32,
}

/// Judges a flow on both ends, as far as they are local endpoints.
///
/// 1. A pod always reaches itself.
/// 2. An endpoint whose policy set is not programmed passes only its own node's traffic.
/// 3. Egress of the initiator, if isolated.
/// 4. A pod's own node is always let in.
/// 5. Ingress of the responder, if isolated.
#[inline(always)]
pub fn judge(initiator: &End, responder: &End, question: &Question) -> Result<Allowed, Drop> {
    let mut allowed = Allowed::default();
    // 1.
    if initiator.is_endpoint()
        && responder.is_endpoint()
        && initiator.side.ifindex == responder.side.ifindex
    {
        return Ok(allowed);
    }
    if initiator.is_endpoint() {
        // 2.
        if initiator.policy_set == 0 && responder.kind != KIND_HOST {
            return Err(Drop::because(DropReason::EndpointNotReady));
        }
        // 3.
        if initiator.enforce & ENFORCE_EGRESS != 0 {
            allowed.egress_rule = ask(initiator.policy_set, responder.identity, EGRESS, question)
                .map_err(|rule| Drop {
                reason: DropReason::PolicyEgress,
                rule,
            })?;
        }
    }
    // 4.
    if responder.is_endpoint() && !question.own_node {
        // 2.
        if responder.policy_set == 0 {
            return Err(Drop::because(DropReason::EndpointNotReady));
        }
        // 5.
        if responder.enforce & ENFORCE_INGRESS != 0 {
            allowed.ingress_rule = ask(responder.policy_set, initiator.identity, INGRESS, question)
                .map_err(|rule| Drop {
                    reason: DropReason::PolicyIngress,
                    rule,
                })?;
        }
    }
    Ok(allowed)
}

/// The rule of the entry that decides: `Ok` allows, `Err` denies.
///
/// 1. The entries of the peer's identity.
/// 2. The entries for any peer.
/// 3. None: a set without its default entry is not whole, so deny.
#[inline(always)]
fn ask(policy_set: u32, identity: u32, direction: u8, question: &Question) -> Result<u32, u32> {
    let mut key = Key::new(
        POLICY_PREFIX_PORT,
        PolicyKey {
            policy_set,
            identity,
            direction,
            protocol: question.protocol,
            port: question.port,
        },
    );
    lookups::count(Table::Policy);
    // 1.
    if let Some(verdict) = POLICY.get(&key) {
        return outcome(verdict);
    }
    key.data.identity = IDENTITY_ANY;
    lookups::count(Table::Policy);
    // 2.
    match POLICY.get(&key) {
        Some(verdict) => outcome(verdict),
        // 3.
        None => Err(0),
    }
}

#[inline(always)]
fn outcome(verdict: &PolicyVerdict) -> Result<u32, u32> {
    if verdict.verdict == ALLOW {
        Ok(verdict.rule)
    } else {
        Err(verdict.rule)
    }
}
