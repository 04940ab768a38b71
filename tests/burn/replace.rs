//! `Attention::replace` for every field of Burn's module: the results are those of Burn's own
//! module, or the field is refused.

use crate::{numbers, random};
use burn::module::Param;
use burn::nn::attention::{
    MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask,
};
use burn::prelude::*;
use burn_flex::Flex;
use butterfly::{Attention, OperationError, Plan};

const SHAPE: [usize; 3] = [2, 70, 64];

/// A module with random weights and biases.
fn module(config: &MultiHeadAttentionConfig) -> MultiHeadAttention<Flex> {
    let device = Default::default();
    let mut module = config.init::<Flex>(&device);
    for linear in [
        &mut module.query,
        &mut module.key,
        &mut module.value,
        &mut module.output,
    ] {
        linear.bias = Some(Param::from_tensor(random::<Flex, 1>([64], &device)));
    }
    module
}

fn config() -> MultiHeadAttentionConfig {
    MultiHeadAttentionConfig::new(64, 4)
}

/// The output of Burn's module with a causal mask.
fn own(module: &MultiHeadAttention<Flex>, x: &Tensor<Flex, 3>) -> Vec<f32> {
    let mask = generate_autoregressive_mask::<Flex>(SHAPE[0], SHAPE[1], &x.device());
    let input = MhaInput::self_attn(x.clone()).mask_attn(mask);
    numbers(&module.forward(input).context)
}

fn replaced(
    module: MultiHeadAttention<Flex>,
    x: &Tensor<Flex, 3>,
) -> Result<Vec<f32>, OperationError> {
    let y = Attention::replace(module, Plan::dense(), 0).forward(x.clone())?;
    Ok(numbers(&y))
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    let pairs = got.iter().zip(want);
    let off = pairs.fold(0.0, |off: f32, (a, b)| off.max((a - b).abs()));
    assert!(off < 1e-5, "{off}");
}

#[track_caller]
fn agrees(config: MultiHeadAttentionConfig) {
    let x = random::<Flex, 3>(SHAPE, &Default::default());
    let module = module(&config);
    let want = own(&module, &x);
    assert_close(&replaced(module, &x).expect("attention"), &want);
}

#[test]
fn projections_and_biases() {
    agrees(config());
}

#[test]
fn no_biases() {
    let x = random::<Flex, 3>(SHAPE, &Default::default());
    let mut module = module(&config());
    module.key.bias = None;
    module.output.bias = None;
    let want = own(&module, &x);
    assert_close(&replaced(module, &x).expect("attention"), &want);
}

#[test]
fn numbers_of_heads() {
    for heads in [1, 2, 8, 64] {
        agrees(MultiHeadAttentionConfig::new(64, heads));
    }
}

#[test]
fn quiet_softmax() {
    agrees(config().with_quiet_softmax(true));
}

/// Dropout changes nothing without gradients; backends that track gradients are refused.
#[test]
fn dropout() {
    agrees(config().with_dropout(0.9));
    type B = burn::backend::Autodiff<Flex>;
    let device = Default::default();
    let module = config().with_dropout(0.9).init::<B>(&device);
    let module = Attention::replace(module, Plan::dense(), 0);
    let result = module.forward(random::<B, 3>(SHAPE, &device));
    assert!(matches!(result, Err(OperationError::Gradients("attend"))));
}

#[test]
fn min_float() {
    for masked in [-1e4, -1e3, -1e30, f64::NEG_INFINITY] {
        agrees(config().with_min_float(masked));
    }
    let x = random::<Flex, 3>(SHAPE, &Default::default());
    for masked in [-1.0, 0.0, -999.0, f64::NAN, f64::INFINITY] {
        let module = module(&config().with_min_float(masked));
        let error = replaced(module, &x).expect_err("masked keys have weight");
        let text = error.to_string();
        assert!(text.contains("min_float"), "{text}");
    }
}

/// With padding at the end of a text, no mask is needed: the outputs of its tokens are the same.
#[test]
fn masks_of_padding() {
    let x = random::<Flex, 3>(SHAPE, &Default::default());
    let module = module(&config());
    let mask = generate_autoregressive_mask::<Flex>(SHAPE[0], SHAPE[1], &x.device());
    let pad = Tensor::<Flex, 2, Bool>::from_data(
        TensorData::new(
            (0..2 * 70).map(|i| i % 70 >= 40).collect::<Vec<bool>>(),
            [2, 70],
        ),
        &x.device(),
    );
    let input = MhaInput::self_attn(x.clone()).mask_attn(mask).mask_pad(pad);
    let tokens = |y: Tensor<Flex, 3>| numbers(&y.slice([0..2, 0..40, 0..64]));
    let want = tokens(module.forward(input).context);
    let y = Attention::replace(module, Plan::dense(), 0).forward(x);
    assert_close(&tokens(y.expect("attention")), &want);
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let device = Default::default();
    let x = random::<Flex, 3>(SHAPE, &device);
    let mut module = module(&config());
    module.n_heads = 7;
    let error = replaced(module, &x).expect_err("64 is no multiple of 7");
    assert_eq!(
        error.to_string(),
        "attend: `query` gives 64 elements, which 7 heads do not divide"
    );
    let error = replaced(self::module(&config()), &random([2, 70, 32], &device));
    assert_eq!(
        error.expect_err("rows of 32").to_string(),
        "attend: `query` takes rows of 64 elements, but is given 32"
    );
    let none = butterfly::AttentionConfig::new(64, 0, 0).init::<Flex>(Plan::dense(), 0, &device);
    assert!(none.forward(x).is_err());
}
