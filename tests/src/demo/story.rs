//! What is shown, in its order. Each step is also a check.

use std::time::Instant;

use anyhow::Result;

use super::app::{APPLICATION, Application, Manifest, POLICIES};
use super::balance::Balance;
use super::drops::Drops;
use super::inside;
use super::matrix::{Matrix, Walls};
use super::outage::Traffic;
use super::terminal::Terminal;
use crate::interrupt::Interrupt;
use crate::playground::Playground;

/// A story being told.
pub struct Story<'a> {
    playground: &'a mut Playground,
    interrupt: &'a Interrupt,
    terminal: Terminal,
    failures: usize,
}

impl<'a> Story<'a> {
    /// Tells all of it, and returns how many checks failed.
    ///
    /// # Errors
    ///
    /// When it cannot go on.
    pub fn tell(
        playground: &'a mut Playground,
        interrupt: &'a Interrupt,
        terminal: Terminal,
    ) -> Result<usize> {
        let mut story = Story {
            playground,
            interrupt,
            terminal,
            failures: 0,
        };
        let application = story.deploy()?;
        story.before(&application)?;
        story.balance(&application)?;
        story.after(&application)?;
        story.drops(&application)?;
        story.outage(&application)?;
        story.inside();
        Ok(story.failures)
    }

    fn deploy(&mut self) -> Result<Application> {
        self.terminal.heading("A shop on two nodes");
        for manifest in APPLICATION {
            self.apply(manifest)?;
        }
        let started = Instant::now();
        let application = Application::wait_ready(self.playground, self.interrupt)?;
        let seconds = started.elapsed().as_secs_f32();
        let count = application.pods.len();
        self.check(
            true,
            &format!("{count} pods are ready after {seconds:.1} s"),
        );
        for node in self.playground.nodes() {
            let pods = application.pods.iter().filter(|pod| pod.node == node.name);
            let pods: Vec<_> = pods
                .map(|pod| format!("{} {}", pod.name, pod.address))
                .collect();
            for (index, pods) in pods.chunks(2).enumerate() {
                let name = if index == 0 { node.name.as_str() } else { "" };
                self.terminal
                    .note(&format!("{name:<6} {}", pods.join(", ")));
            }
        }
        Ok(application)
    }

    fn before(&mut self, application: &Application) -> Result<()> {
        self.terminal.heading("Who reaches whom, without policies");
        self.matrix(application, Walls::Absent)
    }

    fn balance(&mut self, application: &Application) -> Result<()> {
        self.terminal
            .heading("A service spreads its connections: shop/api by its ClusterIP");
        self.interrupt.check()?;
        let balance = Balance::measure(self.playground, application)?;
        print!("{}", balance.render(self.terminal));
        let text = format!("{} connections, every pod got some", balance.connections());
        self.check(balance.all_hit(), &text);
        Ok(())
    }

    fn after(&mut self, application: &Application) -> Result<()> {
        self.terminal.heading("Who reaches whom, with policies");
        self.apply(POLICIES)?;
        self.matrix(application, Walls::Present)?;
        // Probes come from the node, which no policy stops.
        Application::wait_ready(self.playground, self.interrupt)?;
        self.check(true, "every pod is still ready: its node's probes pass");
        Ok(())
    }

    fn drops(&mut self, application: &Application) -> Result<()> {
        self.terminal
            .heading("What was dropped, and by whose order: weft-agent drops");
        let drops = Drops::wait(self.playground, application, self.interrupt)?;
        print!("{}", drops.render(self.terminal));
        let text = format!("the datapath's counters: {}", drops.summary());
        self.check(drops.by_policy() > 0, &text);
        Ok(())
    }

    fn outage(&mut self, application: &Application) -> Result<()> {
        self.terminal
            .heading("kill -9 of both agents, with traffic on its way");
        let names: Vec<String> = self
            .playground
            .nodes()
            .iter()
            .map(|node| node.name.clone())
            .collect();
        let traffic = Traffic::start(self.playground, application)?;
        self.terminal
            .say("numbered messages run over TCP and UDP between pods, through services");
        for name in &names {
            self.playground.kill_agent(name)?;
        }
        self.terminal
            .say(&format!("killed: the agents of {}", names.join(" and ")));
        let matrix = Matrix::measure(self.playground, application, Walls::Present, self.interrupt)?;
        let text = format!(
            "without any agent, {} new connections went as the policies say",
            matrix.attempts()
        );
        self.check_matrix(&matrix, &text);
        let started = Instant::now();
        for name in &names {
            self.playground.start_agent(name)?;
        }
        for name in &names {
            self.interrupt.check()?;
            self.playground.wait_agent_ready(name)?;
        }
        let seconds = started.elapsed().as_secs_f32();
        let text = format!("started again, and ready after {seconds:.1} s, under traffic");
        self.check(traffic.is_running(), &text);
        let outcome = traffic.finish()?;
        self.interrupt.check()?;
        print!("{}", outcome.render(self.terminal));
        self.check(outcome.clean(), "every message was answered once");
        let matrix = Matrix::measure(self.playground, application, Walls::Present, self.interrupt)?;
        self.check_matrix(&matrix, "the new agents enforce the same");
        Ok(())
    }

    fn inside(&mut self) {
        self.terminal.heading("Looking inside");
        let shown = match self.playground.nodes().first() {
            Some(node) => inside::show(self.terminal, node),
            None => Ok(()),
        };
        if let Err(error) = shown {
            self.check(false, &format!("{error:#}"));
        }
    }

    fn apply(&mut self, manifest: Manifest) -> Result<()> {
        self.interrupt.check()?;
        self.terminal.say(&format!(
            "$ kubectl apply --server-side -f {}",
            manifest.path
        ));
        self.playground.apply(manifest.yaml)
    }

    fn matrix(&mut self, application: &Application, walls: Walls) -> Result<()> {
        let matrix = Matrix::measure(self.playground, application, walls, self.interrupt)?;
        print!("{}", matrix.render(self.terminal));
        let text = format!(
            "{} cells as expected, {} connections between all their pods on both nodes",
            matrix.cells() - matrix.wrong(),
            matrix.attempts()
        );
        self.check_matrix(&matrix, &text);
        Ok(())
    }

    fn check_matrix(&mut self, matrix: &Matrix, text: &str) {
        match matrix.wrong() {
            0 => self.check(true, text),
            wrong => {
                let text = format!("{wrong} of {} cells are not as expected", matrix.cells());
                self.check(false, &text);
            }
        }
    }

    fn check(&mut self, passed: bool, text: &str) {
        self.terminal.check(passed, text);
        self.failures += usize::from(!passed);
    }
}
