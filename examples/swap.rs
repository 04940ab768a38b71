//! Replaces the attention of an existing Burn model by attention with a pattern: the weights stay,
//! and only one field of the model changes.

use burn::nn::attention::generate_autoregressive_mask;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::prelude::*;
use burn::tensor::Distribution;
use burn_flex::Flex;
use butterfly::{Attention, OperationError, Plan, Sparsity, pattern};

/// A block of the model with Burn's own attention.
fn dense<B: Backend>(attention: &MultiHeadAttention<B>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [batch, tokens, _] = x.dims();
    let mask = generate_autoregressive_mask(batch, tokens, &x.device());
    let input = MhaInput::self_attn(x.clone()).mask_attn(mask);
    x + attention.forward(input).context
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Default::default();
    let attention = MultiHeadAttentionConfig::new(128, 4)
        .with_dropout(0.0)
        .init::<Flex>(&device);
    let x = Tensor::random([1, 1000, 128], Distribution::Default, &device);
    let before = dense(&attention, x.clone());

    // The swap: the same layer, with the same weights, by a pattern.
    let swap = |sparsity: Sparsity| {
        let plan = Plan::new(sparsity)?;
        Ok::<_, OperationError>(Attention::replace(attention.clone(), plan, 0))
    };
    let causal = swap(pattern! { block 64 causal })?;
    let sparse = swap(pattern! {
        block 64
        causal & (local(1) | partner(causal_shift, radix=2) | sink(1))
    })?;

    let after = |attention: &Attention<Flex>| {
        Ok::<_, Box<dyn std::error::Error>>(x.clone() + attention.forward(x.clone())?)
    };
    let distance = |a: Tensor<Flex, 3>| (a - before.clone()).abs().max().into_scalar();
    let same = distance(after(&causal)?);
    let changed = distance(after(&sparse)?);
    println!("causal attention by its kernel: {same:.1e} from Burn's own");
    println!("by the pattern: {changed:.1e}");
    assert!(same < 1e-5 && changed > same);
    Ok(())
}
