//! GC beside ADDs, by a runtime that does not keep its promise to run it alone.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use weft_tests::playground::cni::Attachment;
use weft_tests::playground::families::Families;
use weft_tests::playground::{PATIENCE, Playground, wait};

use crate::runtime::{Node, Sandbox};

/// Pods that come and go at once.
const WORKERS: usize = 6;
/// How often each comes and goes.
const ROUNDS: usize = 12;

#[test]
fn a_collection_takes_nothing_that_was_added_after_its_list_was_made() {
    let plan = Playground::builder().name("gcstorm");
    let playground = plan.families(Families::Dual).start().unwrap();
    let node = Node::of(&playground);
    let sandboxes: Vec<Sandbox> = (0..WORKERS)
        .map(|n| Sandbox::new(&playground, &format!("gc{n}")))
        .collect();
    // What the runtime knows: what it has the result of.
    let known = Mutex::new(BTreeMap::<String, Attachment>::new());
    let (collections, working) = (AtomicUsize::new(0), AtomicUsize::new(WORKERS));
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for sandbox in &sandboxes {
            let (node, known, failures) = (&node, &known, &failures);
            let (collections, working) = (&collections, &working);
            scope.spawn(move || {
                let rounds = (0..ROUNDS).try_for_each(|_| {
                    let attachment = &sandbox.attachment;
                    let result = node.add(sandbox)?;
                    known
                        .lock()
                        .unwrap()
                        .insert(attachment.container_id.clone(), attachment.clone());
                    // The list of the collection that runs was made before, that of the next one
                    // perhaps: after those it still has to be whole.
                    let before = collections.load(Ordering::Relaxed);
                    wait("collections", PATIENCE, || {
                        anyhow::ensure!(collections.load(Ordering::Relaxed) >= before + 2);
                        Ok(())
                    })?;
                    node.check(sandbox, &result)?;
                    known.lock().unwrap().remove(&attachment.container_id);
                    node.del(sandbox, Some(&result))
                });
                if let Err(error) = rounds {
                    failures.lock().unwrap().push(format!("{error:#}"));
                }
                working.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while working.load(Ordering::Relaxed) > 0 {
            let list: Vec<Attachment> = known.lock().unwrap().values().cloned().collect();
            let done = node.runtime.gc(node.netns(), &node.network, Some(&list));
            if let Err(error) = done {
                failures.lock().unwrap().push(format!("GC: {error:#}"));
            }
            collections.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!(failures.into_inner().unwrap(), Vec::<String>::new());
    println!("{} collections", collections.load(Ordering::Relaxed));
    node.assert_no_pods();
}
