//! Machines that are no nodes: the world outside, and the one in the second network.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};

use super::exec::Background;
use super::families::{
    Family, OUTSIDE, OUTSIDE_ADDRESSES, ROUTER, SECOND, SECOND_MACHINE, TRANSIT, TRANSIT_ROUTER,
};
use super::process::{self, Limit};
use super::{NODES, Playground, cgroup, cleanup, network};
use crate::netns::{self, Netns};

/// What there is besides the nodes.
pub(super) struct World {
    router: Netns,
    outside: Netns,
    second: Option<Netns>,
    /// What runs there.
    cgroup: PathBuf,
}

impl World {
    pub(super) fn make(
        id: &str,
        fabric: &Netns,
        make: impl Fn(&str) -> Result<Netns>,
        with_second: bool,
    ) -> Result<Self> {
        let (router, outside) = (make("router")?, make("outside")?);
        network::make_outside(fabric, &router, &outside)?;
        let second = with_second.then(|| make("second")).transpose()?;
        if let Some(machine) = &second {
            network::make_second(fabric, machine)?;
        }
        for machine in [&outside].into_iter().chain(&second) {
            machine.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        }
        let cgroup = cleanup::cgroup_dir(id)?.join("world");
        cgroup::create(&cgroup)?;
        Ok(World {
            router,
            outside,
            second,
            cgroup,
        })
    }
}

/// A machine that is no node, and knows nothing of pods.
pub struct Machine<'a> {
    playground: &'a Playground,
    netns: &'a Netns,
    cgroup: &'a PathBuf,
    addresses: Vec<IpAddr>,
}

impl Machine<'_> {
    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        self.netns
    }

    /// Its addresses of a family; the outside has four.
    pub fn addresses(&self, family: Family) -> Vec<IpAddr> {
        let all = self.addresses.iter().copied();
        all.filter(|ip| Family::of(*ip) == family).collect()
    }

    /// Its first address of a family.
    pub fn address(&self, family: Family) -> IpAddr {
        self.addresses(family)[0]
    }

    /// Runs `weft-testpod` there and waits for its end.
    ///
    /// # Errors
    ///
    /// When the program does not end. How it ended is no error here.
    pub fn exec(&self, args: &[&str]) -> Result<Output> {
        process::run(&mut self.command(args)?, b"", Limit::CLIENT)
            .with_context(|| format!("running {args:?} in {}", self.netns.name()))
    }

    /// Starts `weft-testpod` there, and returns once it has printed its first line: `serve` does when
    /// it listens everywhere. A UDP server outside needs `--address` with those of
    /// [`Machine::addresses`] that it is asked at, to answer from them.
    ///
    /// # Errors
    ///
    /// When the program ends before it prints.
    pub fn spawn(&self, args: &[&str]) -> Result<Background> {
        Background::start(self.command(args)?)
            .with_context(|| format!("running {args:?} in {}", self.netns.name()))
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.playground.testpod(args);
        netns::enter(&mut command, self.netns, Some(self.cgroup))?;
        Ok(command)
    }
}

impl Playground {
    /// The world outside: behind the fabric and a router, four addresses of each family. It has
    /// routes to the nodes' network, and none to pods or services.
    pub fn outside(&self) -> Machine<'_> {
        let world = self.world();
        let addresses = Family::BOTH
            .into_iter()
            .flat_map(|family| OUTSIDE_ADDRESSES.map(move |number| OUTSIDE.host(family, number)));
        Machine {
            playground: self,
            netns: &world.outside,
            cgroup: &world.cgroup,
            addresses: addresses.collect(),
        }
    }

    /// The machine in the network of the nodes' second uplinks. It has no routes beyond.
    ///
    /// # Errors
    ///
    /// Unless the playground was built with [`super::Builder::second_uplink`].
    pub fn second_machine(&self) -> Result<Machine<'_>> {
        let world = self.world();
        let netns = world
            .second
            .as_ref()
            .context("there is no second network")?;
        Ok(Machine {
            playground: self,
            netns,
            cgroup: &world.cgroup,
            addresses: Family::BOTH
                .map(|family| SECOND.host(family, SECOND_MACHINE))
                .into(),
        })
    }

    /// The routers on a node's way to the outside, as traceroute shows them, nearest first.
    pub fn routers_to_outside(&self, family: Family) -> [IpAddr; 2] {
        [
            NODES.host(family, ROUTER),
            TRANSIT.host(family, TRANSIT_ROUTER),
        ]
    }

    /// The routers on the way from the outside to a node, as traceroute shows them, nearest first.
    pub fn routers_from_outside(&self, family: Family) -> [IpAddr; 2] {
        [OUTSIDE.host(family, ROUTER), TRANSIT.host(family, ROUTER)]
    }

    /// Tells the outside, and the routers between, the way to an address behind a node of that
    /// address, such as a load balancer's. What they were told before about it, they forget.
    ///
    /// # Errors
    ///
    /// When the addresses are of different families.
    pub fn show_outside(&self, address: IpAddr, node: IpAddr) -> Result<()> {
        let family = Family::of(address);
        let world = self.world();
        for (machine, next) in [
            (&world.outside, OUTSIDE.host(family, ROUTER)),
            (&world.router, TRANSIT.host(family, ROUTER)),
            (&self.plane().fabric, node),
        ] {
            network::set_route(machine, address.into(), next)?;
        }
        Ok(())
    }

    /// Sets the MTU between the fabric and the outside's router, in bytes: what is too big, the
    /// fabric refuses on the way out and the router on the way in. At least 1280 with IPv6.
    ///
    /// # Errors
    ///
    /// When the kernel does not take it.
    pub fn set_outside_mtu(&self, mtu: u32) -> Result<()> {
        network::set_mtu(&self.plane().fabric, network::TRANSIT_LINK, mtu)?;
        network::set_mtu(&self.world().router, network::TRANSIT_LINK, mtu)
    }

    fn world(&self) -> &World {
        self.world
            .as_ref()
            .unwrap_or_else(|| unreachable!("made before the playground is handed out"))
    }
}
