//! How children ended that nobody had claimed: one made by another child of ours (a zygote) may end before it is adopted.

use drupe_sys::process::{Ended, Pid};
use std::collections::VecDeque;

/// Far more than can end between their birth and their adoption.
const KEPT: usize = 256;

#[derive(Default)]
pub struct Recent(VecDeque<(Pid, Ended)>);

impl Recent {
    pub fn push(&mut self, pid: Pid, ended: Ended) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((pid, ended));
    }

    /// The end of the newest process of that pid.
    pub fn take(&mut self, pid: Pid) -> Option<Ended> {
        let place = self.0.iter().rposition(|(each, _)| *each == pid)?;
        self.0.remove(place).map(|(_, ended)| ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_pid_is_taken_once_and_the_oldest_go() {
        let mut recent = Recent::default();
        let end = |code| Ended { code, signal: 0, core: false };
        recent.push(7, end(1));
        recent.push(7, end(2));
        assert_eq!(recent.take(7).unwrap().code, 2);
        assert_eq!(recent.take(7).unwrap().code, 1);
        assert!(recent.take(7).is_none());
        for pid in 0..=KEPT as Pid {
            recent.push(pid, end(0));
        }
        assert!(recent.take(0).is_none() && recent.take(1).is_some());
    }
}
