//! Sets of indices: of the kv heads of a layer, and of the layers of a model.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A set of indices, each from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Indices {
    /// Every index.
    #[default]
    All,
    /// The indices in one of the runs.
    Some(Vec<Run>),
}

/// Consecutive indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Run {
    /// The first one.
    pub first: u32,
    /// How many; at least 1.
    pub count: u32,
}

impl Run {
    /// One past the last index.
    pub fn end(&self) -> u32 {
        self.first.saturating_add(self.count)
    }
}

impl Indices {
    /// The indices of `ranges`, each a first index and one past the last; empty ranges count for
    /// nothing.
    pub fn of(ranges: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut ranges: Vec<(u32, u32)> = ranges.into_iter().filter(|x| x.0 < x.1).collect();
        ranges.sort_unstable();
        let mut runs: Vec<Run> = Vec::with_capacity(ranges.len());
        for (first, end) in ranges {
            match runs.last_mut() {
                Some(run) if first <= run.end() => run.count = run.end().max(end) - run.first,
                Some(_) | None => runs.push(Run {
                    first,
                    count: end - first,
                }),
            }
        }
        Self::Some(runs)
    }

    /// Whether `index` is in the set.
    pub fn contains(&self, index: u32) -> bool {
        match self {
            Self::All => true,
            Self::Some(runs) => runs
                .iter()
                .any(|run| (run.first..run.end()).contains(&index)),
        }
    }

    /// One past the largest index that is named; 0 for all.
    pub(crate) fn end(&self) -> u32 {
        match self {
            Self::All => 0,
            Self::Some(runs) => runs.last().map_or(0, Run::end),
        }
    }

    pub(crate) fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// Whether no index is in the set.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Some(runs) if runs.is_empty())
    }

    /// The indices in both sets.
    pub fn and(&self, other: &Self) -> Self {
        let (Self::Some(a), Self::Some(b)) = (self, other) else {
            return if self.is_all() { other } else { self }.clone();
        };
        let both = a.iter().flat_map(|x| b.iter().map(move |y| (x, y)));
        Self::of(both.map(|(x, y)| (x.first.max(y.first), x.end().min(y.end()))))
    }

    /// The indices in at least one of the sets.
    pub fn or(&self, other: &Self) -> Self {
        let (Self::Some(a), Self::Some(b)) = (self, other) else {
            return Self::All;
        };
        match Self::of(a.iter().chain(b).map(|run| (run.first, run.end()))) {
            Self::Some(runs) if runs.first().is_some_and(|run| run.count == u32::MAX) => Self::All,
            some => some,
        }
    }

    /// The indices that are not in the set.
    pub fn complement(&self) -> Self {
        let Self::Some(runs) = self else {
            return Self::Some(Vec::new());
        };
        if runs.is_empty() {
            return Self::All;
        }
        let starts = std::iter::once(0).chain(runs.iter().map(Run::end));
        let ends = runs.iter().map(|run| run.first).chain([u32::MAX]);
        Self::of(starts.zip(ends))
    }

    /// Whether every index of the set is in `other`.
    pub fn within(&self, other: &Self) -> bool {
        other.is_all() || self.and(other) == *self
    }
}

impl fmt::Display for Indices {
    /// `0, 2..4`, ends exclusive; `else` for all.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Some(runs) = self else {
            return f.write_str("else");
        };
        for (i, run) in runs.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            match run.count {
                1 => write!(f, "{comma}{}", run.first)?,
                _ => write!(f, "{comma}{}..{}", run.first, run.end())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn indices() -> impl Strategy<Value = Indices> {
        let some = vec((0..20u32, 0..6u32), 0..4);
        let some = some.prop_map(|x| Indices::of(x.into_iter().map(|(a, n)| (a, a + n))));
        prop_oneof![1 => Just(Indices::All), 9 => some]
    }

    proptest! {
        #[test]
        fn sets_are_those_of_their_members(a in indices(), b in indices()) {
            let (both, either, not) = (a.and(&b), a.or(&b), a.complement());
            prop_assert_eq!(a.or(&not), Indices::All);
            for i in 0..40 {
                prop_assert_eq!(both.contains(i), a.contains(i) && b.contains(i));
                prop_assert_eq!(either.contains(i), a.contains(i) || b.contains(i));
                prop_assert_eq!(not.contains(i), !a.contains(i));
            }
            let within = (0..40).all(|i| !a.contains(i) || b.contains(i));
            prop_assert_eq!(a.within(&b), within && (b.is_all() || !a.is_all()));
            prop_assert_eq!(a.is_empty(), (0..40).all(|i| !a.contains(i)));
        }
    }
}
