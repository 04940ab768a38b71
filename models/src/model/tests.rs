//! What does not go together is refused, and a chunk that fails changes nothing.

use super::*;
use crate::read_config;
use burn_flex::Flex;
use butterfly::{KvCache, Plan};
use butterfly_tests::fixture;

fn model(name: &str) -> (Model<Flex>, Policy) {
    let path = fixture("models").join(name).join("config.json");
    let (config, sizes) = read_config(&path).expect("a config");
    let model = Model::random(&config, &sizes, None, Dtype::F32, &Default::default());
    let policy = Policy::dense(&config, &Plan::dense()).expect("a policy");
    (model.expect("a model"), policy)
}

fn values(logits: Tensor<Flex, 3>) -> Vec<f32> {
    logits.into_data().into_vec().expect("f32")
}

/// The last layer with a KV cache fails, after the layers before it have taken the chunk.
#[test]
fn a_state_survives_a_chunk_that_fails() {
    for name in ["gpt2", "llama", "mistral", "glm4_moe_lite", "qwen3_5"] {
        let (model, policy) = model(name);
        let device = *model.device();
        let forward = |state: &mut State<Flex>, tokens: &[u32]| {
            model.forward(tokens, state, &policy, Logits::All)
        };
        let mut state = model.state(1, Some(16), &policy);
        forward(&mut state, &[1, 2, 3]).expect("a chunk");
        let mut undisturbed = state.clone();
        let want = values(forward(&mut undisturbed, &[4, 5]).expect("a chunk"));

        let mut caches = state.layers.iter();
        let at = caches
            .rposition(|layer| matches!(layer, LayerState::Attention(_)))
            .expect("a layer with a cache");
        let right = state.layers[at].clone();
        let mut wrong = KvCache::new([1, 1, 4], 16, 16, &device);
        let rows = Tensor::zeros([1, 3, 12], &device);
        let append = butterfly::Append {
            q_heads: 1,
            kv_heads: 1,
            head_dim: 4,
            q_step: 4,
            starts: [0, 4, 8],
            position: 0,
            lagging: false,
            norm: None,
            rotated: 0,
            interleaved: false,
        };
        let inputs = [rows.clone(), rows.clone(), rows];
        wrong.append(inputs, None, None, append).expect("append");
        state.layers[at] = LayerState::Attention(wrong);
        let error = forward(&mut state, &[4, 5]).expect_err("a cache of other heads");
        assert!(matches!(error, ModelError::Operation(_)), "{error}");
        assert_eq!(state.position(), 3);

        state.layers[at] = right;
        let got = values(forward(&mut state, &[4, 5]).expect("as before"));
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn what_does_not_go_together_is_an_error() {
    let (model, policy) = model("llama");
    let (other, other_policy) = self::model("qwen3_5");
    let run = |state: &mut State<Flex>, policy: &Policy, tokens: &[u32]| {
        let result = model.forward(tokens, state, policy, Logits::Last);
        result.expect_err("refused").to_string()
    };
    let mut two = model.state(2, None, &policy);
    assert!(run(&mut two, &policy, &[1, 2, 3]).contains("3 tokens are no chunk for 2 texts"));
    assert!(run(&mut two, &policy, &[]).contains("no chunk"));
    assert!(run(&mut model.state(0, None, &policy), &policy, &[1]).contains("no chunk"));
    let mut others = other.state(1, None, &other_policy);
    assert!(run(&mut others, &policy, &[1]).contains("another model"));
    let mut own = model.state(1, None, &policy);
    assert!(run(&mut own, &other_policy, &[1]).contains("another model"));
    // The state of a device that has failed: caches shorter than the position says.
    own.position = 3;
    assert!(run(&mut own, &policy, &[1]).contains("lost"));
}
