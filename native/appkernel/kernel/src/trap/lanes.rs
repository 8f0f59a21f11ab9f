//! Calls that have come and were not served yet. Each lane has its turn: a thousand processes that descend from one keep those
//! who descend from another (an operator's `exec`) waiting for one call, not for a thousand.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

/// What waits, by lane; first come, first served within one.
pub(super) struct Lanes<T> {
    waiting: BTreeMap<u32, VecDeque<T>>,
    count: usize,
    /// Whose turn was last.
    last: u32,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Lanes { waiting: BTreeMap::new(), count: 0, last: 0 }
    }
}

impl<T> Lanes<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn push(&mut self, lane: u32, one: T) {
        self.waiting.entry(lane).or_default().push_back(one);
        self.count += 1;
    }

    /// The first of the lane whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let after = self.waiting.range((Excluded(self.last), Unbounded)).next();
        let lane = *after.or_else(|| self.waiting.first_key_value())?.0;
        self.last = lane;
        self.take(lane, 0)
    }

    /// The first that is it, whosever turn it is.
    pub(super) fn find(&mut self, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let at = |queue: &VecDeque<T>| queue.iter().position(&is_it);
        let (lane, at) = self.waiting.iter().find_map(|(lane, queue)| Some((*lane, at(queue)?)))?;
        self.take(lane, at)
    }

    /// Drop all that are it.
    pub(super) fn drop_all(&mut self, is_it: impl Fn(&T) -> bool) {
        if self.is_empty() {
            return;
        }
        self.waiting.values_mut().for_each(|queue| queue.retain(|one| !is_it(one)));
        self.waiting.retain(|_, queue| !queue.is_empty());
        self.count = self.waiting.values().map(VecDeque::len).sum();
    }

    fn take(&mut self, lane: u32, at: usize) -> Option<T> {
        let queue = self.waiting.get_mut(&lane)?;
        let one = queue.remove(at)?;
        self.count -= 1;
        if queue.is_empty() {
            self.waiting.remove(&lane);
        }
        Some(one)
    }
}

#[cfg(test)]
mod tests {
    use super::Lanes;

    #[test]
    fn lanes_take_turns_and_keep_their_order() {
        let mut lanes = Lanes::default();
        (0..4).for_each(|n| lanes.push(1, ("bomb", n)));
        lanes.push(7, ("operator", 0));
        lanes.push(7, ("operator", 1));
        let order: Vec<_> = std::iter::from_fn(|| lanes.pop()).collect();
        let bomb = |n| ("bomb", n);
        assert_eq!(order, [bomb(0), ("operator", 0), bomb(1), ("operator", 1), bomb(2), bomb(3)]);
        assert!(lanes.is_empty());
    }

    #[test]
    fn one_that_is_looked_for_is_found_in_any_lane() {
        let mut lanes = Lanes::default();
        (0..3).for_each(|n| lanes.push(n, n));
        assert_eq!((lanes.find(|n| *n == 2), lanes.find(|n| *n == 2), lanes.len()), (Some(2), None, 2));
    }

    #[test]
    fn what_is_dropped_is_gone_from_all_lanes() {
        let mut lanes = Lanes::default();
        (0..6).for_each(|n| lanes.push(n % 2, n));
        lanes.drop_all(|n| n % 2 == 0 || *n == 5);
        assert_eq!((lanes.len(), lanes.pop(), lanes.pop(), lanes.pop()), (2, Some(1), Some(3), None));
    }
}
