//! One pod's life on its node: sandbox, containers, reports, end.

use std::collections::hash_map::RandomState;
use std::future::pending;
use std::hash::{BuildHasher as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::probe::Check;
use super::status::{PodStatus, RestartPolicy, State};
use super::{Host, Sandbox, Wanted, blocking, capabilities, container, status};
use crate::netns::{self, Netns};
use crate::playground::{cgroup, cleanup, cni, network};

/// The longest a pod may take to end, whatever grace it asks for: more than tests need, and little
/// enough for a program that hangs not to hang the test.
const MAX_GRACE: Duration = Duration::from_secs(60);

/// The pause before a container is started again: at first, and at most.
const RESTART: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The pause after a failed sandbox, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Attempts to report to an API server that does not answer.
const REPORT_ATTEMPTS: u32 = 20;

/// A sandbox, and what is needed to take it down.
struct Attached {
    sandbox: Arc<Sandbox>,
    /// None for host-network pods.
    network: Option<(cni::Network, cni::Attachment, Value)>,
}

/// Runs a pod until its object is gone or its kubelet is.
pub async fn run(client: Client, host: Arc<Host>, pod: Pod, wanted: watch::Receiver<Wanted>) {
    let containers = pod
        .spec
        .as_ref()
        .map(|spec| spec.containers.clone())
        .unwrap_or_default();
    let worker = Worker {
        api: Api::namespaced(client, &pod.namespace().unwrap_or_default()),
        status: PodStatus::new(host.addresses.all(), &containers, RestartPolicy::of(&pod)),
        containers,
        host,
        pod,
        shut: Vec::new(),
        wanted,
    };
    worker.run().await;
}

/// What happened to a container, by its index.
enum Happened {
    /// Its readiness is another.
    Probed(usize, bool),
    /// It ended with this code.
    Ended(usize, i32),
    /// The pause before its next start is over.
    Rested(usize),
}

/// The processes of a pod, and who looks after them.
struct Crew {
    pids: Vec<Option<u32>>,
    probes: Vec<Option<AbortOnDropHandle<()>>>,
    ready: mpsc::UnboundedSender<(usize, bool)>,
    readiness: mpsc::UnboundedReceiver<(usize, bool)>,
    exits: JoinSet<(usize, i32)>,
    rests: JoinSet<usize>,
}

impl Crew {
    fn new(containers: usize) -> Self {
        let (ready, readiness) = mpsc::unbounded_channel();
        Crew {
            pids: vec![None; containers],
            probes: (0..containers).map(|_| None).collect(),
            ready,
            readiness,
            exits: JoinSet::new(),
            rests: JoinSet::new(),
        }
    }

    fn add(&mut self, index: usize, mut child: Child, check: Option<Check>, host: &Arc<Netns>) {
        self.pids[index] = child.id();
        self.probes[index] = check.map(|check| {
            let probing = check.run(Arc::clone(host), index, self.ready.clone());
            AbortOnDropHandle::new(tokio::spawn(probing))
        });
        self.exits.spawn(async move {
            let code = child.wait().await.ok().and_then(|status| status.code());
            (index, code.unwrap_or(137))
        });
    }

    /// Waits for the next event; for ever when there cannot be one. Can be cancelled.
    async fn next(&mut self) -> Happened {
        tokio::select! {
            Some((index, ready)) = self.readiness.recv() => Happened::Probed(index, ready),
            Some(Ok((index, code))) = self.exits.join_next() => {
                self.pids[index] = None;
                Happened::Ended(index, code)
            }
            Some(Ok(index)) = self.rests.join_next() => Happened::Rested(index),
        }
    }

    fn stop_probing(&mut self, index: usize) {
        self.probes[index] = None;
    }

    fn rest(&mut self, index: usize, restarts: u32) {
        let pause = RESTART.0 * 2u32.saturating_pow(restarts.min(8));
        self.rests.spawn(async move {
            sleep(pause.min(RESTART.1)).await;
            index
        });
    }

    fn is_running(&self) -> bool {
        !self.exits.is_empty()
    }

    fn terminate(&self) {
        for pid in self.pids.iter().flatten() {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
        }
    }
}

struct Worker {
    api: Api<Pod>,
    host: Arc<Host>,
    pod: Pod,
    containers: Vec<Container>,
    status: PodStatus,
    /// The gates that were shut in the last report.
    shut: Vec<String>,
    wanted: watch::Receiver<Wanted>,
}

impl Worker {
    async fn run(mut self) {
        // A pod that ended before this kubelet began stays as it is until it is deleted.
        let phase = self
            .pod
            .status
            .as_ref()
            .and_then(|status| status.phase.clone());
        if matches!(phase.as_deref(), Some("Succeeded" | "Failed")) {
            self.deleted().await;
            self.finish().await;
            return;
        }
        if let Some(attached) = self.attach().await {
            let (namespace, name) = self.key();
            self.host
                .sandboxes
                .insert(&namespace, &name, Arc::clone(&attached.sandbox));
            self.live(&attached).await;
            self.host
                .sandboxes
                .remove(&namespace, &name, &attached.sandbox);
            self.detach(attached).await;
            // A completed pod's object stays, with its addresses, which may soon be another's.
            self.deleted().await;
        }
        self.finish().await;
    }

    fn key(&self) -> (String, String) {
        (
            self.pod.namespace().unwrap_or_default(),
            self.pod.name_any(),
        )
    }

    /// Whether the pod should go.
    fn is_deleted(&self) -> bool {
        match &*self.wanted.borrow() {
            Wanted::Absent => true,
            Wanted::Present(pod) => pod.metadata.deletion_timestamp.is_some(),
        }
    }

    /// Waits until the pod should go.
    async fn deleted(&mut self) {
        while !self.is_deleted() {
            if self.wanted.changed().await.is_err() {
                // The kubelet ends, and this task with it.
                pending::<()>().await;
            }
        }
    }

    /// Makes the sandbox, however often it takes; `None` when the pod was deleted before.
    async fn attach(&mut self) -> Option<Attached> {
        let mut pause = RETRY.0;
        while !self.is_deleted() {
            let (host, pod) = (Arc::clone(&self.host), self.pod.clone());
            let error = match blocking(move || sandbox(&host, &pod)).await {
                Ok(attached) => {
                    self.status
                        .container_id
                        .clone_from(&attached.sandbox.container_id);
                    self.status
                        .addresses
                        .clone_from(&attached.sandbox.addresses);
                    return Some(attached);
                }
                Err(error) => format!("{error:#}"),
            };
            tracing::debug!(
                node = self.host.node,
                pod = self.pod.name_any(),
                error,
                "no sandbox"
            );
            self.status.wait_for("ContainerCreating", &error);
            self.report().await;
            self.event("FailedCreatePodSandBox", &error).await;
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(RETRY.1),
                () = self.deleted() => {}
            }
        }
        None
    }

    /// Starts the containers, reports what becomes of them, and stops them when the pod should go.
    /// Ends by itself when the pod is complete.
    async fn live(&mut self, attached: &Attached) {
        let mut crew = Crew::new(self.containers.len());
        for index in 0..self.containers.len() {
            self.start(index, attached, &mut crew).await;
        }
        self.report().await;
        while !self.is_deleted() {
            let reported = tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        // The kubelet ends, and this task with it.
                        pending::<()>().await;
                    }
                    self.is_news()
                }
                event = crew.next() => self.handle(event, attached, &mut crew).await,
            };
            if reported {
                self.report().await;
            }
            if self.is_complete() {
                break;
            }
        }
        self.end(&mut crew).await;
    }

    /// Takes note of what happened; whether it is to be reported.
    async fn handle(&mut self, event: Happened, attached: &Attached, crew: &mut Crew) -> bool {
        match event {
            Happened::Probed(index, ready) => self.status.containers[index].ready = ready,
            Happened::Ended(index, code) => {
                crew.stop_probing(index);
                self.status.containers[index].ready = false;
                self.status.containers[index].state = State::Terminated(code);
                if RestartPolicy::of(&self.pod).restarts(code) {
                    crew.rest(index, self.status.containers[index].restarts);
                }
            }
            Happened::Rested(index) => {
                self.status.containers[index].restarts += 1;
                self.start(index, attached, crew).await;
            }
        }
        true
    }

    /// Lets the containers end, and kills them when they take too long. They serve and are probed
    /// meanwhile: first while the pod's `preStop` sleeps, then as long as they linger.
    async fn end(&mut self, crew: &mut Crew) {
        let began = Instant::now();
        let deadline = |worker: &Worker| began + worker.grace();
        let hook = self.containers.iter().filter_map(|container| {
            let hook = container.lifecycle.as_ref()?.pre_stop.as_ref()?;
            u64::try_from(hook.sleep.as_ref()?.seconds).ok()
        });
        let mut quiet = Some(began + Duration::from_secs(hook.max().unwrap_or(0)));
        while crew.is_running() {
            let end = deadline(self);
            let next = quiet.map_or(end, |quiet| quiet.min(end));
            tokio::select! {
                () = sleep_until(next) => {
                    if quiet.take().is_none() || next == end {
                        // What is left is killed with the cgroup.
                        break;
                    }
                    crew.terminate();
                }
                // The grace may become shorter.
                Ok(()) = self.wanted.changed() => {}
                event = crew.next() => match event {
                    Happened::Probed(index, ready) => {
                        self.status.containers[index].ready = ready;
                        self.report().await;
                    }
                    Happened::Ended(index, code) => {
                        crew.stop_probing(index);
                        self.status.containers[index].ready = false;
                        self.status.containers[index].state = State::Terminated(code);
                    }
                    Happened::Rested(_) => {}
                },
            }
        }
    }

    /// Whether the object says something else of the pod's readiness than the last report.
    fn is_news(&mut self) -> bool {
        let wanted = self.wanted.borrow();
        let Wanted::Present(pod) = &*wanted else {
            return false;
        };
        let is_news = status::shut_gates(pod) != self.shut;
        self.pod.status.clone_from(&pod.status);
        is_news
    }

    /// Whether the pod has ended for good: nothing of it is started again.
    fn is_complete(&self) -> bool {
        matches!(self.status.phase(), "Succeeded" | "Failed")
    }

    async fn start(&mut self, index: usize, attached: &Attached, crew: &mut Crew) {
        let started = (|| {
            let container = &self.containers[index];
            let check = Check::of(container, attached.sandbox.address)?;
            let child = container::start(&self.host, &self.pod, container, &attached.sandbox)?;
            anyhow::Ok((child, check))
        })();
        let status = &mut self.status.containers[index];
        match started {
            Ok((child, check)) => {
                status.ready = check.is_none();
                status.state = State::Running(Timestamp::now());
                crew.add(index, child, check, &self.host.netns);
            }
            Err(error) => {
                let error = format!("{error:#}");
                status.state = State::Waiting("CreateContainerError", error.clone());
                self.event("Failed", &error).await;
            }
        }
    }

    fn grace(&self) -> Duration {
        let seconds = match &*self.wanted.borrow() {
            Wanted::Present(pod) => pod.metadata.deletion_grace_period_seconds,
            Wanted::Absent => Some(0),
        };
        let seconds = seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .unwrap_or(0);
        // Grace 0 still lets a process end by itself, as a kubelet does.
        Duration::from_secs(seconds.max(1)).min(MAX_GRACE)
    }

    /// Takes the sandbox down, however often it takes.
    async fn detach(&mut self, attached: Attached) {
        let attached = Arc::new(attached);
        let mut pause = RETRY.0;
        loop {
            let (host, current) = (Arc::clone(&self.host), Arc::clone(&attached));
            let Err(error) = blocking(move || take_down(&host, &current)).await else {
                return;
            };
            self.event("FailedKillPod", &format!("{error:#}")).await;
            sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }

    /// Tells the API server that nothing of the pod is left.
    async fn finish(&mut self) {
        if matches!(&*self.wanted.borrow(), Wanted::Absent) {
            return;
        }
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: self.pod.uid(),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        let name = self.pod.name_any();
        for _ in 0..REPORT_ATTEMPTS {
            match self.api.delete(&name, &parameters).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => tracing::debug!(pod = name, "deleting: {error}"),
            }
            sleep(RETRY.0).await;
        }
    }

    async fn report(&mut self) {
        let shut = status::shut_gates(&self.pod).into_iter();
        self.shut = shut.map(str::to_owned).collect();
        let patch = Patch::Strategic(self.status.patch(&self.pod));
        let name = self.pod.name_any();
        for _ in 0..REPORT_ATTEMPTS {
            match self
                .api
                .patch_status(&name, &PatchParams::default(), &patch)
                .await
            {
                Ok(pod) => {
                    // For the gates that others open.
                    self.pod.status = pod.status;
                    return;
                }
                Err(kube::Error::Api(status)) if status.code == 404 => return,
                Err(error) => tracing::debug!(pod = name, "reporting: {error}"),
            }
            sleep(RETRY.0).await;
        }
    }

    /// Records an event for people; losing one is harmless.
    async fn event(&self, reason: &str, message: &str) {
        let (namespace, name) = self.key();
        let now = Timestamp::now();
        let event = serde_json::from_value(json!({
            "metadata": { "generateName": format!("{name}."), "namespace": namespace },
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod",
                "namespace": namespace, "name": name, "uid": self.pod.uid(),
            },
            "type": "Warning", "reason": reason, "message": message, "count": 1,
            "firstTimestamp": now.to_string(), "lastTimestamp": now.to_string(),
            "source": { "component": "kubelet", "host": self.host.node },
        }));
        let Ok(event) = event else { return };
        let events: Api<k8s_openapi::api::core::v1::Event> =
            Api::namespaced(self.api.clone().into_client(), &namespace);
        if let Err(error) = events.create(&PostParams::default(), &event).await {
            tracing::debug!(pod = name, reason, "recording an event: {error}");
        }
    }
}

/// Makes namespace, cgroup and network of a pod; leaves nothing after a failure.
fn sandbox(host: &Host, pod: &Pod) -> Result<Attached> {
    let container_id = random_id();
    let cgroup = host.cgroup.join(&container_id[..12]);
    let spec = pod.spec.as_ref().context("the pod has no spec")?;
    if spec.init_containers.iter().flatten().next().is_some() {
        bail!("the playground does not run init containers");
    }
    if spec.host_network == Some(true) {
        cgroup::create(&cgroup)?;
        let addresses = host.addresses.all();
        let sandbox = Arc::new(Sandbox {
            container_id,
            netns: Arc::clone(&host.netns),
            cgroup,
            address: host.addresses.first(),
            addresses,
        });
        return Ok(Attached {
            sandbox,
            network: None,
        });
    }

    let network = host
        .cni
        .network()?
        .with_context(|| cni::no_network(&host.cni.conf_dir))?;
    let name = cleanup::netns_name(
        &host.playground,
        &format!("{}-{}", host.node, &container_id[..12]),
    );
    let capabilities = capabilities::of(pod)?;
    let netns = Netns::create(&name).with_context(|| format!("making the namespace {name}"))?;
    let attachment = cni::Attachment {
        container_id: container_id.clone(),
        netns: netns.path(),
        ifname: "eth0".to_owned(),
        args: cni::kubernetes_args(
            &pod.namespace().unwrap_or_default(),
            &pod.name_any(),
            &pod.uid().unwrap_or_default(),
            &container_id,
        ),
        capabilities,
    };
    let added = network::prepare_pod(&netns)
        .and_then(|()| cgroup::create(&cgroup))
        .and_then(|()| host.cni.add(&host.netns, &network, &attachment))
        .and_then(|result| {
            let addresses: Vec<IpAddr> = network
                .result(&result)?
                .ips
                .iter()
                .map(|ip| ip.address.addr())
                .collect();
            let address = *addresses
                .first()
                .context("the result of ADD has no address")?;
            Ok((result, addresses, address))
        });
    match added {
        Ok((result, addresses, address)) => {
            let netns = Arc::new(netns);
            let sandbox = Arc::new(Sandbox {
                container_id,
                netns,
                cgroup,
                address,
                addresses,
            });
            Ok(Attached {
                sandbox,
                network: Some((network, attachment, result)),
            })
        }
        Err(error) => {
            // A failed ADD is followed by DEL; the error that counts is ADD's.
            let _ = host.cni.del(&host.netns, &network, &attachment, None);
            let _ = cgroup::remove(&cgroup);
            let _ = netns.delete();
            Err(error)
        }
    }
}

fn take_down(host: &Host, attached: &Attached) -> Result<()> {
    cgroup::remove(&attached.sandbox.cgroup)?;
    if let Some((network, attachment, result)) = &attached.network {
        host.cni
            .del(&host.netns, network, attachment, Some(result))?;
        netns::delete(attached.sandbox.netns.name())?;
    }
    Ok(())
}

/// 64 hexadecimal digits, as runtimes name their sandboxes.
fn random_id() -> String {
    // Each state has keys of its own, from the system's source of randomness at first.
    (0..4)
        .map(|_| format!("{:016x}", RandomState::new().build_hasher().finish()))
        .collect()
}
