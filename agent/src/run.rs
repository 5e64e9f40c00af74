//! The agent's start, its tasks, and its end.
//!
//! Start, in this order: open the state, load the new programs over the pinned maps, compare what
//! is there with what was written down, watch, and serve CNI. The first complete compilation is
//! applied before the links are swapped ([`crate::reconcile`]) and before the runtime is told that
//! there is a network.
//!
//! The end changes nothing: links, maps, interfaces and routes stay.

use std::fs::{self, File, OpenOptions};
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::fcntl::{Flock, FlockArg};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::bpf::attach::Attacher;
use crate::bpf::events::{self, DropLog};
use crate::bpf::load::{self, Options};
use crate::bpf::tables::Tables;
use crate::cli::RunArgs;
use crate::cni::attachments::Attachments;
use crate::cni::{install, restore, server};
use crate::config::Config;
use crate::endpoints::Endpoints;
use crate::health::{
    self, HealthChecks, ProxyHealth, SystemClock, checks, events as health_events,
};
use crate::ipam::Ipam;
use crate::metrics::{self, Metrics};
use crate::netlink::{Netlink, leftovers};
use crate::node::{NodeOptions, NodeSetup};
use crate::persist;
use crate::reconcile::{Applied, Maps, Reconciler, Shared};
use crate::status;
use crate::watch::Cluster;

/// How long a new agent waits for an old one to end.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer than a watch the API may be silent before its connection counts as dead.
const SILENCE_MARGIN: Duration = Duration::from_secs(15);
/// How long the end waits for CNI requests that are being served.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the agent until it is told to end.
///
/// # Errors
///
/// When it cannot start, or a part that it cannot do without has failed.
pub fn run(args: RunArgs) -> Result<()> {
    start_logging(&args.log, args.trace)?;
    let config = Config::new(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(run_agent(config));
    // A request that hangs in the kernel must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn start_logging(text: &str, trace: bool) -> Result<()> {
    let mut filter = EnvFilter::try_new(text).with_context(|| format!("--log {text:?}"))?;
    if !text.contains("kube_client") {
        // It reports every failed request by itself; the watches tell the same, once.
        filter = filter.add_directive("kube_client=off".parse().context("kube filter")?);
    }
    if trace {
        // The datapath's traces come under the name of its crate.
        filter = filter.add_directive("weft_datapath=trace".parse().context("trace filter")?);
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

async fn run_agent(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    info!(
        node = config.node_name,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );

    persist::open_dir(&config.state_dir).with_context(|| {
        format!(
            "cannot use the state directory {}",
            config.state_dir.display()
        )
    })?;
    fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("cannot make {}", config.run_dir.display()))?;
    let _lock = lock(&config.state_dir.join("lock")).await?;

    for leftover in leftovers::find() {
        warn!("{leftover}");
    }

    let client = connect(&config).await?;
    let mut agent = Agent::start(config, client).await?;
    let result = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        failed = agent.tasks.join_next() => match failed {
            Some(Err(error)) => Err(anyhow::anyhow!("a part of the agent failed: {error}")),
            _ => Err(anyhow::anyhow!("a part of the agent ended")),
        },
    };
    info!("ending; the datapath goes on");
    // Requests that are being served need the other parts: those end last.
    agent.accepting.abort();
    agent.requests.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, agent.requests.wait())
        .await
        .is_err()
    {
        warn!("CNI requests are still being served; their runtime will try again");
    }
    agent.tasks.abort_all();
    result
}

/// One agent per state directory: in a rolling update the new one waits for the old one.
async fn lock(path: &Path) -> Result<Flock<File>> {
    let started = Instant::now();
    let context = || format!("cannot lock {}", path.display());
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(context)?;
    let mut told = false;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => file = back,
            Err((_, error)) => return Err(error).with_context(context),
        }
        if started.elapsed() > TAKEOVER_TIMEOUT {
            bail!(
                "another agent uses {}: end it first, or give another --state-dir",
                path.display()
            );
        }
        if !told {
            info!(lock = %path.display(), fd = ?file.as_fd(), "waiting for another agent to end");
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn connect(config: &Config) -> Result<kube::Client> {
    let mut kube_config = match &config.kubeconfig {
        Some(path) => {
            let context = || format!("--kubeconfig {}", path.display());
            let kubeconfig = Kubeconfig::read_from(path).with_context(context)?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(context)?
        }
        None => kube::Config::incluster()
            .context("no --kubeconfig, and no service account of a pod either")?,
    };
    // A list has no timeout of its own. One that is never answered, or a watch whose peer vanished
    // without a word, would leave the node with what it knew, for ever.
    let silence = Duration::from_secs(config.watch_timeout.into()) + SILENCE_MARGIN;
    kube_config.read_timeout = Some(silence);
    kube_config.reset_reader_on_write = true;
    info!(api = %kube_config.cluster_url, "using the Kubernetes API");
    kube::Client::try_from(kube_config).context("cannot make a client of the Kubernetes API")
}

/// The running agent.
struct Agent {
    tasks: JoinSet<()>,
    accepting: AbortHandle,
    requests: TaskTracker,
}

impl Agent {
    async fn start(config: Config, client: kube::Client) -> Result<Self> {
        let options = Options {
            map_dir: config.map_dir(),
            capacities: config.capacities.clone(),
            trace: config.trace,
        };
        // The verifier takes its time.
        let mut loaded = tokio::task::spawn_blocking(move || load::load(&options))
            .await
            .context("loading the datapath")??;
        let maps = Maps::new(Tables::new(&mut loaded)?)?;
        let events = events::Reader::new(&mut loaded)?;
        let traces = if config.trace {
            Some(events::traces(&mut loaded)?)
        } else {
            None
        };
        let attacher = Attacher::new(loaded, config.link_dir(), config.attach)
            .with_context(|| format!("cannot use {}", config.link_dir().display()))?;

        let endpoints_dir = config.state_dir.join("endpoints");
        let endpoints = Endpoints::open(&endpoints_dir)
            .with_context(|| format!("cannot use {}", endpoints_dir.display()))?;
        let mut ipam = Ipam::open(&config.state_dir.join("ipam"))?;
        restore::restore(&Netlink::host()?, &endpoints, &mut ipam).await?;
        let node = NodeSetup::new(NodeOptions::from(&config))?;

        let cni = server::listen(&config.cni_socket())?;
        let status = server::listen(&config.status_socket())?;
        if let Some((binary, dir)) = &config.install.plugin {
            install::plugin(binary, dir)?;
        }

        let shared = Arc::new(Shared {
            cluster: Cluster::new(&config.node_name),
            endpoints,
            ipam: Mutex::new(ipam),
            attacher: Mutex::new(attacher),
            maps: Mutex::new(maps),
            node: tokio::sync::watch::Sender::new(None),
            applied: tokio::sync::watch::Sender::new(Applied::default()),
            health: Arc::new(ProxyHealth::new(Arc::new(SystemClock), health::TIMEOUT)),
            health_checks: tokio::sync::watch::Sender::new(HealthChecks::default()),
            config,
        });
        let attachments = Arc::new(Attachments::new(shared.clone())?);
        let drops = DropLog::default();

        let mut tasks = JoinSet::new();
        let requests = TaskTracker::new();
        serve_health(&shared, client.clone(), &mut tasks);
        tasks.spawn(watch(shared.clone(), client));
        tasks.spawn(Reconciler::new(shared.clone(), node)?.run());
        tasks.spawn(read_events(events, shared.clone(), drops.clone()));
        if let Some(traces) = traces {
            tasks.spawn(async move {
                if let Err(error) = events::log_traces(traces).await {
                    error!(error = format!("{error:#}"), "debug traces are lost");
                }
                std::future::pending::<()>().await;
            });
        }
        tasks.spawn(status::server::serve(status, shared.clone(), drops));
        tasks.spawn(announce(shared.clone()));
        let (tracker, queue) = (
            requests.clone(),
            weft_cni::queue::Queue::new(shared.config.cni_queue()),
        );
        let accepting = tasks.spawn(async move {
            server::replay(&attachments, &queue).await;
            server::serve(cni, attachments, tracker).await;
        });
        Ok(Self {
            tasks,
            accepting,
            requests,
        })
    }
}

/// Starts what tells load balancers and operators how the proxy is.
fn serve_health(shared: &Arc<Shared>, client: kube::Client, tasks: &mut JoinSet<()>) {
    let servers = &shared.config.servers;
    for address in &servers.healthz_bind_address.0 {
        let probes = health::probes(shared.health.clone());
        tasks.spawn(health::http::keep("health", *address, probes));
    }

    let mut registry = Registry::default();
    shared.health.metrics().register(&mut registry);
    let gathered = shared.clone();
    metrics::node::register(&mut registry, move || {
        metrics::node::Snapshot::of(&gathered)
    });
    let metrics = Metrics::new(registry, metrics::configz::configz(&shared.config));
    let metrics = Arc::new(metrics);
    for address in &servers.metrics_bind_address.0 {
        let metrics = metrics.clone();
        let answer = move |request| metrics.clone().answer(request);
        tasks.spawn(health::http::keep("metrics", *address, answer));
    }

    let (sender, failures) = mpsc::channel(health_events::WAITING);
    let wanted = shared.health_checks.subscribe();
    let servers = checks::Servers::new(shared.health.clone(), sender);
    tasks.spawn(checks::run(wanted, servers));
    let node = shared.config.node_name.as_str().into();
    tasks.spawn(health_events::run(client, node, failures));
}

/// Watches the cluster, and begins anew with other connections when those that there are lead nowhere.
/// Ends only when a watch failed.
async fn watch(shared: Arc<Shared>, mut client: kube::Client) {
    loop {
        let mut watches = JoinSet::new();
        let timeout = shared.config.watch_timeout;
        shared.cluster.start(&client, timeout, &mut watches);
        tokio::select! {
            () = shared.cluster.must_reconnect() => {}
            _ = watches.join_next() => return,
        }
        match connect(&shared.config).await {
            Ok(new) => client = new,
            // The old one's connections end by themselves, if late.
            Err(error) => warn!(error = format!("{error:#}"), "cannot make a new client"),
        }
    }
}

async fn read_events(reader: events::Reader, shared: Arc<Shared>, drops: DropLog) {
    let resolve = |rule: u32| status::report::rule_text(&shared.maps().desired, rule);
    if let Err(error) = reader.run(drops, resolve).await {
        // Drops are still counted.
        error!(error = format!("{error:#}"), "drop events are lost");
    }
    std::future::pending::<()>().await;
}

/// Tells the runtime that there is a network, once there is one.
async fn announce(shared: Arc<Shared>) {
    let mut applied = shared.applied.subscribe();
    // The sender is in `shared`, so the channel cannot be closed.
    let _ = applied.wait_for(|applied| applied.complete).await;
    if let Some(dir) = &shared.config.install.conf_dir
        && let Err(error) = install::conflist(&shared.config, dir)
    {
        error!(
            error = format!("{error:#}"),
            "the container runtime does not learn of Weft; correct this and restart the agent"
        );
    }
    info!("ready");
    std::future::pending::<()>().await;
}
