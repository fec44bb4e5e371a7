//! Notes of what was seen, in parts: a list of 100,000 is never copied to grow, and what was worked off
//! is freed before the end is reached.

use std::collections::VecDeque;

/// Notes in the order in which they came.
#[derive(Debug)]
pub struct Notes<T>(VecDeque<Vec<T>>);

impl<T> Notes<T> {
    /// Notes in a part.
    const PART: usize = 1024;

    pub fn push(&mut self, note: T) {
        match self.0.back_mut() {
            Some(part) if part.len() < Self::PART => part.push(note),
            _ => self.0.push_back(vec![note]),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    /// Takes the oldest part out: hands on what `pick` says and moves the rest to `others`. False if
    /// there is none.
    pub fn work_off(
        &mut self,
        others: &mut Self,
        pick: impl Fn(&T) -> bool,
        mut done: impl FnMut(&T),
    ) -> bool {
        let part = self.0.pop_front();
        let some = part.is_some();
        for note in part.into_iter().flatten() {
            if pick(&note) { done(&note) } else { others.push(note) }
        }
        some
    }
}

impl<T> Default for Notes<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_worked_off_once_and_in_order() {
        let mut notes = Notes::default();
        (0..3000).for_each(|n| notes.push(n));
        assert!(notes.iter().copied().eq(0..3000));
        let (mut odd, mut even) = (Notes::default(), Vec::new());
        while notes.work_off(&mut odd, |n| n % 2 == 0, |n| even.push(*n)) {}
        assert!(even.into_iter().eq((0..3000).step_by(2)));
        assert!(odd.iter().copied().eq((1..3000).step_by(2)));
        assert_eq!(notes.iter().count(), 0);
    }
}
