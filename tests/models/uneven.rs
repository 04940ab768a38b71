//! Texts of different lengths in one batch, against each of them alone.

use crate::support::{MODELS, cases, farthest, load, policy};
use butterfly::{AttentionBackend, Dtype};
use butterfly_models::{Logits, Model, ModelError, Policy, prompt_chunks};
use std::ops::Range;

/// Tokens that follow each prompt, one by one.
const NEW: usize = 9;

/// Prompts of different lengths are read together, as long as each is, then all go on: the logits are those of each text
/// alone. A model or pattern that does not take them says so, and its state goes on as before.
fn agree<B: AttentionBackend>(models: &[(&str, f32)], dtype: Dtype, device: &B::Device) {
    for (name, tolerance) in models {
        let model = load::<B>(name, dtype, device);
        let mut ran = 0;
        for case in cases(name) {
            let policy = policy(&model, &case);
            let longest = case.tokens.len() - NEW;
            let texts: Vec<Vec<u32>> = [longest, longest, longest / 2, 3]
                .into_iter()
                .enumerate()
                .map(|(i, prompt)| {
                    let tokens = case.tokens.iter().cycle().skip(5 * i);
                    tokens.take(prompt + NEW).copied().collect()
                })
                .collect();
            if policy.takes_no_lags().is_some() {
                refuses(&model, &policy);
                continue;
            }
            ran += 1;
            let together = together(&model, &policy, &texts);
            for (text, together) in texts.iter().zip(&together) {
                // With the same capacity, of which a part is not used.
                let alone = alone(&model, &policy, text, case.tokens.len());
                let off = farthest(&alone, together);
                let (name, length) = (&case.name, text.len());
                assert!(off <= *tolerance, "{name}, {length} tokens: {off}");
            }
        }
        assert_eq!(ran == 0, *name == "glm4_moe_lite", "{name}");
    }
}

/// Logits of each text; of a prompt those of its last chunk's last token.
fn together<B: AttentionBackend>(
    model: &Model<B>,
    policy: &Policy,
    texts: &[Vec<u32>],
) -> Vec<Vec<f32>> {
    let longest = texts[0].len();
    let mut state = model.state(texts.len(), Some(longest), policy);
    let mut found: Vec<Vec<f32>> = vec![Vec::new(); texts.len()];
    let prompts: Vec<usize> = texts.iter().map(|text| text.len() - NEW).collect();
    for chunk in prompt_chunks(&prompts, |_| 40) {
        let (
            open,
            Range {
                start: from,
                end: to,
            },
        ) = (chunk.prompts, chunk.tokens);
        state.only_first(open);
        let tokens: Vec<u32> = texts[..open]
            .iter()
            .flat_map(|text| &text[from..to])
            .copied()
            .collect();
        let logits = model
            .forward(&tokens, &mut state, policy, Logits::Last)
            .expect("runs");
        let rows: Vec<f32> = logits.into_data().convert::<f32>().into_vec().expect("f32");
        let each = rows.len() / open;
        for i in chunk.ended {
            found[i].extend(&rows[i * each..][..each]);
        }
    }
    state.only_first(texts.len());
    for step in 0..NEW {
        let next: Vec<u32> = texts
            .iter()
            .map(|text| text[text.len() - NEW + step])
            .collect();
        let logits = model
            .forward(&next, &mut state, policy, Logits::Last)
            .expect("runs");
        let rows: Vec<f32> = logits.into_data().convert::<f32>().into_vec().expect("f32");
        let each = rows.len() / texts.len();
        for (found, row) in found.iter_mut().zip(rows.chunks(each)) {
            found.extend(row);
        }
    }
    assert_eq!(state.position(), longest);
    let lags: Vec<usize> = texts.iter().map(|text| longest - text.len()).collect();
    assert_eq!(state.lags(), lags);
    found
}

/// The same logits of a text by itself.
fn alone<B: AttentionBackend>(
    model: &Model<B>,
    policy: &Policy,
    text: &[u32],
    capacity: usize,
) -> Vec<f32> {
    let mut state = model.state(1, Some(capacity), policy);
    let logits = model
        .forward(text, &mut state, policy, Logits::All)
        .expect("runs");
    let all: Vec<f32> = logits.into_data().convert::<f32>().into_vec().expect("f32");
    let each = all.len() / text.len();
    all[(text.len() - NEW - 1) * each..].to_vec()
}

fn refuses<B: AttentionBackend>(model: &Model<B>, policy: &Policy) {
    let mut state = model.state(2, Some(16), policy);
    let mut run = |sequences: usize, tokens: &[u32]| {
        state.only_first(sequences);
        model
            .forward(tokens, &mut state, policy, Logits::Last)
            .map(drop)
    };
    run(2, &[1, 2, 3, 4]).expect("equal lengths");
    let error = run(1, &[5]).expect_err("different lengths");
    assert!(matches!(error, ModelError::Uneven(_)), "{error}");
    run(2, &[5, 6]).expect("equal lengths");
}

#[test]
fn cpu_texts_of_different_lengths() {
    agree::<burn_flex::Flex>(&MODELS, Dtype::F32, &Default::default());
}

#[test]
fn vulkan_texts_of_different_lengths() {
    let few: Vec<_> = MODELS
        .into_iter()
        .filter(|(name, _)| FEW.contains(name))
        .collect();
    agree::<burn_wgpu::Vulkan>(&few, Dtype::F32, &burn_wgpu::WgpuDevice::Cpu);
}

/// Windows, and linear attention.
const FEW: [&str; 2] = ["gemma3", "qwen3_5"];

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-models -- --ignored cuda"]
fn cuda_texts_of_different_lengths() {
    agree::<burn_cuda::Cuda>(&MODELS, Dtype::F32, &Default::default());
}
