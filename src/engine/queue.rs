//! The line in front of a network: bounded, first come first served, shared by the workers. What nobody waits for has a lane of
//! its own, from which nothing is taken as long as there is anything in the other.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Whether somebody waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody does.
    Now,
    /// Nobody does: it is done when nothing else is to be done.
    Whenever,
}

/// A bounded queue of items that workers take in batches.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    capacity: usize,
    workers: usize,
}

struct State<T> {
    /// One lane for each urgency.
    lanes: [VecDeque<T>; 2],
    /// What a run has failed with: for workers alone, who know what to do then.
    trouble: VecDeque<T>,
    /// Workers that wait for the first item in [`Queue::wait`].
    idle: usize,
    /// Items that were taken and are not done.
    running: usize,
    last_push: Instant,
    closed: bool,
}

/// How long a worker waits for a batch to become larger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// At most, counted from when it saw the first item.
    pub(super) longest: Duration,
    /// And no longer than this without another item coming.
    pub(super) quiet: Duration,
}

impl Patience {
    /// One item is enough.
    pub(super) const NONE: Self = Self { longest: Duration::ZERO, quiet: Duration::ZERO };

    fn until(self, first_seen: Instant, last_push: Instant) -> Instant {
        (first_seen + self.longest).min(last_push + self.quiet)
    }
}

impl<T> State<T> {
    fn is_empty(&self) -> bool {
        self.trouble.is_empty() && self.lanes.iter().all(VecDeque::is_empty)
    }

    /// Items in the lane that the next ones are taken from.
    fn next(&self) -> usize {
        let lanes = [&self.trouble].into_iter().chain(&self.lanes);
        lanes.map(VecDeque::len).find(|length| *length > 0).unwrap_or_default()
    }
}

/// What each of the workers has if so many that wait, and all that are being worked on, are shared alike: with batches of one size
/// nobody waits for a large one while a small one is done.
const fn share(waiting: usize, running: usize, workers: usize) -> usize {
    (waiting + running).div_ceil(workers)
}

/// Moves up to `most` items that are wanted; unwanted ones are dropped on the way.
fn move_wanted<T>(lane: &mut VecDeque<T>, most: usize, wanted: impl Fn(&T) -> bool, batch: &mut Vec<T>) {
    while batch.len() < most {
        let Some(item) = lane.pop_front() else { break };
        if wanted(&item) {
            batch.push(item);
        }
    }
}

/// Why items were not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// With these, more would wait than may.
    Full,
    /// Nothing is taken in any more.
    Closed,
}

impl<T> Queue<T> {
    /// An empty queue in which at most `capacity` items of each urgency wait for so many workers.
    pub(super) fn new(capacity: usize, workers: usize) -> Self {
        let lanes = [VecDeque::with_capacity(capacity.min(1024)), VecDeque::new()];
        let trouble = VecDeque::new();
        let state = State { lanes, trouble, idle: 0, running: 0, last_push: Instant::now(), closed: false };
        Self { state: Mutex::new(state), arrived: Condvar::new(), capacity, workers: workers.max(1) }
    }

    /// Puts items at the end of their lane, side by side, all of them or none, and wakes a worker.
    ///
    /// # Errors
    /// When the queue is closed, or the lane too full for all of them.
    pub(super) fn push(&self, items: Vec<T>, urgency: Urgency) -> Result<(), Refusal> {
        self.put(items, urgency)?;
        self.arrived.notify_one();
        Ok(())
    }

    /// The same, for a thread that sees to it that they are taken: nobody is woken.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(super) fn put(&self, items: Vec<T>, urgency: Urgency) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        let lane = &mut state.lanes[urgency as usize];
        if lane.len() + items.len() > self.capacity {
            return Err(Refusal::Full);
        }
        lane.extend(items);
        state.last_push = Instant::now();
        Ok(())
    }

    /// Hands items whose run has failed to a worker.
    pub(super) fn put_back(&self, items: Vec<T>) {
        self.state.lock().trouble.extend(items);
        self.arrived.notify_one();
    }

    /// Wakes a worker for what waits, if anything does.
    pub(super) fn wake(&self) {
        if !self.state.lock().is_empty() {
            self.arrived.notify_one();
        }
    }

    /// Waits until there are items; `false` once the queue is closed and everything is taken. For `most` of them, or this worker's
    /// share if that is less, it waits as long as its patience lasts.
    pub(super) fn wait(&self, most: usize, patience: Patience) -> bool {
        let mut state = self.state.lock();
        let mut first_seen = None;
        loop {
            if state.is_empty() {
                if state.closed {
                    return false;
                }
                first_seen = None;
                state.idle += 1;
                self.arrived.wait(&mut state);
                state.idle -= 1;
                continue;
            }
            let until = patience.until(*first_seen.get_or_insert_with(Instant::now), state.last_push);
            let next = state.next();
            if state.closed || next >= most.min(share(next, state.running, self.workers)) || Instant::now() >= until {
                return true;
            }
            self.arrived.wait_until(&mut state, until);
        }
    }

    /// Takes a batch of those that are still `wanted`; unwanted ones are dropped on the way. It is this worker's share, and never
    /// more than `most`; it is empty when others were faster. All are of one urgency: what somebody waits for is not held up by what
    /// is done along with it. Whoever takes says when it is [`Self::done`].
    pub(super) fn take(&self, most: usize, wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut state = self.state.lock();
        let State { lanes: [now, whenever], trouble, idle, running, .. } = &mut *state;
        let mut batch = Vec::new();
        for lane in [trouble, now, whenever] {
            while batch.is_empty() && !lane.is_empty() {
                let share = lane.len().div_ceil(*idle + 1).min(share(lane.len(), *running, self.workers)).min(most);
                move_wanted(lane, share, &wanted, &mut batch);
            }
        }
        *running += batch.len();
        if !state.is_empty() {
            self.arrived.notify_one();
        }
        batch
    }

    /// The same for a thread that is no worker, of what somebody waits for: the share of one of the workers, none of which is woken.
    pub(super) fn take_now(&self, most: usize, wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut state = self.state.lock();
        let State { lanes: [now, _], running, .. } = &mut *state;
        let mut batch = Vec::new();
        while batch.is_empty() && !now.is_empty() {
            let share = share(now.len(), *running, self.workers).min(most);
            move_wanted(now, share, &wanted, &mut batch);
        }
        *running += batch.len();
        batch
    }

    /// A batch of so many items is done.
    pub(super) fn done(&self, count: usize) {
        self.state.lock().running -= count;
    }

    /// Most items that wait.
    pub(super) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Items that wait now.
    pub(super) fn len(&self) -> usize {
        let state = self.state.lock();
        state.trouble.len() + state.lanes.iter().map(VecDeque::len).sum::<usize>()
    }

    /// Items that somebody waits for.
    pub(super) fn urgent(&self) -> usize {
        self.state.lock().lanes[Urgency::Now as usize].len()
    }

    /// What is said of the item that somebody has waited for longest.
    pub(super) fn oldest<R>(&self, say: impl FnOnce(&T) -> R) -> Option<R> {
        let state = self.state.lock();
        state.trouble.front().or_else(|| state.lanes[Urgency::Now as usize].front()).map(say)
    }

    /// Whether nothing is taken in any more.
    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Takes nothing in any more; what waits is still handed out.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const NONE: Patience = Patience::NONE;

    fn at_most(longest: Duration) -> Patience {
        Patience { longest, quiet: longest }
    }

    fn filled(items: std::ops::Range<u32>) -> Queue<u32> {
        let queue = Queue::new(100, 1);
        assert_eq!(queue.push(items.collect(), Urgency::Now), Ok(()));
        queue
    }

    #[test]
    fn batches_are_as_large_as_allowed_and_in_order() {
        let queue = filled(0..5);
        assert_eq!(queue.take(3, |_| true), [0, 1, 2]);
        assert_eq!(queue.take(3, |_| true), [3, 4]);
        assert!(queue.take(3, |_| true).is_empty(), "others were faster");
    }

    #[test]
    fn unwanted_items_take_no_place_in_a_batch() {
        let queue = filled(0..8);
        assert_eq!(queue.take(3, |item| item % 2 == 1), [1, 3, 5]);
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_full_queue_refuses_and_a_closed_one_hands_out_what_it_has() {
        let queue = Queue::new(2, 1);
        assert_eq!(
            (queue.push(vec![1], Urgency::Now), queue.push(vec![2], Urgency::Now), queue.push(vec![3], Urgency::Now)),
            (Ok(()), Ok(()), Err(Refusal::Full))
        );
        queue.close();
        assert_eq!(queue.push(vec![4], Urgency::Now), Err(Refusal::Closed));
        assert!(queue.wait(9, NONE));
        assert_eq!(queue.take(9, |_| true), [1, 2]);
        assert!(!queue.wait(9, NONE));
    }

    #[test]
    fn items_come_in_together_or_not_at_all() {
        let queue = Queue::new(3, 1);
        assert_eq!(
            (queue.push(vec![1, 2], Urgency::Now), queue.push(vec![3, 4], Urgency::Now)),
            (Ok(()), Err(Refusal::Full))
        );
        assert_eq!((queue.push(vec![5], Urgency::Now), queue.push(vec![], Urgency::Now)), (Ok(()), Ok(())));
        assert_eq!(queue.take(9, |_| true), [1, 2, 5]);
    }

    #[test]
    fn what_nobody_waits_for_comes_last_and_alone() {
        let queue = Queue::new(3, 1);
        assert_eq!(queue.push(vec![7, 8, 9], Urgency::Whenever), Ok(()));
        assert_eq!(queue.push(vec![6], Urgency::Whenever), Err(Refusal::Full));
        assert_eq!(queue.push(vec![1, 2], Urgency::Now), Ok(()), "it takes nobody's place");
        assert_eq!(queue.len(), 5);
        assert_eq!(queue.take(9, |_| true), [1, 2]);
        assert_eq!(queue.take(2, |_| true), [7, 8]);
        assert_eq!(queue.push(vec![3], Urgency::Now), Ok(()));
        assert_eq!(queue.take(9, |item| *item != 3), [9], "nobody waits for 3 any more");
    }

    #[test]
    fn who_is_no_worker_takes_a_workers_share_of_what_somebody_waits_for() {
        let queue = Queue::new(9, 2);
        assert_eq!(queue.put(vec![7], Urgency::Whenever), Ok(()));
        assert!(queue.take_now(9, |_| true).is_empty());
        assert_eq!(queue.put((1..=5).collect(), Urgency::Now), Ok(()));
        assert_eq!(queue.take_now(9, |item| *item != 2), [1, 3, 4]);
        queue.put_back(vec![3]);
        assert_eq!(queue.take_now(9, |_| true), [5]);
        assert!(queue.take_now(9, |_| true).is_empty(), "trouble is for workers");
        assert!(queue.wait(9, NONE));
        assert_eq!((queue.take(9, |_| true), queue.take(9, |_| true)), (vec![3], vec![7]));
    }

    #[test]
    fn patience_fills_a_batch_and_ends() {
        let queue = Arc::new(filled(0..1));
        let patient = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.wait(3, at_most(Duration::from_mins(1))))
        };
        assert_eq!(queue.push(vec![1], Urgency::Now), Ok(()));
        thread::sleep(Duration::from_millis(20));
        assert_eq!(queue.len(), 2, "two of three wait for the third");
        assert_eq!(queue.push(vec![2], Urgency::Now), Ok(()));
        assert!(patient.join().expect("no panic"));
        assert_eq!(queue.take(3, |_| true), [0, 1, 2]);

        assert_eq!(queue.push(vec![3], Urgency::Now), Ok(()));
        assert!(queue.wait(3, at_most(Duration::from_millis(1))), "nobody else comes");
        let fidgety = Patience { longest: Duration::from_mins(1), quiet: Duration::from_millis(1) };
        assert!(queue.wait(3, fidgety), "nobody came for a while");
        queue.close();
        assert!(queue.wait(3, at_most(Duration::from_mins(1))), "nobody else may come");
        assert_eq!(queue.take(3, |_| true), [3]);
    }

    #[test]
    fn workers_share_alike_what_waits_and_what_is_worked_on() {
        let queue = Queue::new(100, 2);
        assert_eq!(queue.push((0..8).collect(), Urgency::Now), Ok(()));
        assert_eq!(queue.take(32, |_| true).len(), 4, "half of it is the other's");
        assert_eq!(queue.push((0..20).collect(), Urgency::Now), Ok(()));
        // 24 wait and 4 are worked on.
        assert_eq!(queue.take(32, |_| true).len(), 14);
        queue.done(4);
        assert_eq!((queue.len(), queue.take(32, |_| true).len()), (10, 10), "a share is 12, and 10 are there");
        queue.done(24);
        assert_eq!(queue.push((0..3).collect(), Urgency::Now), Ok(()));
        assert!(
            queue.wait(32, at_most(Duration::from_mins(1))),
            "two are a share of three: nothing else is waited for"
        );
    }

    #[test]
    fn every_item_reaches_exactly_one_worker() {
        let queue = Arc::new(Queue::new(10_000, 4));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let mut taken = Vec::new();
                    while queue.wait(7, NONE) {
                        let batch = queue.take(7, |_| true);
                        assert!(batch.len() <= 7);
                        queue.done(batch.len());
                        taken.extend(batch);
                    }
                    taken
                })
            })
            .collect();
        for item in 0..5000 {
            assert_eq!(queue.push(vec![item], Urgency::Now), Ok(()));
        }
        queue.close();
        let mut all: Vec<u32> =
            workers.into_iter().flat_map(|worker| worker.join().expect("no worker panics")).collect();
        all.sort_unstable();
        assert_eq!(all, (0..5000).collect::<Vec<_>>());
    }
}
