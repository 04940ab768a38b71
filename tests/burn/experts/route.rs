//! The choice of experts against f64: the same experts in the same order, and their weights.

use crate::values::{data, floats, number};
use crate::{Cuda, Fused, Vulkan};
use burn::tensor::{DType, TensorMetadata};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{Joined, Operation as LayerOperation, Route};
use butterfly::{AttentionBackend, run};
use butterfly_ir::model::{ExpertGroups, Router, Scores};

const GROUPS: ExpertGroups = ExpertGroups {
    count: 4,
    chosen: 2,
};
/// What the ranks of groups that take no part count as.
const LEFT_OUT: f64 = f64::NEG_INFINITY;
/// Ranks that differ by less may come in another order in f32.
const MARGIN: f64 = 1e-5;

/// A choice among so many experts.
#[derive(Clone, Copy, Debug)]
struct Case {
    experts: usize,
    op: Route,
}

/// What is added to ranks, and whether there are groups and weights are divided by their sum.
#[derive(Clone, Copy, Debug)]
struct With {
    bias: bool,
    groups: bool,
    sum: bool,
}

/// The case, if so many experts can be chosen.
fn case(experts: usize, chosen: usize, scores: Scores, with: With) -> Option<Case> {
    let [count, kept] = [GROUPS.count, GROUPS.chosen].map(|n| n as usize);
    let choices = match with.groups {
        true if experts.is_multiple_of(count) => experts / count * kept,
        true => 0,
        false => experts,
    };
    let router = Router {
        scores,
        biased: with.bias,
        groups: with.groups.then_some(GROUPS),
        normalised: with.sum,
        scale: if chosen == 2 { 2.5 } else { 1.0 },
    };
    let op = Route {
        chosen,
        router,
        shared: Joined::None,
    };
    (chosen <= choices).then_some(Case { experts, op })
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for experts in [1, 4, 7, 8, 64, 128, 256] {
        for chosen in [1, 2, 4, 8] {
            for scores in [Scores::Softmax, Scores::Sigmoid] {
                for flags in 0..8 {
                    let [bias, groups, sum] = [1, 2, 4].map(|bit| flags & bit != 0);
                    cases.extend(case(experts, chosen, scores, With { bias, groups, sum }));
                }
            }
        }
    }
    cases
}

/// A few cases, since each is a kernel that is compiled, which takes longer than to run it.
fn few_cases() -> Vec<Case> {
    let (plain, sum) = (with(false, false, false), with(false, false, true));
    let (softmax, sigmoid) = (Scores::Softmax, Scores::Sigmoid);
    let cases = [
        case(1, 1, softmax, plain),
        case(7, 2, softmax, sum),
        case(8, 4, softmax, sum),
        // Groups of which all experts can be chosen, though some rank below 0.
        case(8, 4, sigmoid, with(true, true, false)),
        // Groups of one expert.
        case(4, 2, sigmoid, with(true, true, true)),
        case(64, 4, sigmoid, with(true, true, true)),
        case(128, 8, softmax, with(true, false, true)),
        case(256, 8, softmax, with(false, true, true)),
    ];
    cases.map(|case| case.expect("a case")).to_vec()
}

fn with(bias: bool, groups: bool, sum: bool) -> With {
    With { bias, groups, sum }
}

impl Case {
    /// Two experts share each number, and no number is close to another.
    fn bias(&self) -> Option<Vec<f32>> {
        let of = |e: usize| ((e / 2 * 37 % 128) as f32 - 64.0) * 0.004;
        let biased = self.op.router.biased;
        biased.then(|| (0..self.experts).map(of).collect())
    }

    /// Logits of a row, and what they choose: numbers, pairs of equal ones, or the same number throughout, of which
    /// the choice does not hang on rounding.
    fn row(&self, row: usize, bias: Option<&[f32]>) -> (Vec<f32>, Vec<i32>, Vec<f64>) {
        let logits = |attempt: usize| -> Vec<f32> {
            let seed = (1000 * row + attempt) << 12;
            let logit = |e: usize| match row % 3 {
                0 => 4.0 * number(seed + e),
                1 => 4.0 * number(seed + e / 2),
                _ => 4.0 * number(seed),
            };
            (0..self.experts).map(logit).collect()
        };
        let clear = |logits: Vec<f32>| {
            let (ids, weights) = self.reference(&logits, bias)?;
            Some((logits, ids, weights))
        };
        let found = (0..1000).map(logits).find_map(clear);
        found.expect("a row whose choice is clear")
    }

    /// What a row chooses, in f64; `None` if that hangs on rounding.
    fn reference(&self, logits: &[f32], bias: Option<&[f32]>) -> Option<(Vec<i32>, Vec<f64>)> {
        let Route { chosen, router, .. } = self.op;
        let logits: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        let scores: Vec<f64> = match router.scores {
            Scores::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            Scores::Softmax => {
                let sum: f64 = logits.iter().map(|x| x.exp()).sum();
                logits.iter().map(|x| x.exp() / sum).collect()
            }
        };
        let mut ranks = scores.clone();
        for (rank, bias) in ranks.iter_mut().zip(bias.unwrap_or_default()) {
            *rank += f64::from(*bias);
        }
        if let Some(groups) = router.groups {
            let each = ranks.len() / groups.count as usize;
            let best_two = |group: &[f64]| {
                let mut group = group.to_vec();
                group.sort_by(|a, b| b.total_cmp(a));
                group.iter().take(2).sum::<f64>()
            };
            let sums: Vec<f64> = ranks.chunks(each).map(best_two).collect();
            let kept = groups.chosen as usize;
            for group in &order(&sums, kept)?[kept..] {
                ranks[group * each..][..each].fill(LEFT_OUT);
            }
        }
        let order = order(&ranks, chosen)?;
        let ids = order[..chosen].iter();
        let weights = ids.clone().map(|expert| scores[*expert]);
        let sum: f64 = weights.clone().sum();
        let factor = match router.normalised {
            true => router.scale / sum,
            false => router.scale,
        };
        let weights = weights.map(|weight| weight * factor).collect();
        Some((ids.map(|expert| *expert as i32).collect(), weights))
    }
}

/// The places of values, from the largest on, and of equal ones from the first on; `None` if rounding may change which
/// the first `count` are.
fn order(values: &[f64], count: usize) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    let clear = order.windows(2).take(count).all(|pair| {
        let gap = values[pair[0]] - values[pair[1]];
        gap == 0.0 || gap > MARGIN
    });
    clear.then_some(order)
}

/// Runs the operation on rows of logits.
fn choose<B: AttentionBackend>(
    case: &Case,
    logits: &[f32],
    device: &B::Device,
) -> (Vec<i32>, Vec<f32>) {
    let width = case.experts + usize::from(case.op.shared == Joined::Gated);
    let rows = logits.len() / width;
    let shape = [1, rows, width];
    let mut inputs = vec![floats::<B>(logits, &shape, DType::F32, device)];
    if let Some(bias) = case.bias() {
        let bias = floats::<B>(&bias, &[case.experts], DType::F32, device);
        inputs.push(bias);
    }
    let outputs = run::<B>(&LayerOperation::Route(case.op).into(), inputs).expect("a choice");
    let mut outputs = outputs.into_iter();
    let mut next = || data::<B>(outputs.next().expect("two outputs"));
    let ids = next().into_vec::<i32>().expect("i32");
    let weights = next().into_vec::<f32>().expect("f32");
    (ids, weights)
}

fn agrees<B: AttentionBackend>(cases: &[Case], device: &B::Device) {
    for case in cases {
        for rows in [1, 3, 65] {
            let bias = case.bias();
            let (mut logits, mut ids, mut weights) = (Vec::new(), Vec::new(), Vec::new());
            for row in 0..rows {
                let (own, chosen, their) = case.row(row, bias.as_deref());
                logits.extend(own);
                ids.extend(chosen);
                weights.extend(their);
            }
            let (got_ids, got) = choose::<B>(case, &logits, device);
            assert_eq!(got_ids, ids, "{case:?}, {rows} rows");
            assert_eq!(got.len(), weights.len());
            let most = 1e-5 * case.op.router.scale;
            for (i, (got, want)) in got.iter().zip(&weights).enumerate() {
                let off = (f64::from(*got) - want).abs();
                assert!(off <= most, "{case:?}, {rows} rows, {i}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn cpu_chooses_as_f64_does() {
    agrees::<Flex>(&cases(), &Default::default());
}

#[test]
fn vulkan_chooses_as_f64_does() {
    agrees::<Vulkan>(&few_cases(), &WgpuDevice::Cpu);
    agrees::<Fused>(&few_cases()[2..3], &WgpuDevice::Cpu);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_chooses_as_f64_does() {
    agrees::<Cuda>(&few_cases(), &Default::default());
    let every_fifth: Vec<Case> = cases().into_iter().step_by(5).collect();
    agrees::<Cuda>(&every_fifth, &Default::default());
    every_row_chooses_one_more::<Cuda>(&Default::default());
    ties_and_nan::<Cuda>(&Default::default());
}

/// The expert that computes for every row comes last, with weight 1 or the sigmoid of the last logit; the others are
/// chosen as without it.
fn every_row_chooses_one_more<B: AttentionBackend>(device: &B::Device) {
    for (experts, chosen, with) in [
        (7, 2, with(false, false, true)),
        (64, 4, with(true, true, true)),
    ] {
        let case = case(experts, chosen, Scores::Sigmoid, with).expect("a case");
        let rows = 3;
        let of_row = |row: usize, count: usize| (0..count).map(move |e| number(row * 1000 + e));
        let of_all = |count: usize| -> Vec<f32> {
            let logits = (0..rows).flat_map(|row| of_row(row, count));
            logits.map(|x| 4.0 * x).collect()
        };
        let (ids, weights) = choose::<B>(&case, &of_all(experts), device);
        for shared in [Joined::Plain, Joined::Gated] {
            let width = experts + usize::from(shared == Joined::Gated);
            let logits = of_all(width);
            let case = Case {
                op: Route { shared, ..case.op },
                ..case
            };
            let (more_ids, more) = choose::<B>(&case, &logits, device);
            for row in 0..rows {
                let [own, with_one] = [chosen, chosen + 1].map(|n| row * n..(row + 1) * n);
                let (last, others) = more_ids[with_one.clone()].split_last().expect("ids");
                assert_eq!(others, &ids[own.clone()], "{case:?}");
                assert_eq!(*last, experts as i32);
                let (last, others) = more[with_one].split_last().expect("weights");
                assert_eq!(others, &weights[own]);
                let gate = f64::from(logits[(row + 1) * width - 1]);
                let want = match shared {
                    Joined::Gated => 1.0 / (1.0 + (-gate).exp()),
                    Joined::Plain | Joined::None => 1.0,
                };
                assert!((f64::from(*last) - want).abs() < 1e-6, "{last}, not {want}");
            }
        }
    }
}

#[test]
fn every_row_chooses_one_more_on_cpu_and_vulkan() {
    every_row_chooses_one_more::<Flex>(&Default::default());
    every_row_chooses_one_more::<Vulkan>(&WgpuDevice::Cpu);
}

/// Of equal logits the first are chosen; logits that are NaN choose experts that exist. There may be no rows.
fn ties_and_nan<B: AttentionBackend>(device: &B::Device) {
    let case = case(8, 4, Scores::Softmax, with(false, false, true)).expect("a case");
    let (ids, weights) = choose::<B>(&case, &[0.5; 8], device);
    assert_eq!(ids, [0, 1, 2, 3]);
    assert!(weights.iter().all(|w| (w - 0.25).abs() < 1e-6));
    let logits = [1.0, 1.0, 3.0, 3.0, 2.0, 2.0, 0.0, 0.0];
    assert_eq!(choose::<B>(&case, &logits, device).0, [2, 3, 4, 5]);
    let mut one = [0.0; 8];
    one[5] = f32::NAN;
    for logits in [one, [f32::NAN; 8]] {
        let (ids, _) = choose::<B>(&case, &logits, device);
        assert!(ids.iter().all(|id| (0..8).contains(id)), "{ids:?}");
    }
    let none = floats::<B>(&[], &[1, 0, 8], DType::F32, device);
    let outputs = run::<B>(&LayerOperation::Route(case.op).into(), vec![none]);
    for output in outputs.expect("no rows") {
        assert_eq!(output.shape().to_vec(), [1, 0, 4]);
    }
}

#[test]
fn ties_and_nan_on_cpu_and_vulkan() {
    ties_and_nan::<Flex>(&Default::default());
    ties_and_nan::<Vulkan>(&WgpuDevice::Cpu);
}
