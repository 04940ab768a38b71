//! Continues a text with a model whose attention layers follow a pattern: `generate DIR PROMPT`,
//! where `DIR` is a Hugging Face folder of a family that runs: GPT-2,
//! Llama, Mistral, Phi-3, Qwen2, Qwen3 or Qwen3.5.

use burn_flex::Flex;
use butterfly::{Dtype, Plan, pattern};
use butterfly_models::{Chat, Checkpoint, Logits, Model, Policy, Sampler, Sampling};
use std::io::Write;
use std::path::PathBuf;

/// Number of tokens to generate.
const TOKENS: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("give a model folder and a prompt".into());
    };
    let dir = PathBuf::from(dir);
    let (folder, chat) = (Checkpoint::open(&dir)?, Chat::open(&dir)?);
    let (model, _) = Model::<Flex>::load(&folder, Dtype::F32, &Default::default())?;

    let plan = Plan::new(pattern! {
        block 16
        causal & (local(1) | partner(causal_shift, radix=2) | sink(1))
    })?;
    let policy = Policy::new(&model.config, &plan, plan.sparsity())?;

    let prompt = chat.encode(&prompt, true)?;
    let mut state = model.state(1, Some(prompt.len() + TOKENS), &policy);
    let mut sampler = Sampler::new(Sampling {
        temperature: 0.7,
        ..Sampling::default()
    });
    let mut logits = model.forward(&prompt, &mut state, &policy, Logits::Last)?;
    for _ in 0..TOKENS {
        let token = sampler.next(
            &logits
                .into_data()
                .convert::<f32>()
                .into_vec::<f32>()
                .map_err(|e| format!("{e:?}"))?,
        );
        if model.sizes.ends.contains(&token) {
            break;
        }
        print!("{}", chat.decode(&[token])?);
        std::io::stdout().flush()?;
        logits = model.forward(&[token], &mut state, &policy, Logits::Last)?;
    }
    println!();
    Ok(())
}
