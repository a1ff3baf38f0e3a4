//! The line before the work. Requests that have been read wait here, first come first served, and few are in progress at a
//! time: enough to keep every core and every batch busy, and no more, for each further one only makes the others later.
//!
//! Under overload, a line without a second look ends with nobody served: whoever reaches its front has spent so much of its
//! time on waiting that the rest does not suffice, and its work is done for nothing. So a request at the front whose time cannot
//! suffice any more is told so and not begun: where one ends every `t`, as the last ones did, the one that comes to `n` others
//! takes `(n + 1) · t`. Those behind it have more time left than it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Weight of one request in the running mean of the time between two ends.
const NEWEST: f64 = 0.05;

/// Part of the running mean that is left after a request was turned away while none was in progress: then nothing is measured
/// any more, and what was true in a bad moment would be believed for ever.
const AFTER_REFUSAL: f64 = 0.95;

/// Places that a picture takes which is shown to a detector; anything else takes one. It holds all its pixels while it waits, and the
/// more of them are held, the fewer are in the caches when they are asked for. A detector's runs need fewer pictures to be full, too.
pub const PHOTOGRAPH: u32 = 3;

/// The time of a request ran out, or cannot suffice any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time of the request does not suffice any more")]
pub struct TooLate;

/// The line, and the places of those that are in progress.
pub struct Line {
    places: Semaphore,
    /// How many there are.
    total: u32,
    pace: Mutex<Pace>,
}

/// How fast requests end.
struct Pace {
    in_progress: u32,
    /// The last end, or the last beginning with nobody else in progress.
    since: Instant,
    /// Running mean of the time between two ends, in seconds.
    interval: f64,
}

impl Line {
    /// A line before this many places.
    pub fn new(places: usize) -> Self {
        let pace = Pace { in_progress: 0, since: Instant::now(), interval: 0.0 };
        let total = u32::try_from(places).unwrap_or(u32::MAX);
        Self { places: Semaphore::new(places), total, pace: Mutex::new(pace) }
    }

    /// Waits for a place. Dropping the future leaves the line.
    ///
    /// # Errors
    /// When so little is left until the deadline that the work would be for nothing.
    pub async fn enter(&self, deadline: Instant) -> Result<Place<'_>, TooLate> {
        self.enter_for(1, deadline).await
    }

    /// Waits for so many places side by side, or all there are.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub async fn enter_for(&self, places: u32, deadline: Instant) -> Result<Place<'_>, TooLate> {
        let permit = self.places.acquire_many(places.min(self.total)).await.map_err(|_| TooLate)?;
        let now = Instant::now();
        let mut pace = self.pace.lock();
        let needed = f64::from(pace.in_progress + 1) * pace.interval;
        if deadline.saturating_duration_since(now) < Duration::from_secs_f64(needed) {
            if pace.in_progress == 0 {
                pace.interval *= AFTER_REFUSAL;
            }
            return Err(TooLate);
        }
        if pace.in_progress == 0 {
            pace.since = now;
        }
        pace.in_progress += 1;
        Ok(Place { line: self, begun: now, answered: false, _permit: permit })
    }
}

/// A request in progress, until it is dropped.
pub struct Place<'a> {
    line: &'a Line,
    begun: Instant,
    answered: bool,
    _permit: SemaphorePermit<'a>,
}

impl Place<'_> {
    /// The request was answered.
    pub fn answered(mut self) {
        self.answered = true;
        let mut pace = self.line.pace.lock();
        let now = Instant::now();
        let interval = (now - pace.since).as_secs_f64();
        // The first one is all that is known.
        let weight = if pace.interval > 0.0 { NEWEST } else { 1.0 };
        pace.interval += weight * (interval - pace.interval);
        pace.since = now;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut pace = self.line.pace.lock();
        if !self.answered {
            // So many have not ended in all this time: the pace is no faster than that. Without this, a line that has begun
            // too many at once, and ended none, would never learn.
            let least = self.begun.elapsed().as_secs_f64() / f64::from(pace.in_progress);
            pace.interval = pace.interval.max(least);
        }
        pace.in_progress -= 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures_util::FutureExt;

    use super::*;

    fn far() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    /// One request that takes so long.
    fn taking(line: &Line, time: Duration) {
        let place = line.enter(far()).now_or_never().unwrap().unwrap();
        line.pace.lock().since -= time;
        place.answered();
    }

    #[test]
    fn places_are_given_in_the_order_of_coming() {
        let line = Line::new(1);
        let place = line.enter(far()).now_or_never().unwrap().unwrap();
        let (mut first, mut second) = (Box::pin(line.enter(far())), Box::pin(line.enter(far())));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        drop(place);
        assert!((&mut second).now_or_never().is_none(), "the first is first");
        let place = (&mut first).now_or_never().unwrap().unwrap();
        drop(place);
        assert!((&mut second).now_or_never().unwrap().is_ok());
    }

    #[test]
    fn photographs_take_more_places_and_never_more_than_there_are() {
        let (line, short) = (Line::new(7), Line::new(2));
        let enter = |places| line.enter_for(places, far()).now_or_never();
        let (_first, second, _crop) = (enter(PHOTOGRAPH).unwrap(), enter(PHOTOGRAPH).unwrap(), enter(1).unwrap());
        assert!(enter(1).is_none(), "all seven are taken");
        drop(second);
        assert!(enter(PHOTOGRAPH).is_some());
        assert!(short.enter_for(PHOTOGRAPH, far()).now_or_never().is_some());
    }

    #[test]
    fn who_leaves_the_line_holds_nobody_up() {
        let line = Line::new(1);
        let place = line.enter(far()).now_or_never().unwrap().unwrap();
        let mut gone = Box::pin(line.enter(far()));
        let mut next = Box::pin(line.enter(far()));
        assert!((&mut gone).now_or_never().is_none() && (&mut next).now_or_never().is_none());
        drop(gone);
        drop(place);
        assert!((&mut next).now_or_never().unwrap().is_ok());
    }

    #[test]
    fn what_cannot_be_done_in_time_is_not_begun() {
        let line = Line::new(3);
        taking(&line, Duration::from_millis(200));
        let within = |ms| line.enter(Instant::now() + Duration::from_millis(ms)).now_or_never().unwrap();
        assert_eq!(within(100).map(drop), Err(TooLate));
        assert_eq!(line.places.available_permits(), 3, "who is turned away holds no place");
        let first = within(300);
        assert!(first.is_ok());
        assert!(within(300).is_err(), "the second one ends after 400 ms");
        assert!(within(500).is_ok());
    }

    #[test]
    fn one_slow_moment_is_not_believed_for_ever() {
        let line = Line::new(1);
        taking(&line, Duration::from_secs(20));
        let refusals = (0..1000)
            .take_while(|_| line.enter(Instant::now() + Duration::from_millis(100)).now_or_never().unwrap().is_err())
            .count();
        assert!((50..200).contains(&refusals), "{refusals}");
    }

    #[test]
    fn a_line_that_ended_none_in_time_begins_fewer() {
        let line = Line::new(8);
        let within = || line.enter(Instant::now() + Duration::from_millis(200)).now_or_never().unwrap();
        let mut late: Vec<_> = (0..8).map(|_| within().unwrap()).collect();
        for place in &mut late {
            place.begun -= Duration::from_millis(200);
        }
        drop(late.split_off(4));
        drop(late);
        let begun = (0..8).map_while(|_| within().ok()).count();
        assert!(begun < 8, "{begun}");
    }

    #[test]
    fn many_ends_at_a_time_are_a_short_interval() {
        let line = Line::new(100);
        for _ in 0..50 {
            let batch: Vec<_> = (0..8).map(|_| line.enter(far()).now_or_never().unwrap().unwrap()).collect();
            line.pace.lock().since -= Duration::from_millis(80);
            batch.into_iter().for_each(Place::answered);
        }
        let interval = line.pace.lock().interval;
        assert!((0.006..0.016).contains(&interval), "80 ms for eight: {interval}");
        drop(line.enter(far()).now_or_never());
        assert!((line.pace.lock().interval - interval).abs() < 1e-12, "who goes at once says nothing");
    }
}
