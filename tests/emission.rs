//! Snapshots of the emitted kernels, for every plan of a table and every target with a text form.
//! Each kernel is also checked with a tool of its language:
//!
//! - CUDA is compiled by NVRTC to cubins for sm_80 and sm_90a.
//! - WGSL is validated by naga, inside `emit`.
//! - SPIR-V is validated by naga and `spirv-val`.
//! - MSL is parsed and type-checked as C++ against the stand-in for Metal's library in
//!   `tests/metal`, since Metal's compiler only runs on a Mac. The stand-in has the names and types
//!   that the kernels use, but not Metal's address-space rules.

use butterfly_codegen::{EmitError, Kernel, emit, ptx, write};
use butterfly_compiler::plan;
use butterfly_ir::model::LinearShape;
use butterfly_ir::{
    DeltaRule, Dtype, Grouped, GroupedFormat, KernelSpec, Launch, Role, Rows, Score, Scorer,
    ScorerPass, ScorerShape, Sm, Sparsity, Target,
};
use rspirv::binary::Disassemble;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Name, pattern, role, D, Dv, GQA group and dtype of each plan. Plans with `scored` in their name
/// also have softcap and sinks.
#[rustfmt::skip]
const PLANS: [Plan; 11] = [
    ("butterfly_d128", "causal & (local(1) | partner(causal_shift) | sink(1))", Role::Prefill, 128, 128, 4, Dtype::F16),
    ("butterfly_d64_f32", "block 64 causal & (local(1) | partner(xor) | sink(1))", Role::Prefill, 64, 64, 1, Dtype::F32),
    ("radix_3_d256", "causal & (local(1) | partner(causal_shift, radix=3, count=2))", Role::Prefill, 256, 256, 4, Dtype::F16),
    ("benes_d80", "block 16 causal & (local(0) | partner(benes) | sink(2))", Role::Prefill, 80, 80, 2, Dtype::F32),
    ("bit_reversal_d96", "block 32 causal & (local(2) | partner(bit_reversal))", Role::Prefill, 96, 96, 8, Dtype::F16),
    ("window_sinks", "window(1024) | causal & sink_tokens(4)", Role::Prefill, 128, 128, 16, Dtype::F16),
    ("difference", "causal & all - partner(random) - global(1) | window(1)", Role::Prefill, 64, 64, 1, Dtype::F16),
    ("mla_decode", "causal & (local(1) | partner(causal_shift) | sink(1))", Role::Decode, 576, 512, 20, Dtype::F16),
    ("scored_d64", "causal & window(4096)", Role::Prefill, 64, 64, 4, Dtype::F16),
    ("heads_tail", "block 64 causal & (tail(64) | per_head { 0, 2..4 => all; else => window(448) | sink(1) })", Role::Prefill, 128, 128, 4, Dtype::F16),
    ("table_decode", "block 64 causal & table([[0], [0, 1], [0, 2]])", Role::Decode, 128, 128, 4, Dtype::F32),
];

/// Further plans for the Hopper generator.
#[rustfmt::skip]
const HOPPER_PLANS: [Plan; 3] = [
    ("butterfly_d64", "causal & (local(1) | partner(causal_shift) | sink(1))", Role::Prefill, 64, 64, 4, Dtype::Bf16),
    ("mla_prefill", "causal & (local(1) | partner(causal_shift) | sink(1))", Role::Prefill, 576, 512, 20, Dtype::Bf16),
    ("butterfly_decode", "causal & (local(1) | partner(causal_shift) | sink(1))", Role::Decode, 128, 128, 4, Dtype::Bf16),
];

const SM_80: Target = Target::Cuda(Sm {
    version: 80,
    arch_specific: false,
});
const SM_90A: Target = Target::Cuda(Sm {
    version: 90,
    arch_specific: true,
});

type Plan = (&'static str, &'static str, Role, u32, u32, u32, Dtype);

fn specs() -> Vec<(&'static str, KernelSpec)> {
    specs_of(&PLANS)
}

fn specs_of(plans: &[Plan]) -> Vec<(&'static str, KernelSpec)> {
    let spec = |&(name, text, role, head_dim, v_head_dim, group, dtype): &_| {
        let sparsity = Sparsity::parse(name, text).expect(name);
        let rows = plan::rows(&sparsity.pattern);
        assert_eq!(rows == Rows::Table, name.starts_with("table"), "{name}");
        (
            name,
            KernelSpec {
                score: Score {
                    softcap: name.starts_with("scored"),
                    sinks: name.starts_with("scored"),
                },
                role,
                head_dim,
                v_head_dim,
                group,
                dtype,
                block: sparsity.block,
                rows,
            },
        )
    };
    plans.iter().map(spec).collect()
}

/// Compiles the kernel, and returns its file with `extension`.
fn file(spec: &KernelSpec, target: Target, extension: &str) -> Vec<u8> {
    content(emit(spec, target), extension)
}

/// The text of the kernel, without compiling it.
fn text(spec: &KernelSpec, target: Target, extension: &str) -> String {
    String::from_utf8(content(write(spec, target), extension)).expect("utf-8")
}

fn content(kernel: Result<Kernel, EmitError>, extension: &str) -> Vec<u8> {
    let kernel = kernel.unwrap_or_else(|error| panic!("{error}"));
    let missing = format!(
        "no .{extension} for {}; scripts/test installs and names one",
        kernel.target
    );
    let mut files = kernel.files.into_iter();
    files.find(|(e, _)| e == extension).expect(&missing).1
}

fn snapshot(language: &str, name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(format!("snapshots/{language}"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn cuda() {
    for (name, mut spec) in specs() {
        // On CUDA, some of the plans are tested in bf16, as in most checkpoints, instead of f16.
        if spec.dtype == Dtype::F16 && spec.head_dim.is_multiple_of(128) {
            spec.dtype = Dtype::Bf16;
        }
        snapshot("cuda", name, &text(&spec, SM_80, "cu"));
        for target in [SM_80, SM_90A] {
            let cubin = file(&spec, target, "cubin");
            assert!(cubin.starts_with(b"\x7fELF"), "{name} {target}");
        }
    }
}

/// Histogram of the PTX instructions for sm_80.
#[test]
fn ptx() {
    for (name, spec) in specs() {
        let histogram = ptx::histogram(&file(&spec, SM_80, "ptx"));
        snapshot("ptx", name, &histogram.to_string());
    }
}

/// Histogram of the SASS instructions of a cubin, by name without modifiers.
fn machine_code(cubin: &[u8]) -> BTreeMap<String, u32> {
    let nvdisasm = std::env::var("NVDISASM").expect("NVDISASM; scripts/test installs and sets it");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), cubin).expect("written");
    let mut command = Command::new(nvdisasm);
    let output = command.arg("-c").arg(file.path()).output().expect("runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut counts = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        // `/*0a10*/  @!P0 NAME.MODIFIERS OPERANDS ;`
        let Some((_, code)) = line
            .trim()
            .strip_prefix("/*")
            .and_then(|x| x.split_once("*/"))
        else {
            continue;
        };
        let mut words = code
            .split_whitespace()
            .filter(|word| !word.starts_with('@'));
        let name = words.next().unwrap_or("").trim_end_matches(';');
        let name = name.split('.').next().unwrap_or("");
        if !name.is_empty() {
            *counts.entry(name.to_string()).or_insert(0) += 1;
        }
    }
    counts
}

/// The kernels of the Hopper generator: text, instructions and registers; no register spills.
#[test]
fn hopper() {
    let mut made = 0;
    for (name, spec) in specs_of(&[&PLANS[..], &HOPPER_PLANS].concat()) {
        let kernel = emit(&spec, SM_90A).unwrap_or_else(|error| panic!("{name}: {error}"));
        let geometry = kernel.geometry;
        let expected = match geometry.launch {
            Launch::Resident(_) => ["HGMMA", "UTMALDG"],
            Launch::Split(_) => ["HMMA", "UTMALDG"],
            Launch::Grid => continue,
        };
        made += 1;
        snapshot("hopper", name, &text(&spec, SM_90A, "cu"));
        let resources = kernel.resources.expect("compiled");
        let counts = machine_code(&content(Ok(kernel), "cubin"));
        let count = |name: &str| counts.get(name).copied().unwrap_or(0);
        for name in expected {
            assert!(count(name) > 0, "no {name}");
        }
        let spills = (resources.spill_store_bytes, resources.spill_load_bytes);
        assert_eq!((spills, count("STL"), count("LDL")), ((0, 0), 0, 0));
        let counts = counts
            .iter()
            .map(|(name, count)| format!("{count:6} {name}\n"));
        let listing = format!(
            "{geometry:#?}\n{resources:#?}\n{}",
            counts.collect::<String>()
        );
        snapshot("hopper_code", name, &listing);
    }
    assert!(made >= 8, "only {made} plans have Hopper kernels");
}

/// A kernel beside attention, for Hopper: text, instructions and registers; no register spills.
fn hopper_kernel(name: &str, launched: &impl std::fmt::Debug, text: &str) {
    snapshot("hopper", name, text);
    let search = butterfly_codegen::nvrtc::find();
    let nvrtc = search.nvrtc.as_ref().expect("scripts/test installs NVRTC");
    let compiled = nvrtc.compile(text, "sm_90a").expect("compiles");
    let resources = compiled.resources.expect("a log that is understood");
    let counts = machine_code(&compiled.cubin);
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    // Copies by tensor maps, or of rows that are gathered.
    let copies = count("UTMALDG") + count("LDGSTS");
    assert!(count("HGMMA") > 0 && copies > 0);
    let spills = (resources.spill_store_bytes, resources.spill_load_bytes);
    assert_eq!((spills, count("STL"), count("LDL")), ((0, 0), 0, 0));
    let listing = counts.iter();
    let listing: String = listing
        .map(|(name, count)| format!("{count:6} {name}\n"))
        .collect();
    let listing = format!("{launched:#?}\n{resources:#?}\n{listing}");
    snapshot("hopper_code", name, &listing);
}

/// The matrix product for linear layers.
#[test]
fn hopper_product() {
    let (product, text) = butterfly_codegen::product(Dtype::Bf16).expect("a kernel");
    hopper_kernel("product_bf16", &product, &text);
    assert!(butterfly_codegen::product(Dtype::F32).is_none());
}

/// Scores of blocks by content: the shape of the benchmark, and blocks that are one mean, with more queries than
/// a warpgroup has rows and a head size that fills no box.
#[test]
fn hopper_scorers() {
    let scorer = |pass, head_dim, group, block, pool, every| {
        let shape = ScorerShape {
            head_dim,
            group,
            block,
            pool,
            every,
        };
        Scorer::of(pass, Dtype::Bf16, shape)
    };
    for (name, scorer) in [
        ("weigh_d128", scorer(ScorerPass::Weigh, 128, 4, 128, 16, 8)),
        ("score_d128", scorer(ScorerPass::Score, 128, 4, 128, 16, 8)),
        ("score_d200", scorer(ScorerPass::Score, 200, 3, 64, 64, 1)),
    ] {
        let (launched, text) = butterfly_codegen::scorer(scorer).expect(name);
        hopper_kernel(name, &launched, &text);
    }
    for (scorer, says) in [
        (
            scorer(ScorerPass::Weigh, 100, 4, 128, 16, 8),
            "scorer.head_dim is 100",
        ),
        (scorer(ScorerPass::Weigh, 512, 4, 128, 16, 8), "at most 256"),
        (
            scorer(ScorerPass::Weigh, 128, 4, 96, 16, 8),
            "a power of two",
        ),
        (
            scorer(ScorerPass::Weigh, 128, 4, 128, 0, 8),
            "a divisor of the block",
        ),
        (
            scorer(ScorerPass::Weigh, 128, 4, 128, 16, 7),
            "scorer.every is 7",
        ),
        (
            Scorer {
                dtype: Dtype::F32,
                ..scorer(ScorerPass::Weigh, 128, 4, 128, 16, 8)
            },
            "a 16-bit float",
        ),
    ] {
        let error = butterfly_codegen::scorer(scorer)
            .expect_err(says)
            .to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// The gated delta rule: the heads of Qwen3.5-9B, and tiled ones with another type and fewer taps.
#[test]
fn hopper_delta_rules() {
    let shape = |k_heads, v_heads, taps| LinearShape {
        k_heads,
        v_heads,
        k_dim: 128,
        v_dim: 128,
        taps,
        tiled: k_heads == 2,
    };
    let rule = |dtype, shape| DeltaRule::of(dtype, &shape).expect("heads of 128 elements");
    for (name, rule) in [
        ("delta_bf16", rule(Dtype::Bf16, shape(16, 32, 4))),
        ("delta_f16_tiled", rule(Dtype::F16, shape(2, 4, 3))),
    ] {
        let (launched, text) = butterfly_codegen::delta_rule(rule).expect(name);
        hopper_kernel(name, &launched, &text);
    }
    for (rule, says) in [
        (rule(Dtype::F32, shape(16, 32, 4)), "a 16-bit float"),
        (rule(Dtype::F16, shape(16, 24, 4)), "a multiple of k_heads"),
        (rule(Dtype::F16, shape(0, 16, 4)), "delta_rule.k_heads is 0"),
        (rule(Dtype::F16, shape(16, 32, 9)), "between 2 and 8"),
    ] {
        let error = butterfly_codegen::delta_rule(rule).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// Products with experts: every format, with rows of Qwen3.5-35B-A3B and gpt-oss.
#[test]
fn hopper_grouped() {
    let affine = |group| GroupedFormat::Affine4 {
        group,
        scales: Dtype::Bf16,
    };
    let float8 = GroupedFormat::Float8 { scales: Dtype::F32 };
    let grouped = |dtype, format, columns| {
        let grouped = Grouped::of(dtype, format, columns);
        grouped.expect("whole steps and groups")
    };
    for (name, wanted) in [
        (
            "grouped_dense",
            grouped(Dtype::Bf16, GroupedFormat::Dense, 2048),
        ),
        ("grouped_affine4", grouped(Dtype::Bf16, affine(64), 2048)),
        ("grouped_float8", grouped(Dtype::F16, float8, 512)),
        (
            "grouped_microscaled",
            grouped(Dtype::Bf16, GroupedFormat::Microscaled, 2880),
        ),
    ] {
        let (launched, text) = butterfly_codegen::grouped(wanted).expect(name);
        hopper_kernel(name, &launched, &text);
    }
    for (wanted, says) in [
        (grouped(Dtype::F32, float8, 512), "a 16-bit float"),
        (grouped(Dtype::F16, affine(16), 512), "groups of 32, 64 or"),
    ] {
        let error = butterfly_codegen::grouped(wanted).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn wgsl() {
    for (name, spec) in specs() {
        snapshot("wgsl", name, &text(&spec, Target::Webgpu, "wgsl"));
    }
}

#[test]
fn spirv() {
    let folder = tempfile::tempdir().expect("folder");
    for (name, spec) in specs() {
        let bytes = file(&spec, Target::Vulkan, "spv");
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).expect("written");
        run(
            "spirv-val",
            Command::new("spirv-val")
                .args(["--target-env", "vulkan1.1"])
                .arg(&path),
            name,
        );
        let words: Vec<u32> = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        let module = rspirv::dr::load_words(&words).expect("SPIR-V");
        snapshot("spirv", name, &module.disassemble());
    }
}

#[test]
fn metal() {
    let folder = tempfile::tempdir().expect("folder");
    let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("metal");
    for (name, spec) in specs() {
        let text = text(&spec, Target::Metal, "metal");
        snapshot("metal", name, &text);
        let path = folder.path().join(name).with_extension("cpp");
        std::fs::write(&path, text).expect("written");
        let mut check = Command::new("g++");
        check
            .args(["-std=c++20", "-fsyntax-only", "-Wno-attributes", "-I"])
            .arg(&stand_in)
            .arg(&path);
        run("g++", &mut check, name);
    }
}

/// Runs a checker, which must be installed and must succeed.
fn run(tool: &str, command: &mut Command, name: &str) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{tool}: {error}; run scripts/setup"));
    assert!(
        output.status.success(),
        "{tool} on {name}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
