//! Manifests with one wrong member and a valid digest: opening them is an error that names the
//! file, or changes nothing about how kernels are launched.

use butterfly_ir::manifest::{
    self, ConfigRef, DeltaRuleEntry, FileEntry, GroupedEntry, KernelEntry, Manifest, ProductEntry,
    SCHEMA, ScorerEntry,
};
use butterfly_ir::model::{LinearShape, OwnAttention};
use butterfly_ir::plan::{Kept, Proof, SwappedLayer, Variant};
use butterfly_ir::{
    Atom, Bound, DeltaRule, Dtype, Grouped, GroupedFormat, KernelSpec, Role, RowProgram, Rows,
    Scorer, ScorerPass, ScorerShape, Sparsity, SymbolicBand, Target, build, key,
};
use butterfly_runtime::artifacts::{Artifacts, write};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn rows() -> Rows {
    let band = SymbolicBand {
        lo: vec![Bound::Start(0)],
        hi: vec![Bound::Stop(0)],
        first: -9,
        end: 1,
        heads: Default::default(),
    };
    Rows::ClosedForm(RowProgram {
        atoms: vec![Atom::Local {
            before: 1,
            after: 0,
        }],
        bands: vec![band],
    })
}

fn described((path, bytes): &(String, Vec<u8>)) -> FileEntry {
    FileEntry {
        path: path.clone(),
        bytes: bytes.len() as u64,
        blake3: blake3::hash(bytes).to_hex().to_string(),
    }
}

/// A folder with kernels of every emitter, as text.
fn folder() -> (Manifest, Vec<(String, Vec<u8>)>) {
    let (mut kernels, mut all) = (Vec::new(), Vec::new());
    for target in ["webgpu", "vulkan", "metal", "cuda:sm_80", "cuda:sm_90a"] {
        let target: Target = target.parse().expect("a target");
        for (role, rows) in [(Role::Prefill, rows()), (Role::Decode, Rows::Table)] {
            let spec = KernelSpec {
                role,
                head_dim: 64,
                v_head_dim: 64,
                group: 4,
                dtype: Dtype::F16,
                block: 128,
                rows,
                score: Default::default(),
            };
            let kernel = butterfly_codegen::write(&spec, target).expect("a kernel");
            let key = key::of(&spec, target);
            let files: Vec<_> = (kernel.files.into_iter())
                .map(|(form, bytes)| (format!("kernels/{key}.{form}"), bytes))
                .collect();
            kernels.push(KernelEntry {
                grid: manifest::grid_formulas(&spec, &kernel.geometry),
                alone: manifest::alone(&kernel.entry, &kernel.geometry),
                spread: manifest::spread(&kernel.entry, &spec, &kernel.geometry),
                arguments: manifest::arguments(&spec, &kernel.geometry),
                files: files.iter().map(described).collect(),
                key,
                target,
                spec,
                entry: kernel.entry,
                geometry: kernel.geometry,
                registers: None,
                spills: None,
            });
            all.extend(files);
        }
    }
    let (product, text) = butterfly_codegen::product(Dtype::F16).expect("a product");
    let file = ("kernels/product-f16.cu".to_string(), text.into_bytes());
    let shape = ScorerShape {
        head_dim: 64,
        group: 4,
        block: 64,
        pool: 16,
        every: 8,
    };
    let scorer = Scorer::of(ScorerPass::Score, Dtype::F16, shape);
    let (scorer, text) = butterfly_codegen::scorer(scorer).expect("a scorer");
    let scores = ("kernels/score-f16.cu".to_string(), text.into_bytes());
    let heads = LinearShape {
        k_heads: 2,
        v_heads: 4,
        k_dim: 128,
        v_dim: 128,
        taps: 4,
        tiled: true,
    };
    let rule = DeltaRule::of(Dtype::F16, &heads).expect("heads of 128 elements");
    let (rule, text) = butterfly_codegen::delta_rule(rule).expect("a delta rule");
    let delta = ("kernels/delta-f16.cu".to_string(), text.into_bytes());
    let format = GroupedFormat::Affine4 {
        group: 64,
        scales: Dtype::Bf16,
    };
    let grouped = Grouped::of(Dtype::F16, format, 256).expect("whole groups");
    let (grouped, text) = butterfly_codegen::grouped(grouped).expect("a product with experts");
    let experts = ("kernels/grouped-f16.cu".to_string(), text.into_bytes());
    let sparsity = Sparsity::from(build::causal() & build::local(1));
    let manifest = Manifest {
        schema: SCHEMA,
        compiler: "0.1.0".into(),
        pattern: sparsity.to_string(),
        sparsity,
        config: ConfigRef {
            file: "config.json".into(),
            model_type: "llama".into(),
            blake3: String::new(),
        },
        layers: (3..6)
            .map(|layer| SwappedLayer {
                layer,
                index: layer - 3,
            })
            .collect(),
        capacity: 1024,
        proof: Proof {
            coverage: vec![1.0],
            coverage_at_most: None,
            full_at: Some(1),
            tokens: 1024,
            max_degree: 8,
            max_in_degree: 8,
            causal: true,
            empty_queries: 0,
        },
        variants: vec![Variant {
            pattern: build::causal() & build::local(1),
            rows: rows(),
        }],
        kept: vec![Kept {
            own: OwnAttention { window: Some(300) },
            rows: Rows::Table,
        }],
        kernels,
        products: vec![ProductEntry {
            target: "cuda:sm_90a".parse().expect("a target"),
            product,
            files: vec![described(&file)],
        }],
        scorers: vec![ScorerEntry {
            target: "cuda:sm_90a".parse().expect("a target"),
            scorer,
            files: vec![described(&scores)],
        }],
        delta_rules: vec![DeltaRuleEntry {
            target: "cuda:sm_90a".parse().expect("a target"),
            rule,
            files: vec![described(&delta)],
        }],
        grouped: vec![GroupedEntry {
            target: "cuda:sm_90a".parse().expect("a target"),
            grouped,
            files: vec![described(&experts)],
        }],
        digest: String::new(),
    };
    all.extend([file, scores, delta, experts]);
    (manifest, all)
}

/// JSON pointers to all values of `value`, which is itself at `at`: scalars, arrays and objects.
fn places(value: &Value, at: String, all: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                places(member, format!("{at}/{name}"), all);
            }
        }
        Value::Array(members) => {
            for (i, member) in members.iter().enumerate() {
                places(member, format!("{at}/{i}"), all);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    all.push(at);
}

/// Other values to put in the place of `old`, some close to it.
fn others(old: &Value) -> Vec<Value> {
    let mut others = vec![
        json!(0),
        json!(1),
        json!(2),
        json!(7),
        json!(64),
        json!(4096),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(-1),
        json!(0.5),
        Value::Null,
        json!(true),
        json!(""),
        json!("f32"),
        json!("bf16"),
        json!("decode"),
        json!("cpu"),
        json!("cuda:sm_90a"),
        json!("../x"),
        json!("\0"),
        json!([]),
        json!({}),
        json!([0, 0, 0]),
        json!("table"),
    ];
    if let Some(n) = old.as_u64() {
        others.extend([
            json!(n + 1),
            json!(n.saturating_sub(1)),
            json!(2 * n),
            json!(n / 2),
        ]);
    }
    if let Some(text) = old.as_str() {
        others.extend([
            json!(format!("{text}x")),
            json!(text.get(1..).unwrap_or_default()),
        ]);
    }
    others.retain(|other| other != old);
    others
}

/// Writes `manifest` with its digest computed anew.
fn reseal(dir: &Path, manifest: &mut Value) {
    let text = |value: &Value| serde_json::to_string_pretty(value).expect("text") + "\n";
    if manifest.get("digest").is_some() {
        manifest["digest"] = json!("");
        let digest = blake3::hash(text(manifest).as_bytes()).to_hex().to_string();
        manifest["digest"] = json!(digest);
    }
    fs::write(dir.join("manifest.json"), text(manifest)).expect("written");
}

/// The kernels of a manifest, without the fields that are only for reports.
fn launched(manifest: &Manifest) -> Vec<KernelEntry> {
    let mut kernels = manifest.kernels.clone();
    for kernel in &mut kernels {
        (kernel.registers, kernel.spills) = (None, None);
    }
    kernels
}

/// If a kind of `kept` were missing, its rows could be taken for those of the pattern.
#[test]
fn kernels_of_two_patterns_are_refused() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    let (manifest, files) = folder();
    write(&dir, &manifest, &files).expect("written");
    let text = fs::read_to_string(dir.join("manifest.json")).expect("text");
    let mut value: Value = serde_json::from_str(&text).expect("JSON");
    let kept = value["kept"].take();
    value["kept"] = json!([]);
    reseal(&dir, &mut value);
    let error = Artifacts::open(&dir).expect_err("two patterns").to_string();
    let wanted = "its block and rows are neither those of the pattern nor of `kept`";
    assert!(error.contains(wanted), "{error}");
    value["kept"] = json!([kept[0], kept[0]]);
    reseal(&dir, &mut value);
    let error = Artifacts::open(&dir).expect_err("twice").to_string();
    assert!(error.contains("kept: does not increase"), "{error}");
    value["kept"] = kept;
    value["kept"][0]["own"]["window"] = json!(0);
    reseal(&dir, &mut value);
    let error = Artifacts::open(&dir).expect_err("no tokens").to_string();
    assert!(error.contains("window of no tokens"), "{error}");
}

#[test]
fn one_wrong_member_is_an_error_or_is_not_relied_on() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    let (manifest, files) = folder();
    write(&dir, &manifest, &files).expect("written");
    let good = Artifacts::open(&dir).expect("good").manifest;
    let text = fs::read_to_string(dir.join("manifest.json")).expect("text");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let mut all = Vec::new();
    places(&value, String::new(), &mut all);
    let mut resealed = value.clone();
    reseal(&dir, &mut resealed);
    Artifacts::open(&dir).expect("the same, sealed here");

    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let which = (any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let result = runner.run(&which, |(place, other)| {
        let place = place.get(&all);
        let mut changed = value.clone();
        let Some(member) = changed.pointer_mut(place) else {
            return Ok(());
        };
        let others = others(member);
        *member = other.get(&others).clone();
        let what = format!("{place} = {member}");
        reseal(&dir, &mut changed);
        match Artifacts::open(&dir) {
            // The kernels that are left are unchanged.
            Ok(opened) => {
                let (kernels, made) = (launched(&opened.manifest), launched(&good));
                prop_assert!(
                    kernels.iter().all(|kernel| made.contains(kernel)),
                    "{}",
                    what
                );
                let mut products = opened.manifest.products.iter();
                prop_assert!(
                    products.all(|product| good.products.contains(product)),
                    "{}",
                    what
                );
                let mut scorers = opened.manifest.scorers.iter();
                prop_assert!(
                    scorers.all(|scorer| good.scorers.contains(scorer)),
                    "{}",
                    what
                );
                let mut rules = opened.manifest.delta_rules.iter();
                prop_assert!(
                    rules.all(|rule| good.delta_rules.contains(rule)),
                    "{}",
                    what
                );
                let mut grouped = opened.manifest.grouped.iter();
                prop_assert!(
                    grouped.all(|entry| good.grouped.contains(entry)),
                    "{}",
                    what
                );
            }
            Err(error) => {
                let text = error.to_string();
                prop_assert!(text.contains("artifacts"), "{}: {}", what, text);
            }
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
