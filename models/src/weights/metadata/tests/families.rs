//! Experts, windows in a part of the layers, YaRN.

use super::*;

/// The keys that all architectures of experts have.
fn experts(architecture: &str, own: Vec<Entry>) -> Vec<Entry> {
    let key = |name: &str| -> &'static str { format!("{architecture}.{name}").leak() };
    let common: Vec<Entry> = vec![
        (key("expert_count"), 8.into()),
        (key("expert_used_count"), 2.into()),
        (key("expert_feed_forward_length"), 24.into()),
    ];
    of(architecture, [common, own].concat())
}

/// The keys of linear attention.
fn linear() -> Vec<Entry> {
    vec![
        ("qwen35moe.ssm.conv_kernel", 4.into()),
        ("qwen35moe.ssm.state_size", 16.into()),
        ("qwen35moe.ssm.group_count", 2.into()),
        ("qwen35moe.ssm.time_step_rank", 4.into()),
        ("qwen35moe.ssm.inner_size", 64.into()),
    ]
}

fn without(mut metadata: Vec<Entry>, key: &str) -> Vec<Entry> {
    metadata.retain(|(other, _)| *other != key);
    metadata
}

#[test]
fn experts_are_read() {
    let dense = Tensor::floats("blk.1.ffn_gate.weight", &[2, 2], &[0.0; 4]);
    let beyond = Tensor::floats("blk.3.ffn_gate.weight", &[2, 2], &[0.0; 4]);
    let tensors = [embedding(), dense, beyond];
    let (config, sizes) = read(&experts("qwen3moe", vec![]), &tensors).expect("read");
    assert_eq!(config.family, Family::Qwen3Moe);
    let shape = sizes.experts.expect("experts");
    assert_eq!((shape.count, shape.chosen, shape.intermediate), (8, 2, 24));
    assert_eq!(shape.dense, [1]);
    assert!(shape.router.normalised && shape.shared.is_none());
    assert_eq!(sizes.intermediate, 128);
    // As large as a dense layer together.
    let key = "qwen3moe.expert_feed_forward_length";
    let all = without(experts("qwen3moe", vec![]), key);
    let (_, sizes) = read(&all, &[embedding()]).expect("read");
    assert_eq!(sizes.experts.expect("experts").intermediate, 64);

    let key = "qwen35moe.expert_shared_feed_forward_length";
    let own = [linear(), vec![(key, 32.into())]].concat();
    let metadata = without(experts("qwen35moe", own), "qwen35moe.feed_forward_length");
    let (config, sizes) = read(&metadata, &[embedding()]).expect("read");
    assert_eq!(config.family, Family::Qwen35Moe);
    let shape = sizes.experts.expect("experts");
    let shared = shape.shared.expect("a shared expert");
    assert_eq!((shared.intermediate, shared.gated), (32, true));
    assert_eq!((shape.intermediate, shape.dense.len()), (24, 0));
    assert!(sizes.linear.is_some());

    let own = vec![("gpt-oss.attention.sliding_window", 128.into())];
    let (config, sizes) = read(&experts("gpt-oss", own), &[embedding()]).expect("read");
    assert_eq!(config.family, Family::GptOss);
    assert!(config.sinks);
    let shape = sizes.experts.expect("experts");
    assert_eq!((shape.count, shape.chosen, shape.intermediate), (8, 2, 24));
}

#[test]
fn windows_in_a_part_of_the_layers_are_read() {
    let window = LayerKind::WindowAttention { window: 20 };
    let full = LayerKind::FullAttention;
    let gemma = |own: Vec<Entry>| {
        let metadata = of("gemma3", own);
        let (config, _) = read(&metadata, &[embedding()]).expect("read");
        assert_eq!(config.family, Family::Gemma3);
        config
    };
    let size = ("gemma3.attention.sliding_window", Stored::U32(20));
    let pattern = "gemma3.attention.sliding_window_pattern";
    assert_eq!(gemma(vec![size.clone()]).layers, [window; 3]);
    assert_eq!(gemma(vec![]).layers, [full; 3]);
    let every = gemma(vec![size.clone(), (pattern, 2.into())]);
    assert_eq!(every.layers, [window, full, window]);
    let flags = Stored::Bools(vec![false, true, true]);
    let listed = gemma(vec![size, (pattern, flags)]);
    assert_eq!(listed.layers, [full, window, window]);

    let own = vec![("gpt-oss.attention.sliding_window", 20.into())];
    let (config, _) = read(&experts("gpt-oss", own), &[embedding()]).expect("read");
    assert_eq!(config.layers, [window, full, window]);
    assert!(config.window_rope.is_none());
}

#[test]
fn gemma3_is_read() {
    let gemma = |own: Vec<Entry>| read(&of("gemma3", own), &[embedding()]).expect("read");
    let own = vec![
        ("gemma3.attention.sliding_window", 20.into()),
        ("gemma3.rope.scaling.type", "linear".into()),
        ("gemma3.rope.scaling.factor", 8.0.into()),
        ("gemma3.final_logit_softcapping", 30.0.into()),
    ];
    let (config, sizes) = gemma(own);
    let rope = config.rope.expect("rotated");
    assert_eq!(rope.theta, 500_000.0);
    assert_eq!(rope.scaling, RopeScaling::Linear { factor: 8.0 });
    let windows = config.window_rope.expect("rotated");
    assert_eq!(windows.theta, 10_000.0);
    assert_eq!(windows.scaling, RopeScaling::Default);
    // 1 / sqrt(16), the length of heads.
    assert_eq!(config.logit_scale, Some(0.25));
    assert_eq!((config.softcap, sizes.logit_softcap), (None, Some(30.0)));

    let own = vec![
        ("gemma3.rope.freq_base_swa", 20_000.0.into()),
        ("gemma3.attention.scale", 0.125.into()),
    ];
    let (config, _) = gemma(own);
    assert_eq!(config.window_rope.expect("rotated").theta, 20_000.0);
    assert_eq!(config.logit_scale, Some(0.125));
    // 62 layers are those of 27B parameters: 64 by 2 heads, of whatever length.
    let large = [
        ("gemma3.block_count", Stored::U32(62)),
        ("gemma3.attention.head_count", 2.into()),
        ("gemma3.attention.key_length", 16.into()),
    ];
    let metadata = large
        .into_iter()
        .fold(of("gemma3", vec![]), |all, (key, value)| {
            with(all, key, value)
        });
    let (config, _) = read(&metadata, &[embedding()]).expect("read");
    assert_eq!(config.logit_scale, Some(1.0 / 32f64.sqrt()));
}

#[test]
fn yarn_is_read() {
    let metadata = |own: Vec<Entry>| {
        let scaling: Vec<Entry> = vec![
            ("llama.rope.scaling.type", "yarn".into()),
            ("llama.rope.scaling.factor", 4.0.into()),
            ("llama.rope.scaling.original_context_length", 128.into()),
        ];
        [llama(), scaling, own].concat()
    };
    let yarn = |own: Vec<Entry>| {
        let (config, _) = read(&metadata(own), &[embedding()]).expect("read");
        match config.rope.expect("rotated").scaling {
            RopeScaling::Yarn {
                factor,
                range,
                amplitude,
            } => (factor, range, amplitude),
            other => panic!("{other:?}"),
        }
    };
    let (factor, [first, last], amplitude) = yarn(vec![]);
    assert_eq!((factor, first), (4.0, 0.0));
    assert_eq!(last, last.round());
    assert!((amplitude - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
    let slow = ("llama.rope.scaling.yarn_beta_slow", 4.0.into());
    assert!(yarn(vec![slow]).1[1] < last);
    let factor = ("llama.rope.scaling.yarn_attn_factor", 1.5.into());
    assert_eq!(yarn(vec![factor]).2, 1.5);
    let both = ("llama.rope.scaling.yarn_log_multiplier", 1.0.into());
    assert_eq!(yarn(vec![both]).2, 1.0);
    let extrapolated = ("llama.rope.scaling.yarn_ext_factor", 0.5.into());
    let error = refused(metadata(vec![extrapolated]), &[embedding()]);
    let expected = "`llama.rope.scaling.yarn_ext_factor` is 0.5";
    assert!(error.contains(expected), "{error}");

    // Of gpt-oss, the range is not rounded.
    let own = vec![
        ("gpt-oss.attention.sliding_window", 20.into()),
        ("gpt-oss.rope.scaling.type", "yarn".into()),
        ("gpt-oss.rope.scaling.factor", 4.0.into()),
        ("gpt-oss.rope.scaling.original_context_length", 128.into()),
    ];
    let (config, _) = read(&experts("gpt-oss", own), &[embedding()]).expect("read");
    let RopeScaling::Yarn { range, .. } = config.rope.expect("rotated").scaling else {
        panic!("not scaled")
    };
    assert!(range[1] < last && range[1] > last - 1.0, "{range:?}");
}

/// Matrices that are F32 in all files do not decide in which type a packed model computes.
#[test]
fn routers_do_not_decide_the_type() {
    let packed = Tensor {
        kind: 8,
        bytes: vec![0; 34 * 11 * 2],
        ..embedding()
    };
    let router = Tensor::floats("blk.0.ffn_gate_inp.weight", &[8, 64], &[0.0; 512]);
    let biases = Tensor::floats("blk.0.ffn_up_exps.bias", &[8, 24], &[0.0; 192]);
    let tensors = [packed, router, biases];
    let (config, _) = read(&experts("qwen3moe", vec![]), &tensors).expect("read");
    assert_eq!(config.dtype, butterfly_ir::Dtype::F16);
}

#[test]
fn what_does_not_run_is_named() {
    for (architecture, key, value, expected) in [
        ("qwen3moe", "qwen3moe.expert_count", 0.into(), "is 0"),
        (
            "qwen3moe",
            "qwen3moe.expert_used_count",
            9.into(),
            "at most 8",
        ),
        (
            "qwen3moe",
            "qwen3moe.expert_gating_func",
            2.into(),
            "`qwen3moe.expert_gating_func` is 2",
        ),
        (
            "qwen3moe",
            "qwen3moe.expert_group_count",
            4.into(),
            "`qwen3moe.expert_group_count` is 4",
        ),
        (
            "qwen3moe",
            "qwen3moe.expert_weights_norm",
            Stored::Bool(false),
            "`qwen3moe.expert_weights_norm` is false",
        ),
        (
            "qwen3moe",
            "qwen3moe.expert_weights_scale",
            2.5.into(),
            "`qwen3moe.expert_weights_scale` is 2.5",
        ),
        (
            "qwen3moe",
            "qwen3moe.attention.sliding_window",
            20.into(),
            "`qwen3moe.attention.sliding_window` is 20",
        ),
        (
            "gpt-oss",
            "gpt-oss.rope.freq_base_swa",
            5.0.into(),
            "`gpt-oss.rope.freq_base_swa` is 5",
        ),
        (
            "gpt-oss",
            "gpt-oss.attention.sliding_window",
            0.into(),
            "`gpt-oss.attention.sliding_window` is 0",
        ),
    ] {
        let window = ("gpt-oss.attention.sliding_window", 20.into());
        let metadata = with(experts(architecture, vec![window]), key, value);
        let error = refused(metadata, &[embedding()]);
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(".gguf"), "{error}");
    }
    for (architecture, missing) in [
        ("qwen3moe", "qwen3moe.expert_count"),
        ("qwen3moe", "qwen3moe.expert_used_count"),
        ("gpt-oss", "gpt-oss.expert_feed_forward_length"),
        ("gpt-oss", "gpt-oss.attention.sliding_window"),
    ] {
        let window = ("gpt-oss.attention.sliding_window", 20.into());
        let metadata = without(experts(architecture, vec![window]), missing);
        let error = refused(metadata, &[embedding()]);
        assert!(error.contains(&format!("has no `{missing}`")), "{error}");
    }
    let short = Stored::Bools(vec![true]);
    let own = vec![
        ("gemma3.attention.sliding_window", 20.into()),
        ("gemma3.attention.sliding_window_pattern", short),
    ];
    let error = refused(of("gemma3", own), &[embedding()]);
    let expected = "`gemma3.attention.sliding_window_pattern` is given for 1 layers of 3";
    assert!(error.contains(expected), "{error}");
}
