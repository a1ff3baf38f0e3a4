//! What a model has done since it was put to work: how many requests, rows and runs, and where their time went.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

/// How often something was done, and the time that it took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often.
    pub count: u64,
    /// The time of all together.
    pub time: Duration,
}

impl Tally {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.time += time;
    }
}

/// Where the time of one run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Filling the input.
    pub input: Duration,
    /// Computing.
    pub network: Duration,
    /// Taking the answers apart.
    pub output: Duration,
}

impl Spent {
    /// The time of the whole run.
    pub fn total(&self) -> Duration {
        self.input + self.network + self.output
    }
}

/// Where the time of all runs of some kind went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Filling the input.
    pub input: Tally,
    /// Computing.
    pub network: Tally,
    /// Taking the answers apart.
    pub output: Tally,
}

impl Runs {
    fn add(&mut self, spent: Spent) {
        self.input.add(spent.input);
        self.network.add(spent.network);
        self.output.add(spent.output);
    }
}

/// Everything that a model has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// When it was asked last.
    pub last: Option<SystemTime>,
    /// Requests that were answered. A request has any number of rows: faces, or pictures for a detector.
    pub answered: Tally,
    /// Requests that failed.
    pub failed: Tally,
    /// Time in the queue of the answered requests: of each, that of its row that was answered last.
    pub queue: Tally,
    /// The run of each answered request, of its row that was answered last.
    pub requests: Runs,
    /// Rows that were computed.
    pub rows: u64,
    /// Runs that succeeded.
    pub runs: u64,
    /// The runs that succeeded, by the number of their rows.
    pub batches: BTreeMap<usize, Runs>,
}

/// Counts what a model does.
#[derive(Default)]
pub struct Statistics(Mutex<Totals>);

impl Statistics {
    /// A request was answered after `total`, of which its last row waited for `queue` and ran for `spent`.
    pub fn answered(&self, total: Duration, queue: Duration, spent: Spent) {
        let mut totals = self.0.lock();
        totals.last = Some(SystemTime::now());
        totals.answered.add(total);
        totals.queue.add(queue);
        totals.requests.add(spent);
    }

    /// A request failed after `total`.
    pub fn failed(&self, total: Duration) {
        let mut totals = self.0.lock();
        totals.last = Some(SystemTime::now());
        totals.failed.add(total);
    }

    /// A run of so many rows succeeded.
    pub fn ran(&self, rows: usize, spent: Spent) {
        let mut totals = self.0.lock();
        totals.rows += rows as u64;
        totals.runs += 1;
        // As many sizes as a run may have: the map stays small.
        totals.batches.entry(rows).or_default().add(spent);
    }

    /// What was counted so far.
    pub fn totals(&self) -> Totals {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn requests_and_runs_are_counted_apart() {
        let statistics = Statistics::default();
        assert_eq!(statistics.totals(), Totals::default());
        let spent = Spent { input: MS, network: 5 * MS, output: 2 * MS };
        statistics.ran(4, spent);
        statistics.ran(4, spent);
        statistics.ran(1, spent);
        statistics.answered(20 * MS, 3 * MS, spent);
        statistics.failed(7 * MS);
        let totals = statistics.totals();
        assert_eq!((totals.rows, totals.runs), (9, 3));
        assert_eq!(totals.answered, Tally { count: 1, time: 20 * MS });
        assert_eq!(totals.failed, Tally { count: 1, time: 7 * MS });
        assert_eq!(totals.queue, Tally { count: 1, time: 3 * MS });
        assert_eq!(totals.requests.output, Tally { count: 1, time: 2 * MS });
        assert_eq!(totals.batches[&4].network, Tally { count: 2, time: 10 * MS });
        assert_eq!(totals.batches[&1].input, Tally { count: 1, time: MS });
        assert!(totals.last.is_some());
    }
}
