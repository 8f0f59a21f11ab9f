//! Threads for calls: most calls are short, and some wait for hours. One that is idle takes the next; one that stays
//! idle ends.

use crate::threads;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

const STACK_BYTES: usize = 256 << 10;
const IDLE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
}

#[derive(Clone, Default)]
pub struct Pool(Arc<Shared>);

impl Pool {
    /// Runs `job` soon, beside all others. Errors: no thread can be started.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let mut queue = self.0.queue.lock().unwrap();
        queue.jobs.push_back(Box::new(job));
        if queue.idle >= queue.jobs.len() {
            self.0.more.notify_one();
            return Ok(());
        }
        let shared = self.0.clone();
        let started = threads::start("call", STACK_BYTES, move || work(&shared));
        if started.is_err() {
            queue.jobs.pop_back();
        }
        started
    }
}

fn work(shared: &Shared) {
    let mut queue = shared.queue.lock().unwrap();
    loop {
        while let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = shared.queue.lock().unwrap();
        }
        queue.idle += 1;
        let (back, waited) = shared.more.wait_timeout(queue, IDLE).unwrap();
        queue = back;
        queue.idle -= 1;
        if waited.timed_out() && queue.jobs.is_empty() {
            return;
        }
    }
}
