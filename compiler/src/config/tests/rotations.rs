//! The scaling `yarn`; rotations of layers with windows; and what gemma3 and gpt-oss do with logits.

use super::*;
use std::f64::consts::TAU;

/// A config of six layers that gives what every family needs, with `changes` put over it.
fn config(family: &str, changes: Value) -> String {
    let least = json!({"model_type": family, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 2, "hidden_size": 1024, "head_dim": 128,
        "max_position_embeddings": 32768});
    changed(&least.to_string(), changes).to_string()
}

fn model(family: &str, changes: Value) -> ModelConfig {
    good(&config(family, changes))
}

/// A Llama with this rotation, of which `rope_theta` is a million.
fn scaled(rope: Value) -> Rope {
    let changes = json!({"rope_theta": 1_000_000, "rope_scaling": rope});
    model("llama", changes).rope.expect("it rotates")
}

/// The parameters of YaRN (arXiv:2309.00071): s, L, and alpha and beta of section 3.2 as the number of turns.
#[derive(Clone, Copy)]
struct Yarn {
    theta: f64,
    dims: f64,
    factor: f64,
    original: f64,
    slow: f64,
    fast: f64,
    truncate: bool,
}

/// With the values of the paper.
const YARN: Yarn = Yarn {
    theta: 1_000_000.0,
    dims: 128.0,
    factor: 4.0,
    original: 32_768.0,
    slow: 1.0,
    fast: 32.0,
    truncate: true,
};

impl Yarn {
    /// Frequencies as `_compute_yarn_parameters` of transformers 5.24 computes them: between the pairs with `fast`
    /// and `slow` turns within the original length, the share that is divided by s rises from 0 to 1.
    fn frequencies(&self) -> Vec<f64> {
        let pair = |turns: f64| {
            let wavelength = self.original / turns;
            self.dims * (wavelength / TAU).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair(self.fast), pair(self.slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(self.dims - 1.0));
        if low == high {
            high += 0.001;
        }
        let of = |(i, plain): (usize, f64)| {
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            plain / self.factor * divided + plain * (1.0 - divided)
        };
        self.plain().into_iter().enumerate().map(of).collect()
    }

    fn plain(&self) -> Vec<f64> {
        let pairs = (0..self.dims as usize / 2).map(|i| 2.0 * i as f64);
        pairs.map(|i| self.theta.powf(-i / self.dims)).collect()
    }
}

/// The frequencies that a rotation describes.
fn frequencies(rope: &Rope) -> Vec<f64> {
    let RopeScaling::Yarn {
        factor,
        range: [kept, divided],
        ..
    } = rope.scaling
    else {
        panic!("another scaling: {rope:?}");
    };
    let of = |i: u32| {
        let plain = rope.theta.powf(-f64::from(2 * i) / f64::from(rope.dims));
        let share = ((f64::from(i) - kept) / (divided - kept)).clamp(0.0, 1.0);
        share * plain / factor + (1.0 - share) * plain
    };
    (0..rope.dims / 2).map(of).collect()
}

fn amplitude(rope: &Rope) -> f64 {
    match rope.scaling {
        RopeScaling::Yarn { amplitude, .. } => amplitude,
        _ => panic!("another scaling: {rope:?}"),
    }
}

#[track_caller]
fn assert_near(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (got / want - 1.0).abs();
        assert!(off < 1e-12, "{i}: {got}, not {want}");
    }
}

#[test]
fn yarn_keeps_fast_frequencies_and_divides_slow_ones() {
    let usual =
        json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768});
    let with = |more: Value| {
        let mut rope = usual.clone();
        for (name, value) in more.as_object().expect("an object") {
            rope[name] = value.clone();
        }
        rope
    };
    let exact = Yarn {
        truncate: false,
        ..YARN
    };
    for (rope, yarn) in [
        (usual.clone(), YARN),
        // The older name, and the length from beside the rotation.
        (json!({"type": "yarn", "factor": 4.0}), YARN),
        (with(json!({"truncate": true})), YARN),
        (with(json!({"truncate": false})), exact),
        (
            with(json!({"factor": 40, "beta_fast": 16, "beta_slow": 0.5, "truncate": false})),
            Yarn {
                factor: 40.0,
                slow: 0.5,
                fast: 16.0,
                ..exact
            },
        ),
        // No pair turns 32 times in so few tokens.
        (
            with(json!({"original_max_position_embeddings": 64})),
            Yarn {
                original: 64.0,
                ..YARN
            },
        ),
        // A ramp without length is a step.
        (
            with(json!({"beta_fast": 4, "beta_slow": 4, "truncate": false})),
            Yarn {
                slow: 4.0,
                fast: 4.0,
                ..exact
            },
        ),
        (
            with(json!({"partial_rotary_factor": 0.5})),
            Yarn { dims: 64.0, ..YARN },
        ),
    ] {
        let rope = scaled(rope);
        assert_eq!((rope.theta, f64::from(rope.dims)), (yarn.theta, yarn.dims));
        assert_near(&frequencies(&rope), &yarn.frequencies());
    }
    let given = json!({"rope_theta": 150_000, "rope_type": "yarn", "factor": 32.0,
        "original_max_position_embeddings": 4096, "truncate": false});
    let rope = model("gpt_oss", json!({"rope_parameters": given, "head_dim": 64}));
    let gpt_oss = Yarn {
        theta: 150_000.0,
        dims: 64.0,
        factor: 32.0,
        original: 4096.0,
        ..exact
    };
    assert_near(
        &frequencies(&rope.rope.expect("it rotates")),
        &gpt_oss.frequencies(),
    );
}

/// Section 3.2: frequencies with more turns than beta stay, those with fewer than alpha are divided, and all others
/// lie between.
#[test]
fn yarn_goes_by_turns() {
    let rope = scaled(json!({"rope_type": "yarn", "factor": 4.0, "truncate": false}));
    let mut counts = [0; 3];
    for (got, plain) in frequencies(&rope).into_iter().zip(YARN.plain()) {
        let turns = YARN.original * plain / TAU;
        let (kept, divided) = (plain, plain / YARN.factor);
        let near = |want: f64| (got / want - 1.0).abs() < 1e-12;
        let (kind, right) = match turns {
            turns if turns >= YARN.fast => (0, near(kept)),
            turns if turns <= YARN.slow => (1, near(divided)),
            _ => (2, divided < got && got < kept),
        };
        assert!(right, "{turns} turns: {got}");
        counts[kind] += 1;
    }
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
}

/// Section 3.4, and the fields that replace it.
#[test]
fn yarn_has_an_amplitude() {
    let usual = 0.1 * 4f64.ln() + 1.0;
    let of = |scale: f64| 0.1 * scale * 4f64.ln() + 1.0;
    for (more, expected) in [
        (json!({}), usual),
        (json!({"attention_factor": 1.25}), 1.25),
        (json!({"attention_factor": null}), usual),
        (
            json!({"mscale": 0.7, "mscale_all_dim": 0.4}),
            of(0.7) / of(0.4),
        ),
        (json!({"mscale": 1.0, "mscale_all_dim": 1.0}), 1.0),
        // One alone says nothing.
        (json!({"mscale": 0.7}), usual),
        (json!({"mscale_all_dim": 0.7}), usual),
        (
            json!({"attention_factor": 2, "mscale": 0.7, "mscale_all_dim": 0.4}),
            2.0,
        ),
        (json!({"factor": 1}), 1.0),
        (
            json!({"factor": 0.5, "mscale": 0.7, "mscale_all_dim": 0.4}),
            1.0,
        ),
    ] {
        let mut rope = json!({"rope_type": "yarn", "factor": 4.0});
        for (name, value) in more.as_object().expect("an object") {
            rope[name] = value.clone();
        }
        let got = amplitude(&scaled(rope));
        assert!((got - expected).abs() < 1e-12, "{more}: {got}");
    }
}

#[test]
fn yarn_that_is_refused() {
    let above = "a number above 0";
    for (field, given, expected) in [
        ("factor", json!(0), above),
        ("factor", json!("4"), above),
        (
            "original_max_position_embeddings",
            json!(0),
            "a whole number from 1 to 4294967295",
        ),
        ("attention_factor", json!(-1), above),
        ("mscale", json!(0), above),
        ("mscale_all_dim", json!(-0.5), above),
        ("beta_fast", json!(0), above),
        ("beta_slow", json!("1"), above),
        ("truncate", json!("no"), "true or false"),
    ] {
        let mut rope = json!({"rope_type": "yarn", "factor": 4.0});
        rope[field] = given.clone();
        assert_eq!(
            message(&config("llama", json!({"rope_scaling": rope}))),
            format!("config.json: `rope_scaling.{field}` is {given}: give {expected}")
        );
    }
    assert_eq!(
        message(&config(
            "llama",
            json!({"rope_parameters": {"rope_type": "yarn"}})
        )),
        "config.json: `rope_parameters.factor` is missing: give a number above 0"
    );
}

/// The rotations of gemma3: of layers without a window, and of those with one.
fn both(changes: Value) -> [Rope; 2] {
    let model = model("gemma3_text", changes);
    let window = LayerKind::WindowAttention { window: 7 };
    let kinds = [LayerKind::FullAttention, window];
    let ropes = kinds.map(|kind| model.rope_of(kind).cloned().expect("it rotates"));
    assert_eq!(model.window_rope.as_ref(), Some(&ropes[1]));
    ropes
}

#[test]
fn layers_of_gemma3_with_windows_rotate_in_another_way() {
    let linear = |theta| Rope {
        scaling: RopeScaling::Linear { factor: 8.0 },
        ..plain_rope(theta, 128)
    };
    let (full, window) = (plain_rope(1_000_000.0, 128), plain_rope(10_000.0, 128));
    let scaling = json!({"rope_type": "linear", "factor": 8.0});
    for (changes, expected) in [
        (json!({}), [full.clone(), window.clone()]),
        (
            json!({"rope_theta": 2e6, "rope_local_base_freq": 5000}),
            [plain_rope(2e6, 128), plain_rope(5000.0, 128)],
        ),
        // Only layers without a window are scaled.
        (
            json!({"rope_scaling": scaling}),
            [linear(1_000_000.0), window.clone()],
        ),
        (
            json!({"rope_parameters": {
                "full_attention": {"rope_theta": 3e6, "rope_type": "linear", "factor": 8},
                "sliding_attention": {"rope_theta": 20_000.0, "rope_type": "default"}}}),
            [linear(3e6), plain_rope(20_000.0, 128)],
        ),
        (
            json!({"rope_parameters": {"sliding_attention": scaling}}),
            [full.clone(), linear(10_000.0)],
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 3e6}},
                "rope_local_base_freq": 5000}),
            [plain_rope(3e6, 128), plain_rope(5000.0, 128)],
        ),
    ] {
        assert_eq!(both(changes.clone()), expected, "{changes}");
    }
    // Others rotate all layers alike.
    for family in ["llama", "mistral", "gpt_oss", "qwen3_moe"] {
        let model = model(family, json!({}));
        assert_eq!(model.window_rope, None);
        let window = LayerKind::WindowAttention { window: 7 };
        assert_eq!(model.rope_of(window), model.rope.as_ref());
    }
}

#[test]
fn rotations_that_are_refused_are_named() {
    let kinds = "which is not supported: give default, linear, llama3 or yarn";
    let dynamic = json!({"rope_type": "dynamic", "factor": 2.0});
    for kind in ["full_attention", "sliding_attention"] {
        let text = config("gemma3_text", json!({"rope_parameters": {kind: dynamic}}));
        assert_eq!(
            message(&text),
            format!("config.json: `rope_parameters.{kind}.rope_type` is \"dynamic\", {kinds}")
        );
        let inner: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            message(&json!({"text_config": inner}).to_string()),
            format!(
                "config.json: `text_config.rope_parameters.{kind}.rope_type` is \"dynamic\", {kinds}"
            )
        );
        let one = json!({"rope_parameters": {kind: {"rope_theta": 1e6}}});
        assert_eq!(
            message(&config("gpt_oss", one)),
            format!(
                "config.json: `rope_parameters.{kind}` is {{\"rope_theta\":1000000.0}}, \
                 which is not supported: give one rotation for all layers"
            )
        );
    }
    let ntk = json!({"rope_scaling": {"rope_type": "ntk"}});
    for family in ["llama", "gpt_oss", "gemma3_text", "qwen3_moe"] {
        assert_eq!(
            message(&config(family, ntk.clone())),
            format!("config.json: `rope_scaling.rope_type` is \"ntk\", {kinds}")
        );
    }
    let mixed = json!({"rope_parameters": {"full_attention": {}, "sliding_attention": 3}});
    assert_eq!(
        message(&config("gemma3_text", mixed)),
        "config.json: `rope_parameters.sliding_attention` is 3: give a JSON object"
    );
    assert_eq!(
        message(&config("gemma3_text", json!({"rope_local_base_freq": 0}))),
        "config.json: `rope_local_base_freq` is 0: give a number above 0"
    );
}
