//! Rolls out deployments through replica sets, one per template.

use serde_json::{Value, json};

use super::replica_sets::set_status;
use super::{Controller, pods};
use crate::api::object::{self, text};
use crate::api::registry::{DeleteOptions, Part};
use crate::api::resources::{DEPLOYMENTS, REPLICASETS};
use crate::api::{Change, Key, Object, Registry, Status};

const HASH: &str = "pod-template-hash";

/// See the module.
pub struct Deployments;

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn keys(&mut self, _: &Registry, change: &Change) -> Vec<Key> {
        match change.key.resource {
            resource if *resource == DEPLOYMENTS => vec![change.key.clone()],
            resource if *resource == REPLICASETS => pods::owners(change, &DEPLOYMENTS),
            _ => Vec::new(),
        }
    }

    fn reconcile(&mut self, registry: &Registry, key: &Key) -> Result<(), Status> {
        let Ok(deployment) = registry.get(&DEPLOYMENTS, &key.namespace, &key.name) else {
            return Ok(());
        };
        if object::is_terminating(&deployment) {
            return Ok(());
        }
        let hash = template_hash(&deployment["spec"]["template"]);
        let sets = pods::controlled(registry, &REPLICASETS, &deployment);
        let (new, old): (Vec<_>, Vec<_>) = sets
            .into_iter()
            .partition(|set| object::label(set, HASH) == Some(hash.as_str()));
        let plan = Plan::new(&deployment, new.first(), &old);
        match new.first() {
            None => self.create(registry, &deployment, &hash, plan.new)?,
            Some(set) => self.scale(registry, set, plan.new)?,
        }
        for (set, replicas) in old.iter().zip(&plan.old) {
            self.scale(registry, set, *replicas)?;
        }
        self.forget_old(registry, &deployment, &old)?;
        let all: Vec<_> = new.iter().chain(&old).collect();
        set_status(
            registry,
            key,
            &self.options(),
            status(&deployment, new.first(), &all),
        )
    }
}

impl Deployments {
    fn create(
        &self,
        registry: &Registry,
        deployment: &Value,
        hash: &str,
        replicas: i64,
    ) -> Result<(), Status> {
        let spec = &deployment["spec"];
        let mut template = spec["template"].clone();
        object::metadata(&mut template);
        let labels = object::map_mut(&mut template["metadata"], "labels");
        labels.insert(HASH.to_owned(), hash.into());
        let labels = labels.clone();
        let mut selector = spec["selector"].clone();
        object::map_mut(&mut selector, "matchLabels").insert(HASH.to_owned(), hash.into());
        let set = json!({
            "metadata": {
                "name": format!("{}-{hash}", object::name(deployment)),
                "labels": labels,
                "ownerReferences": [pods::reference(deployment)],
            },
            "spec": { "replicas": replicas, "selector": selector, "template": template },
        });
        registry.create(
            &REPLICASETS,
            object::namespace(deployment),
            set,
            &self.options(),
        )?;
        Ok(())
    }

    fn scale(&self, registry: &Registry, set: &Value, replicas: i64) -> Result<(), Status> {
        if set["spec"]["replicas"] == replicas {
            return Ok(());
        }
        let key = Key::new(&REPLICASETS, object::namespace(set), object::name(set));
        registry.modify(&key, Part::Main, &self.options(), |live| {
            let mut scaled = live.clone();
            scaled["spec"]["replicas"] = replicas.into();
            Ok(scaled)
        })?;
        Ok(())
    }

    fn forget_old(
        &self,
        registry: &Registry,
        deployment: &Value,
        old: &[Object],
    ) -> Result<(), Status> {
        let limit = deployment["spec"]["revisionHistoryLimit"]
            .as_u64()
            .unwrap_or(10);
        let mut idle: Vec<_> = old
            .iter()
            .filter(|set| number(set, "/spec/replicas") + number(set, "/status/replicas") == 0)
            .collect();
        idle.sort_by_key(|set| text(set, "/metadata/creationTimestamp").to_owned());
        let surplus = idle
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        for set in idle.into_iter().take(surplus) {
            let key = Key::new(&REPLICASETS, object::namespace(set), object::name(set));
            registry.delete(&key, &DeleteOptions::default())?;
        }
        Ok(())
    }
}

/// How many replicas each replica set should have next.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    new: i64,
    old: Vec<i64>,
}

impl Plan {
    fn new(deployment: &Value, new: Option<&Object>, old: &[Object]) -> Self {
        let spec = &deployment["spec"];
        let desired = spec["replicas"].as_i64().unwrap_or(1);
        let has = new.map_or(0, |set| number(set, "/spec/replicas"));
        let olds: Vec<i64> = old
            .iter()
            .map(|set| number(set, "/spec/replicas"))
            .collect();
        if spec["strategy"]["type"] == "Recreate" {
            let remaining: i64 = old.iter().map(|set| number(set, "/status/replicas")).sum();
            let new = if remaining + olds.iter().sum::<i64>() == 0 {
                desired
            } else {
                has
            };
            return Plan {
                new,
                old: vec![0; olds.len()],
            };
        }
        let rolling = &spec["strategy"]["rollingUpdate"];
        let surge = share(&rolling["maxSurge"], desired, true);
        let mut missing = share(&rolling["maxUnavailable"], desired, false);
        if surge == 0 && missing == 0 {
            missing = 1;
        }
        let room = desired + surge - olds.iter().sum::<i64>();
        let next = desired.min(room).max(has.min(desired));
        // Old pods that are not available are not missed; of the others only so many at a time.
        let available = |set: &Object| number(set, "/status/availableReplicas");
        let mut spare =
            new.map_or(0, available) + old.iter().map(available).sum::<i64>() - (desired - missing);
        let olds = old.iter().zip(olds).map(|(set, replicas)| {
            let up = available(set).min(replicas);
            let dropped = spare.clamp(0, up);
            spare -= dropped;
            up - dropped
        });
        Plan {
            new: next,
            old: olds.collect(),
        }
    }
}

/// A number, or a percentage of the desired replicas.
fn share(value: &Value, desired: i64, round_up: bool) -> i64 {
    let percent = value
        .as_str()
        .and_then(|text| text.strip_suffix('%')?.parse::<i64>().ok());
    match percent {
        None => value.as_i64().unwrap_or(0),
        Some(percent) if round_up => (desired * percent + 99) / 100,
        Some(percent) => desired * percent / 100,
    }
}

fn number(object: &Value, pointer: &str) -> i64 {
    object::at(object, pointer).as_i64().unwrap_or(0)
}

fn status(deployment: &Value, new: Option<&Object>, all: &[&Object]) -> Value {
    let sum = |pointer: &str| -> i64 { all.iter().map(|set| number(set, pointer)).sum() };
    let desired = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    let available = sum("/status/availableReplicas");
    let updated = new.map_or(0, |set| number(set, "/status/replicas"));
    let missing = share(
        &deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"],
        desired,
        false,
    );
    let is_complete =
        updated == desired && available == desired && sum("/status/replicas") == desired;
    let progress = if is_complete {
        "NewReplicaSetAvailable"
    } else {
        "ReplicaSetUpdated"
    };
    let condition = |kind: &str, is_true: bool, reason: &str, message: &str| {
        let status = if is_true { "True" } else { "False" };
        let before = object::items(deployment, "/status/conditions")
            .iter()
            .find(|c| c["type"] == kind && c["status"] == status && c["reason"] == reason);
        before.cloned().unwrap_or_else(|| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": object::now(), "lastUpdateTime": object::now(),
            })
        })
    };
    let is_available = available >= desired - missing;
    let (reason, message) = if is_available {
        (
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        (
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": sum("/status/replicas"),
        "updatedReplicas": updated,
        "readyReplicas": sum("/status/readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": (desired - available).max(0),
        "conditions": [
            condition("Available", is_available, reason, message),
            condition("Progressing", true, progress, "The deployment is rolled out by replica sets."),
        ],
    })
}

/// A short name for a template: the same template has the same one.
pub fn template_hash(template: &Value) -> String {
    // FNV-1a over the canonical text; maps are ordered.
    let text = template.to_string();
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{hash:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i64, available: i64) -> Object {
        json!({
            "spec": { "replicas": replicas },
            "status": { "replicas": replicas, "availableReplicas": available },
        })
        .into()
    }

    fn deployment(replicas: i64, kind: &str) -> Value {
        json!({ "spec": { "replicas": replicas, "strategy": {
            "type": kind, "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" },
        } } })
    }

    #[test]
    fn a_rollout_keeps_enough_available_and_not_too_many() {
        let rolling = deployment(4, "RollingUpdate");
        assert_eq!(
            Plan::new(&rolling, None, &[]),
            Plan {
                new: 4,
                old: vec![]
            }
        );
        assert_eq!(
            Plan::new(&rolling, None, &[set(4, 4)]),
            Plan {
                new: 1,
                old: vec![3]
            }
        );
        assert_eq!(
            Plan::new(&rolling, Some(&set(1, 0)), &[set(3, 3)]),
            Plan {
                new: 2,
                old: vec![3]
            }
        );
        assert_eq!(
            Plan::new(&rolling, Some(&set(2, 2)), &[set(3, 3)]),
            Plan {
                new: 2,
                old: vec![1]
            }
        );
        assert_eq!(
            Plan::new(&rolling, Some(&set(4, 4)), &[set(1, 1)]),
            Plan {
                new: 4,
                old: vec![0]
            }
        );
    }

    #[test]
    fn recreate_waits_for_the_old_to_be_gone() {
        let recreate = deployment(2, "Recreate");
        assert_eq!(
            Plan::new(&recreate, None, &[set(2, 2)]),
            Plan {
                new: 0,
                old: vec![0]
            }
        );
        assert_eq!(
            Plan::new(&recreate, None, &[set(0, 0)]),
            Plan {
                new: 2,
                old: vec![0]
            }
        );
    }

    #[test]
    fn one_replica_rolls_over_with_surge() {
        let rolling = deployment(1, "RollingUpdate");
        assert_eq!(
            Plan::new(&rolling, None, &[set(1, 1)]),
            Plan {
                new: 1,
                old: vec![1]
            }
        );
        assert_eq!(
            Plan::new(&rolling, Some(&set(1, 1)), &[set(1, 1)]),
            Plan {
                new: 1,
                old: vec![0]
            }
        );
    }
}
