//! What the kubelet reports about a pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// A container's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not started, for this reason.
    Waiting(&'static str, String),
    /// It runs.
    Running(Timestamp),
    /// It ended with this exit code.
    Terminated(i32),
}

/// What a pod does about containers that end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// They are started again.
    Always,
    /// They are started again when they failed.
    OnFailure,
    /// They stay as they are.
    Never,
}

impl RestartPolicy {
    /// A pod's.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        match spec.and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// Whether a container that ended with this code is started again.
    pub fn restarts(self, code: i32) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// One container as it is.
#[derive(Clone, Debug)]
pub struct ContainerStatus {
    name: String,
    image: String,
    /// Its state.
    pub state: State,
    /// Whether its readiness probe passes.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
}

/// A pod as it is.
#[derive(Clone, Debug)]
pub struct PodStatus {
    policy: RestartPolicy,
    hosts: Vec<IpAddr>,
    start: Timestamp,
    /// The pod's addresses; none before there is a sandbox.
    pub addresses: Vec<IpAddr>,
    /// The sandbox's id.
    pub container_id: String,
    /// One for each container of the spec, in its order.
    pub containers: Vec<ContainerStatus>,
    /// Status and last transition of each condition.
    conditions: BTreeMap<&'static str, (bool, Timestamp)>,
}

impl PodStatus {
    /// A pod that has just come to its node.
    pub fn new(hosts: Vec<IpAddr>, containers: &[Container], policy: RestartPolicy) -> Self {
        let waiting = |container: &Container| ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: State::Waiting("ContainerCreating", String::new()),
            ready: false,
            restarts: 0,
        };
        PodStatus {
            policy,
            hosts,
            start: Timestamp::now(),
            addresses: Vec::new(),
            container_id: String::new(),
            containers: containers.iter().map(waiting).collect(),
            conditions: BTreeMap::new(),
        }
    }

    /// Says why no container runs.
    pub fn wait_for(&mut self, reason: &'static str, message: &str) {
        for container in &mut self.containers {
            container.state = State::Waiting(reason, message.to_owned());
        }
    }

    /// The pod's phase.
    pub fn phase(&self) -> &'static str {
        let codes = self
            .containers
            .iter()
            .map(|container| match container.state {
                State::Terminated(code) => Some(code),
                State::Waiting(..) | State::Running(_) => None,
            });
        match codes.collect::<Option<Vec<_>>>() {
            Some(codes) if codes.iter().any(|&code| self.policy.restarts(code)) => "Running",
            Some(codes) if codes.iter().all(|&code| code == 0) => "Succeeded",
            Some(_) => "Failed",
            None if self
                .containers
                .iter()
                .any(|c| c.restarts == 0 && matches!(c.state, State::Waiting(..))) =>
            {
                "Pending"
            }
            None => "Running",
        }
    }

    /// A strategic merge patch of the status subresource. Conditions of others (`PodScheduled`, and those that
    /// readiness gates name) stay as they are; the pod is ready once its gates are open
    /// too.
    pub fn patch(&mut self, pod: &Pod) -> Value {
        let running = |c: &ContainerStatus| matches!(c.state, State::Running(_));
        let contained = self.containers.iter().all(|c| running(c) && c.ready);
        let shut = shut_gates(pod);
        let ready = contained && shut.is_empty();
        let sandbox = !self.addresses.is_empty();
        let now = Timestamp::now();
        for (kind, status) in [
            ("PodReadyToStartContainers", sandbox),
            ("Initialized", true),
            ("ContainersReady", contained),
            ("Ready", ready),
        ] {
            let entry = self.conditions.entry(kind).or_insert((status, now));
            if entry.0 != status {
                *entry = (status, now);
            }
        }
        let conditions = self.conditions.iter().map(|(kind, (status, since))| {
            let mut condition = json!({
                "type": kind,
                "status": if *status { "True" } else { "False" },
                "lastTransitionTime": time(*since),
                "reason": null,
                "message": null,
            });
            if !status && *kind == "Ready" && contained {
                condition["reason"] = json!("ReadinessGatesNotReady");
                let gates = shut.join(" ");
                condition["message"] = json!(format!("readiness gates are not open: [{gates}]"));
            } else if !status && matches!(*kind, "Ready" | "ContainersReady") {
                condition["reason"] = json!("ContainersNotReady");
                condition["message"] = json!(self.not_ready());
            }
            condition
        });
        let conditions: Vec<Value> = conditions.collect();
        let containers: Vec<Value> = self.containers.iter().map(|c| self.container(c)).collect();
        json!({ "status": {
            "phase": self.phase(),
            "hostIP": self.hosts.first(),
            "hostIPs": list(&self.hosts),
            "podIP": self.addresses.first(),
            "podIPs": list(&self.addresses),
            "startTime": time(self.start),
            "qosClass": "BestEffort",
            "conditions": conditions,
            "containerStatuses": containers,
        }})
    }

    fn container(&self, container: &ContainerStatus) -> Value {
        let running = matches!(container.state, State::Running(_));
        let id = format!("weft://{}-{}", self.container_id, container.name);
        let state = match &container.state {
            State::Waiting(reason, message) => {
                json!({ "waiting": { "reason": reason, "message": message } })
            }
            State::Running(since) => json!({ "running": { "startedAt": time(*since) } }),
            State::Terminated(code) => json!({ "terminated": {
                "exitCode": code,
                "reason": if *code == 0 { "Completed" } else { "Error" },
                "containerID": id,
            }}),
        };
        json!({
            "name": container.name,
            "image": container.image,
            "imageID": "",
            "containerID": if self.container_id.is_empty() { String::new() } else { id },
            "ready": running && container.ready,
            "started": running,
            "restartCount": container.restarts,
            "state": state,
        })
    }

    fn not_ready(&self) -> String {
        let names: Vec<_> = self
            .containers
            .iter()
            .filter(|c| !(c.ready && matches!(c.state, State::Running(_))))
            .map(|c| c.name.as_str())
            .collect();
        let why = self.containers.iter().find_map(|c| match &c.state {
            State::Waiting(_, message) if !message.is_empty() => Some(message.as_str()),
            _ => None,
        });
        let list = format!("containers with unready status: [{}]", names.join(" "));
        why.map_or_else(|| list.clone(), |why| format!("{list}: {why}"))
    }
}

/// The pod's readiness gates whose conditions are not true.
pub fn shut_gates(pod: &Pod) -> Vec<&str> {
    let gates = pod.spec.iter().flat_map(|spec| &spec.readiness_gates);
    let conditions = || {
        let status = pod.status.iter();
        status.flat_map(|status| status.conditions.iter().flatten())
    };
    gates
        .flatten()
        .map(|gate| gate.condition_type.as_str())
        .filter(|gate| !conditions().any(|c| c.type_ == *gate && c.status == "True"))
        .collect()
}

fn list(addresses: &[IpAddr]) -> Value {
    addresses.iter().map(|ip| json!({ "ip": ip })).collect()
}

fn time(at: Timestamp) -> String {
    // Kubernetes' times are whole seconds.
    Timestamp::from_second(at.as_second())
        .unwrap_or(at)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> PodStatus {
        let container = |name: &str| Container {
            name: name.to_owned(),
            ..Container::default()
        };
        PodStatus::new(
            vec!["172.30.0.10".parse().unwrap()],
            &[container("a"), container("b")],
            RestartPolicy::Never,
        )
    }

    #[test]
    fn gates_keep_a_pod_from_being_ready_until_somebody_opens_them() {
        let pod = |status: &str| -> Pod {
            serde_json::from_value(json!({
                "spec": { "containers": [], "readinessGates": [{ "conditionType": "x/y" }] },
                "status": { "conditions": [{ "type": "x/y", "status": status }] },
            }))
            .unwrap()
        };
        let mut status = PodStatus::new(Vec::new(), &[], RestartPolicy::Always);
        let mut ready = |pod: &Pod| {
            let patch = status.patch(pod);
            let conditions = patch["status"]["conditions"].as_array().unwrap();
            let of = |kind: &str| conditions.iter().find(|c| c["type"] == kind).unwrap();
            [of("ContainersReady"), of("Ready")].map(|c| c["status"] == "True")
        };
        assert_eq!(ready(&pod("False")), [true, false]);
        assert_eq!(ready(&pod("True")), [true, true]);
    }

    #[test]
    fn a_pod_that_restarts_its_containers_goes_on() {
        for (policy, code, phase) in [
            (RestartPolicy::Always, 0, "Running"),
            (RestartPolicy::OnFailure, 0, "Succeeded"),
            (RestartPolicy::OnFailure, 1, "Running"),
            (RestartPolicy::Never, 1, "Failed"),
        ] {
            let mut status = status();
            status.policy = policy;
            for container in &mut status.containers {
                container.state = State::Terminated(code);
            }
            assert_eq!(status.phase(), phase, "{policy:?} {code}");
        }
    }

    #[test]
    fn phases_follow_the_containers() {
        let mut status = status();
        assert_eq!(status.phase(), "Pending");
        for container in &mut status.containers {
            container.state = State::Running(Timestamp::now());
        }
        assert_eq!(status.phase(), "Running");
        status.containers[0].state = State::Terminated(0);
        assert_eq!(status.phase(), "Running");
        status.containers[1].state = State::Terminated(0);
        assert_eq!(status.phase(), "Succeeded");
        status.containers[1].state = State::Terminated(3);
        assert_eq!(status.phase(), "Failed");
    }

    #[test]
    fn the_pod_is_ready_with_its_last_container_and_other_conditions_stay() {
        let pod: Pod = serde_json::from_value(json!({"status": {"conditions": [
            {"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"},
        ]}}))
        .unwrap();
        let mut status = status();
        status.addresses = vec!["10.0.0.5".parse().unwrap()];
        for container in &mut status.containers {
            container.state = State::Running(Timestamp::now());
        }
        let ready = |status: &mut PodStatus| {
            let patch = status.patch(&pod);
            let conditions = patch["status"]["conditions"].as_array().unwrap().clone();
            assert_eq!(conditions.len(), 4, "{conditions:?}");
            let ready = conditions
                .into_iter()
                .find(|condition| condition["type"] == "Ready");
            ready.unwrap()["status"].clone()
        };
        status.containers[0].ready = true;
        assert_eq!(ready(&mut status), "False");
        status.containers[1].ready = true;
        assert_eq!(ready(&mut status), "True");
        assert_eq!(status.patch(&pod)["status"]["podIP"], "10.0.0.5");
    }

    #[test]
    fn why_nothing_runs_is_told() {
        let mut status = status();
        status.wait_for("ContainerCreating", "no network");
        let text = status.patch(&Pod::default()).to_string();
        assert!(text.contains("[a b]: no network"), "{text}");
    }
}
