//! Products of norms on the host.

use super::{Added, Normed};
use crate::experts::flex::combine;
use crate::flex::elements::Stored;
use crate::linear::flex::project;
use crate::norm::flex::{add_norm, norm};
use burn_flex::FlexTensor;

pub(crate) fn normed<E: Stored>(op: &Normed, mut inputs: Vec<FlexTensor>) -> Vec<FlexTensor> {
    let weight = inputs.split_off(op.own());
    let scale = inputs.pop().expect("the inputs were counted");
    let mut outputs = match op.added {
        Added::None => norm::<E>(&[inputs.remove(0), scale], op.epsilon),
        Added::Rows => add_norm::<E>(&[inputs.remove(0), inputs.remove(0), scale], op.epsilon),
        Added::Weighted => {
            let added = combine::<E>(&inputs[1..]);
            let inputs: Vec<_> = [inputs.remove(0)].into_iter().chain(added).collect();
            add_norm::<E>(&[&inputs[..], &[scale]].concat(), op.epsilon)
        }
    };
    let normed = match op.keep {
        true => outputs.last().cloned(),
        false => outputs.pop(),
    };
    let given = normed.into_iter().chain(weight);
    outputs.extend(project::<E>(&op.project, given.collect()));
    outputs
}
