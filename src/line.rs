//! The line before the work. Requests that have been read wait here, first come first served, and few are in progress at a
//! time: enough to keep every core and every batch busy, and no more, for each further one only makes the others later.
//!
//! Under overload, a line without a second look ends with nobody served: whoever reaches its front has spent so much of its
//! time on waiting that the rest does not suffice, and its work is done for nothing. So a request whose time cannot suffice
//! any more, by what the last ones took, is told so at the front and not begun.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Weight of one request in the running mean of the time that requests take.
const NEWEST: f64 = 0.1;

/// Part of the running mean that is left after a request was turned away. Where all are turned away nobody is measured any
/// more, and what was true in a bad moment would be believed for ever.
const AFTER_REFUSAL: f64 = 0.95;

/// The time of a request ran out, or cannot suffice any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time of the request does not suffice any more")]
pub struct TooLate;

/// The line, and the places of those that are in progress.
pub struct Line {
    places: Semaphore,
    /// Running mean of the time in progress, in microseconds.
    typical: AtomicU64,
}

impl Line {
    /// A line before this many places.
    pub fn new(places: usize) -> Self {
        Self { places: Semaphore::new(places), typical: AtomicU64::new(0) }
    }

    /// Waits for a place. Dropping the future leaves the line.
    ///
    /// # Errors
    /// When so little is left until the deadline that the work would be for nothing.
    pub async fn enter(&self, deadline: Instant) -> Result<Place<'_>, TooLate> {
        let permit = self.places.acquire().await.map_err(|_| TooLate)?;
        let since = Instant::now();
        let typical = self.typical.load(Ordering::Relaxed);
        if deadline.saturating_duration_since(since) < Duration::from_micros(typical) {
            // Lost updates of others are no harm to a mean.
            self.typical.store((typical as f64 * AFTER_REFUSAL) as u64, Ordering::Relaxed);
            return Err(TooLate);
        }
        Ok(Place { line: self, since, _permit: permit })
    }
}

/// A request in progress, until it is dropped.
pub struct Place<'a> {
    line: &'a Line,
    since: Instant,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let typical = self.line.typical.load(Ordering::Relaxed) as f64;
        let took = self.since.elapsed().as_micros() as f64;
        // The first one is all that is known.
        let mean = if typical > 0.0 { typical + NEWEST * (took - typical) } else { took };
        self.line.typical.store(mean as u64, Ordering::Relaxed);
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

    fn taking(line: &Line, time: Duration) {
        let mut place = line.enter(far()).now_or_never().unwrap().unwrap();
        place.since = place.since.checked_sub(time).unwrap();
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
        let line = Line::new(1);
        taking(&line, Duration::from_millis(200));
        let soon = Instant::now() + Duration::from_millis(100);
        assert_eq!(line.enter(soon).now_or_never().unwrap().map(drop), Err(TooLate));
        assert!(line.enter(far()).now_or_never().unwrap().is_ok());
        assert_eq!(line.places.available_permits(), 1, "who is turned away holds no place");
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
}
