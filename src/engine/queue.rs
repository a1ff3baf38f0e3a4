//! The line in front of a network: bounded, first come first served, shared by the workers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A bounded queue of items that workers take in batches.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    capacity: usize,
}

struct State<T> {
    items: VecDeque<T>,
    /// Workers that wait in [`Queue::take`].
    idle: usize,
    closed: bool,
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
    /// An empty queue in which at most `capacity` items wait.
    pub(super) fn new(capacity: usize) -> Self {
        let state = State { items: VecDeque::with_capacity(capacity.min(1024)), idle: 0, closed: false };
        Self { state: Mutex::new(state), arrived: Condvar::new(), capacity }
    }

    /// Puts items at the end, side by side: all of them or none.
    ///
    /// # Errors
    /// When the queue is closed, or too full for all of them.
    pub(super) fn push(&self, items: Vec<T>) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        if state.items.len() + items.len() > self.capacity {
            return Err(Refusal::Full);
        }
        state.items.extend(items);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for items and takes a batch of those that are still `wanted`; unwanted ones are dropped on the way.
    ///
    /// A batch is this worker's share of what waits, when others are idle too, and never more than `most`. For a batch that
    /// is not full it waits `patience` at most, counted from when it saw the first item; with none, which is the rule, it
    /// takes what is there. `None` once the queue is closed and everything is taken.
    pub(super) fn take(&self, most: usize, patience: Duration, wanted: impl Fn(&T) -> bool) -> Option<Vec<T>> {
        let mut state = self.state.lock();
        let mut until = None;
        loop {
            if state.items.is_empty() {
                until = None;
            } else if !patience.is_zero() && state.items.len() < most && !state.closed {
                let until = *until.get_or_insert_with(|| Instant::now() + patience);
                if !self.arrived.wait_until(&mut state, until).timed_out() {
                    continue;
                }
            }
            if !state.items.is_empty() {
                let share = state.items.len().div_ceil(state.idle + 1).min(most);
                let mut batch = Vec::with_capacity(share);
                while batch.len() < share {
                    let Some(item) = state.items.pop_front() else { break };
                    if wanted(&item) {
                        batch.push(item);
                    }
                }
                if !batch.is_empty() {
                    if !state.items.is_empty() {
                        self.arrived.notify_one();
                    }
                    return Some(batch);
                }
            } else if state.closed {
                return None;
            } else {
                state.idle += 1;
                self.arrived.wait(&mut state);
                state.idle -= 1;
            }
        }
    }

    /// Items that wait now.
    pub(super) fn len(&self) -> usize {
        self.state.lock().items.len()
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

    const NONE: Duration = Duration::ZERO;

    fn filled(items: std::ops::Range<u32>) -> Queue<u32> {
        let queue = Queue::new(100);
        assert_eq!(queue.push(items.collect()), Ok(()));
        queue
    }

    #[test]
    fn batches_are_as_large_as_allowed_and_in_order() {
        let queue = filled(0..5);
        assert_eq!(queue.take(3, NONE, |_| true), Some(vec![0, 1, 2]));
        assert_eq!(queue.take(3, NONE, |_| true), Some(vec![3, 4]));
    }

    #[test]
    fn unwanted_items_take_no_place_in_a_batch() {
        let queue = filled(0..8);
        assert_eq!(queue.take(3, NONE, |item| item % 2 == 1), Some(vec![1, 3, 5]));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn a_full_queue_refuses_and_a_closed_one_hands_out_what_it_has() {
        let queue = Queue::new(2);
        assert_eq!(
            (queue.push(vec![1]), queue.push(vec![2]), queue.push(vec![3])),
            (Ok(()), Ok(()), Err(Refusal::Full))
        );
        queue.close();
        assert_eq!(queue.push(vec![4]), Err(Refusal::Closed));
        assert_eq!(queue.take(9, NONE, |_| true), Some(vec![1, 2]));
        assert_eq!(queue.take(9, NONE, |_| true), None);
    }

    #[test]
    fn items_come_in_together_or_not_at_all() {
        let queue = Queue::new(3);
        assert_eq!((queue.push(vec![1, 2]), queue.push(vec![3, 4])), (Ok(()), Err(Refusal::Full)));
        assert_eq!((queue.push(vec![5]), queue.push(vec![])), (Ok(()), Ok(())));
        assert_eq!(queue.take(9, NONE, |_| true), Some(vec![1, 2, 5]));
    }

    #[test]
    fn patience_fills_a_batch_and_ends() {
        let queue = Arc::new(filled(0..1));
        let patient = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.take(3, Duration::from_mins(1), |_| true))
        };
        assert_eq!(queue.push(vec![1]), Ok(()));
        thread::sleep(Duration::from_millis(20));
        assert_eq!(queue.len(), 2, "two of three wait for the third");
        assert_eq!(queue.push(vec![2]), Ok(()));
        assert_eq!(patient.join().expect("no panic"), Some(vec![0, 1, 2]));

        assert_eq!(queue.push(vec![3]), Ok(()));
        assert_eq!(queue.take(3, Duration::from_millis(1), |_| true), Some(vec![3]), "nobody else comes");
        assert_eq!(queue.push(vec![4]), Ok(()));
        queue.close();
        assert_eq!(queue.take(3, Duration::from_mins(1), |_| true), Some(vec![4]), "nobody else may come");
    }

    #[test]
    fn every_item_reaches_exactly_one_worker() {
        let queue = Arc::new(Queue::new(10_000));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let mut taken = Vec::new();
                    while let Some(batch) = queue.take(7, NONE, |_| true) {
                        assert!((1..=7).contains(&batch.len()));
                        taken.extend(batch);
                    }
                    taken
                })
            })
            .collect();
        for item in 0..5000 {
            assert_eq!(queue.push(vec![item]), Ok(()));
        }
        queue.close();
        let mut all: Vec<u32> =
            workers.into_iter().flat_map(|worker| worker.join().expect("no worker panics")).collect();
        all.sort_unstable();
        assert_eq!(all, (0..5000).collect::<Vec<_>>());
    }
}
