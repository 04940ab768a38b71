//! Composes layers that clear bits of a block's number, step back, or read the first blocks.
//!
//! In:  forms. Out: the number of pairs reached after each layer.
//!
//! The set of reached pairs (b, c) is a binary decision diagram over the bits of both numbers,
//! lowest bits first, each bit of b before the same bit of c; equal subdiagrams share a node. With
//! a layer on top, block b also reaches what the blocks that it reads reach. To clear a bit of b is
//! to take one branch of the diagram; to step back is to subtract bit by bit. Regular networks
//! need few nodes.

use super::form::Form;
use std::collections::HashMap;

/// Most nodes of a diagram.
const NODES: usize = 1 << 21;

const NEVER: u32 = 0;
const ALWAYS: u32 = 1;

/// The number of pairs `c <= b` reached after each layer; `order` holds each layer's index in
/// `forms`. `None` if the diagram would need too many nodes.
pub(super) fn pairs(forms: &[Form], order: &[usize], rows: u32) -> Option<Vec<u64>> {
    let mut diagram = Diagram::new(rows);
    let rows_alone = diagram.below(rows, 0);
    let mut reach = diagram.equal();
    super::compose(order, super::all_pairs(rows), |stage| {
        let next = diagram.through(reach, &forms[stage]);
        let changed = next != reach;
        reach = next;
        let counted = diagram.both(reach, rows_alone);
        (!diagram.is_full()).then(|| (diagram.count(counted), changed))
    })
}

/// A node: the bit that it tests (`2 k` for bit k of b, `2 k + 1` for bit k of c), and the nodes
/// that follow where that bit is 0 and where it is 1.
type Node = (u32, u32, u32);

struct Diagram {
    /// Number of bits of a block number.
    width: u32,
    nodes: Vec<Node>,
    known: HashMap<Node, u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Joined {
    Either,
    Both,
}

impl Diagram {
    /// An empty diagram for numbers below `rows`.
    fn new(rows: u32) -> Self {
        let width = (32 - rows.saturating_sub(1).leading_zeros()).max(1);
        let end = 2 * width;
        Self {
            width,
            nodes: vec![(end, NEVER, NEVER), (end, ALWAYS, ALWAYS)],
            known: HashMap::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.nodes.len() >= NODES
    }

    fn node(&mut self, bit: u32, zero: u32, one: u32) -> u32 {
        if zero == one {
            return zero;
        }
        if self.is_full() {
            return NEVER;
        }
        let index = self.nodes.len() as u32;
        let nodes = &mut self.nodes;
        *self.known.entry((bit, zero, one)).or_insert_with(|| {
            nodes.push((bit, zero, one));
            index
        })
    }

    /// The branches of `node` at `bit`, where that is 0 and 1. The node must not test a bit before
    /// `bit`.
    fn branches(&self, node: u32, bit: u32) -> (u32, u32) {
        match self.nodes[node as usize] {
            (own, zero, one) if own == bit => (zero, one),
            (_, _, _) => (node, node),
        }
    }

    /// The pairs with b = c.
    fn equal(&mut self) -> u32 {
        (0..self.width).rev().fold(ALWAYS, |rest, k| {
            let zero = self.node(2 * k + 1, rest, NEVER);
            let one = self.node(2 * k + 1, NEVER, rest);
            self.node(2 * k, zero, one)
        })
    }

    /// The pairs in which b (`of` is 0) or c (`of` is 1) is below `end`.
    fn below(&mut self, end: u32, of: u32) -> u32 {
        if u64::from(end) >> self.width > 0 {
            return ALWAYS;
        }
        // The diagrams over bits k and up: for numbers whose bits before k are below those of
        // `end`, and for all others.
        let (mut below, mut not) = (ALWAYS, NEVER);
        for k in (0..self.width).rev() {
            let mixed = self.node(2 * k + of, below, not);
            if end >> k & 1 == 0 {
                below = mixed;
            } else {
                not = mixed;
            }
        }
        not
    }

    /// The pairs with c <= b.
    fn at_most(&mut self) -> u32 {
        let (mut yes, mut no) = (ALWAYS, NEVER);
        for k in (0..self.width).rev() {
            let [if_yes, if_no] = [yes, no].map(|same| {
                let zero = self.node(2 * k + 1, same, no);
                let one = self.node(2 * k + 1, yes, same);
                self.node(2 * k, zero, one)
            });
            (yes, no) = (if_yes, if_no);
        }
        yes
    }

    /// The pairs reached with one more layer on top.
    fn through(&mut self, reach: u32, form: &Form) -> u32 {
        let mut next = reach;
        for (start, stop) in &form.back {
            let mut some = self.back(reach, *start);
            // Doubles the number of distances until all are included.
            let mut have = 1;
            while have < stop - start {
                let step = have.min(stop - start - have);
                let further = self.back(some, step);
                some = self.either(some, further);
                have += step;
            }
            next = self.either(next, some);
        }
        for bit in &form.bits {
            if *bit < self.width {
                let cleared = self.cleared(reach, 2 * bit, &mut HashMap::new());
                next = self.either(next, cleared);
            }
        }
        if form.first > 0 {
            let first = self.below(form.first, 1);
            let before = self.at_most();
            let first = self.both(first, before);
            next = self.either(next, first);
        }
        next
    }

    /// The pairs (b, c) for which (b - by, c) is in `reach`.
    fn back(&mut self, reach: u32, by: u32) -> u32 {
        if u64::from(by) >> self.width > 0 {
            return NEVER;
        }
        self.subtracted(reach, by, (0, 0), &mut HashMap::new())
    }

    /// The part of [`Self::back`] from bit `k` on; `borrowed` is 1 if lower bits borrow from it.
    fn subtracted(
        &mut self,
        reach: u32,
        by: u32,
        (k, borrowed): (u32, u32),
        known: &mut HashMap<(u32, u32, u32), u32>,
    ) -> u32 {
        if k == self.width {
            return if borrowed == 0 { reach } else { NEVER };
        }
        if reach == NEVER {
            return NEVER;
        }
        if let Some(found) = known.get(&(reach, k, borrowed)) {
            return *found;
        }
        let (zero, one) = self.branches(reach, 2 * k);
        let taken = (by >> k & 1) + borrowed;
        let [at_zero, at_one] = [0, 1].map(|bit: u32| {
            let below = if (bit + taken) & 1 == 0 { zero } else { one };
            let (of_zero, of_one) = self.branches(below, 2 * k + 1);
            let next = (k + 1, u32::from(bit < taken));
            let of_zero = self.subtracted(of_zero, by, next, known);
            let of_one = self.subtracted(of_one, by, next, known);
            self.node(2 * k + 1, of_zero, of_one)
        });
        let made = self.node(2 * k, at_zero, at_one);
        known.insert((reach, k, borrowed), made);
        made
    }

    /// The pairs in which `bit` is set and that are in `reach` once it is cleared.
    fn cleared(&mut self, reach: u32, bit: u32, known: &mut HashMap<u32, u32>) -> u32 {
        let (own, zero, one) = self.nodes[reach as usize];
        if reach == NEVER {
            return NEVER;
        }
        if own >= bit {
            let rest = if own == bit { zero } else { reach };
            return self.node(bit, NEVER, rest);
        }
        if let Some(found) = known.get(&reach) {
            return *found;
        }
        let zero = self.cleared(zero, bit, known);
        let one = self.cleared(one, bit, known);
        let made = self.node(own, zero, one);
        known.insert(reach, made);
        made
    }

    fn either(&mut self, a: u32, b: u32) -> u32 {
        self.joined(Joined::Either, a, b, &mut HashMap::new())
    }

    fn both(&mut self, a: u32, b: u32) -> u32 {
        self.joined(Joined::Both, a, b, &mut HashMap::new())
    }

    fn joined(&mut self, how: Joined, a: u32, b: u32, known: &mut HashMap<(u32, u32), u32>) -> u32 {
        let (neutral, final_) = match how {
            Joined::Either => (NEVER, ALWAYS),
            Joined::Both => (ALWAYS, NEVER),
        };
        if a == final_ || b == final_ {
            return final_;
        }
        if a == b || b == neutral {
            return a;
        }
        if a == neutral {
            return b;
        }
        let pair = (a.min(b), a.max(b));
        if let Some(found) = known.get(&pair) {
            return *found;
        }
        let bit = self.nodes[a as usize].0.min(self.nodes[b as usize].0);
        let ((a0, a1), (b0, b1)) = (self.branches(a, bit), self.branches(b, bit));
        let zero = self.joined(how, a0, b0, known);
        let one = self.joined(how, a1, b1, known);
        let made = self.node(bit, zero, one);
        known.insert(pair, made);
        made
    }

    /// The number of pairs in `set`.
    fn count(&self, set: u32) -> u64 {
        let mut known = HashMap::new();
        self.rest(set, &mut known) << self.nodes[set as usize].0
    }

    /// The number of values of the bits from the node's own on that are in the set.
    fn rest(&self, set: u32, known: &mut HashMap<u32, u64>) -> u64 {
        let (bit, zero, one) = self.nodes[set as usize];
        if set == NEVER || set == ALWAYS {
            return u64::from(set);
        }
        if let Some(found) = known.get(&set) {
            return *found;
        }
        let branch = |node: u32, known: &mut HashMap<u32, u64>| {
            self.rest(node, known) << (self.nodes[node as usize].0 - bit - 1)
        };
        let ways = branch(zero, known) + branch(one, known);
        known.insert(set, ways);
        ways
    }
}
