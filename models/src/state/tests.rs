//! States that forget, go back, and survive a chunk that fails.

use super::*;
use crate::{Checkpoint, Logits, Model, Policy, read_config};
use burn_flex::Flex;
use butterfly::{Dtype, Plan, Sparsity, kept_at_most};
use butterfly_tests::fixture;

/// Tokens of the text: several times what a layer with a window keeps.
const TOKENS: usize = 700;
/// The window of the fixture's layers, and the blocks of kernels for layers that keep it.
const WINDOW: usize = 20;
const BLOCK: usize = 128;

fn mistral() -> Model<Flex> {
    let folder = Checkpoint::open(&fixture("models").join("mistral")).expect("a folder");
    let (model, _) = Model::load(&folder, Dtype::F32, &Default::default()).expect("a model");
    model
}

fn text() -> Vec<u32> {
    (0..TOKENS as u32).map(|i| i * i * 7 % 251).collect()
}

fn caches(state: &State<Flex>) -> impl Iterator<Item = &KvCache<Flex>> {
    state.layers.iter().filter_map(|layer| match layer {
        LayerState::Attention(cache) => Some(cache),
        LayerState::Linear(_) => None,
    })
}

fn numbers(logits: Tensor<Flex, 3>) -> Vec<f32> {
    logits.into_data().into_vec().expect("f32")
}

/// Logits of a text in chunks equal those of the whole text, of which nothing is dropped.
fn equal_in_chunks(model: &Model<Flex>, policy: &Policy, forgets: [bool; 4]) {
    let text = text();
    let run = |chunk: usize, capacity| {
        let mut state = model.state(1, capacity, policy);
        let mut logits = Vec::new();
        for tokens in text.chunks(chunk) {
            let chunk = model.forward(tokens, &mut state, policy, Logits::All);
            logits.extend(numbers(chunk.expect("a chunk")));
        }
        (logits, state)
    };
    let (whole, state) = run(TOKENS, Some(TOKENS));
    assert!(caches(&state).all(|cache| cache.first() == 0));
    for (chunk, capacity) in [(1, Some(TOKENS)), (7, None), (64, Some(TOKENS))] {
        let (parts, state) = run(chunk, capacity);
        let off = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs());
        let off = off.fold(0.0, f32::max);
        // Products of a few rows sum in another order than those of many.
        assert!(off <= 2e-5, "in chunks of {chunk}: {off}");
        let most = kept_at_most(WINDOW as u64, chunk as u64, BLOCK as u64) as usize;
        for (cache, forgets) in caches(&state).zip(forgets) {
            assert_eq!(cache.first() > 0, forgets, "in chunks of {chunk}");
            assert!(!forgets || cache.room() <= most);
            assert!(forgets || cache.room() >= TOKENS);
        }
    }
}

#[test]
fn layers_with_a_window_forget_and_give_the_same_logits() {
    let model = mistral();
    let policy = Policy::dense(&model.config, &Plan::dense()).expect("a policy");
    equal_in_chunks(&model, &policy, [true; 4]);
    // Three layers keep their window, one sees the first tokens of the text too.
    let pattern = "layers 2 block 8 causal & (window(30) | sink(1))";
    let sparsity = Sparsity::parse("test", pattern).expect("a pattern");
    let plan = Plan::new(sparsity.clone()).expect("a plan");
    let policy = Policy::new(&model.config, &plan, &sparsity).expect("a policy");
    equal_in_chunks(&model, &policy, [true, true, false, true]);
}

/// The last layer fails, after the layers before it have dropped tokens to take the chunk.
#[test]
fn a_state_that_forgets_survives_a_chunk_that_fails() {
    let (model, text) = (mistral(), text());
    let policy = Policy::dense(&model.config, &Plan::dense()).expect("a policy");
    let forward = |state: &mut State<Flex>, tokens: &[u32]| {
        model.forward(tokens, state, &policy, Logits::All)
    };
    let mut state = model.state(1, Some(TOKENS), &policy);
    forward(&mut state, &text[..100]).expect("a chunk");
    // As much as there is room for.
    let room = caches(&state).next().expect("a layer").room();
    forward(&mut state, &text[100..room]).expect("a chunk");
    assert!(caches(&state).all(|cache| cache.first() == 0));
    let mut undisturbed = state.clone();
    let next = &text[room..room + 50];
    let want = numbers(forward(&mut undisturbed, next).expect("a chunk"));
    assert!(caches(&undisturbed).all(|cache| cache.first() > 0));

    let right = state.layers[3].clone();
    let mut wrong = KvCache::new([1, 1, 8], room, BLOCK, &Default::default());
    let rows = Tensor::zeros([1, room, 24], &Default::default());
    let append = butterfly::Append {
        q_heads: 1,
        kv_heads: 1,
        head_dim: 8,
        q_step: 8,
        starts: [0, 8, 16],
        position: 0,
        lagging: false,
        norm: None,
        rotated: 0,
        interleaved: false,
    };
    let inputs = [rows.clone(), rows.clone(), rows];
    wrong.append(inputs, None, None, append).expect("append");
    state.layers[3] = LayerState::Attention(wrong);
    let error = forward(&mut state, next).expect_err("a cache of other heads");
    assert!(matches!(error, ModelError::Operation(_)), "{error}");
    assert_eq!(state.position(), room);
    assert!(caches(&state).next().is_some_and(|cache| cache.first() > 0));

    state.layers[3] = right;
    let got = numbers(forward(&mut state, next).expect("as before"));
    assert_eq!(got, want);
}

/// A pattern that sees more than the caches of a state keep is refused.
#[test]
fn a_state_that_forgets_is_for_its_policy() {
    let model = mistral();
    let dense = Policy::dense(&model.config, &Plan::dense()).expect("a policy");
    for (pattern, fits) in [
        ("block 128 causal & window(10)", true),
        ("block 64 causal & window(20)", true),
        ("block 128 causal & window(21)", false),
        ("block 48 causal & window(20)", false),
        ("block 128 causal & (window(5) | sink(1))", false),
        ("causal", false),
    ] {
        let sparsity = Sparsity::parse("test", pattern).expect("a pattern");
        let plan = Plan::new(sparsity.clone()).expect("a plan");
        let other = Policy::new(&model.config, &plan, &sparsity).expect("a policy");
        let mut state = model.state(1, Some(64), &dense);
        let result = model.forward(&[1, 2, 3], &mut state, &other, Logits::Last);
        match (result, fits) {
            (Ok(_), true) => {}
            (Err(ModelError::State(what)), false) => assert!(what.contains("forgets")),
            (other, _) => panic!("{pattern}: {:?}", other.map(|_| ())),
        }
    }
}

/// What follows a cut is what follows the same tokens in a new state.
#[test]
fn a_state_goes_back() {
    let models = [
        ("gpt2", 3),
        ("llama", 3),
        ("glm4_moe_lite", 3),
        ("qwen3_5", 0),
    ];
    for (name, kept) in models {
        let path = fixture("models").join(name).join("config.json");
        let (config, sizes) = read_config(&path).expect("a config");
        let model = Model::<Flex>::random(&config, &sizes, None, Dtype::F32, &Default::default());
        let model = model.expect("a model");
        let policy = Policy::dense(&config, &Plan::dense()).expect("a policy");
        let read = |state: &mut State<Flex>, tokens: &[u32]| -> Vec<f32> {
            let logits = model.forward(tokens, state, &policy, Logits::Last);
            let data = logits.expect("logits").into_data();
            data.into_vec().expect("f32")
        };
        let new = || model.state(1, Some(16), &policy);
        let mut state = new();
        read(&mut state, &[1, 2, 3, 4, 5]);
        assert_eq!(state.truncate(9), 5);
        assert_eq!(state.truncate(5), 5);
        assert_eq!((state.truncate(3), state.position()), (kept, kept));
        let tokens = [1, 2, 3, 6, 7, 8];
        let got = read(&mut state, &tokens[kept..]);
        let mut other = new();
        read(&mut other, &tokens[..3]);
        let want = match kept {
            0 => read(&mut new(), &tokens),
            _ => read(&mut other, &tokens[3..]),
        };
        // The kept tokens were read in a chunk of another size, whose sums have another order.
        let error = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
        let error = error.fold(0.0, f32::max);
        assert!(error < 1e-5, "{name}: {error}");
        assert_eq!(got.len(), want.len());
        assert_eq!((state.truncate(0), state.position()), (0, 0));
        assert_eq!(
            read(&mut state, &tokens),
            read(&mut new(), &tokens),
            "{name}"
        );
    }
}
