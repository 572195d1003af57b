//! The tasks of one pool: counted, cancelled together, and watched for panics.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::stats::Stats;

#[derive(Debug)]
pub(crate) struct Tasks {
    runtime: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
    stats: Arc<Stats>,
}

impl Tasks {
    pub(crate) fn new(runtime: Handle, stats: Arc<Stats>) -> Self {
        Self { runtime, tracker: TaskTracker::new(), stop: CancellationToken::new(), stats }
    }

    /// Runs `task` until it ends or all tasks are stopped. What it must leave in order, it leaves
    /// to destructors: they run however it ends.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let watch = PanicWatch(self.stats.clone());
        // Every future around it would hold it twice, once as what it was given and once as what it
        // waits for: three times its size for as long as it runs.
        let task = Box::pin(task);
        let task = async move {
            let _watch = watch;
            stop.run_until_cancelled(task).await;
        };
        self.tracker.spawn_on(task, &self.runtime);
    }

    /// Runs `task` until it ends, which it does when what it waits for of the other tasks is over:
    /// it is counted, but not stopped.
    pub(crate) fn attend(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.runtime);
    }

    /// Runs `task` uncounted: it may wait for all the others.
    pub(crate) fn detach(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Counts as a task: one that is about to be spawned.
    pub(crate) fn token(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    pub(crate) fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Resolves when the last task has ended.
    pub(crate) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Ends all tasks where they stand.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

/// Counts the panic that it is dropped by; tokio keeps the panic from spreading.
struct PanicWatch(Arc<Stats>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panics.add(1);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tokio's test macro blocks, on a thread of the test")]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn the_end_comes_after_those_who_pass_on_what_the_others_have_done() {
        let tasks = Tasks::new(Handle::current(), Arc::new(Stats::default()));
        let (answer, answered) = oneshot::channel::<()>();
        tasks.spawn(async move {
            let _answer = answer;
            std::future::pending::<()>().await;
        });
        let (passed_on, mut passed) = oneshot::channel();
        tasks.attend(async move {
            // Unanswered: the other one was stopped.
            passed_on.send(answered.await.is_err()).ok();
        });
        assert_eq!(tasks.ended().now_or_never(), None);
        tasks.stop();
        tasks.ended().await;
        assert_eq!(passed.try_recv(), Ok(true));
    }
}
