use super::*;
use crate::hopper::patterns::{butterfly, everything, relative};
use butterfly_ir::{Dtype, Geometry, Role, RowProgram, Rows, Score, band::UNBOUNDED};
use std::fmt::Write;

fn spec(head_dim: u32, group: u32, block: u32, rows: RowProgram) -> KernelSpec {
    KernelSpec {
        score: Default::default(),
        role: Role::Prefill,
        head_dim,
        v_head_dim: head_dim,
        group,
        dtype: Dtype::Bf16,
        block,
        rows: Rows::ClosedForm(rows),
    }
}

/// The kernel with the best known tuning.
struct Made {
    text: String,
    geometry: Geometry,
    blueprint: Blueprint,
}

fn kernel(spec: &KernelSpec) -> Result<Made, &'static str> {
    let blueprint = Blueprint::new(spec)?;
    Ok(Made {
        text: text(spec, &blueprint),
        geometry: blueprint.geometry(),
        blueprint,
    })
}

/// Name, pattern in the words of `bench/hopper`, and spec.
fn cases() -> Vec<(String, &'static str, KernelSpec)> {
    let mut cases = Vec::new();
    for head_dim in [64, 128, 256] {
        for (name, rows) in [
            ("butterfly", butterfly()),
            ("window1024", relative(-1023)),
            ("causal", relative(-UNBOUNDED)),
        ] {
            let name_of = format!("{name}_d{head_dim}");
            cases.push((name_of, name, spec(head_dim, 4, 128, rows)));
        }
    }
    for (head_dim, group, block) in [
        (72, 4, 128),
        (80, 4, 128),
        (96, 4, 128),
        (128, 1, 128),
        (64, 1, 64),
        (64, 3, 64),
        (64, 8, 64),
        (128, 8, 64),
        (128, 6, 32),
        (64, 5, 16),
        (64, 4, 256),
        (256, 16, 256),
    ] {
        let name = format!("butterfly_d{head_dim}_g{group}_b{block}");
        cases.push((name, "butterfly", spec(head_dim, group, block, butterfly())));
    }
    let plain = spec(128, 4, 128, butterfly());
    for (name, change) in [
        (
            "f16",
            KernelSpec {
                dtype: Dtype::F16,
                ..plain.clone()
            },
        ),
        (
            "table",
            KernelSpec {
                rows: Rows::Table,
                ..plain.clone()
            },
        ),
        (
            "v64",
            KernelSpec {
                v_head_dim: 64,
                ..plain.clone()
            },
        ),
        (
            "v128",
            KernelSpec {
                head_dim: 192,
                ..plain.clone()
            },
        ),
        (
            "latent",
            KernelSpec {
                head_dim: 576,
                v_head_dim: 512,
                group: 20,
                ..plain.clone()
            },
        ),
    ] {
        cases.push((format!("butterfly_{name}"), "butterfly", change));
    }
    for head_dim in [64, 128, 256] {
        let mut scored = spec(head_dim, 4, 128, butterfly());
        scored.score = Score {
            softcap: true,
            sinks: true,
        };
        cases.push((format!("scored_d{head_dim}"), "none", scored));
    }
    cases.push((
        "everything".to_string(),
        "none",
        spec(64, 4, 128, everything()),
    ));
    cases
}

#[test]
fn texts_are_complete_and_always_the_same() {
    for (name, _, spec) in cases() {
        let made = kernel(&spec).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        for mark in ["@table", "@cluster", "@scale", "@cap", "@sink", "@products"] {
            assert!(!made.text.contains(mark), "{name}: {mark} is left");
        }
        assert!(made.geometry.shared_bytes <= 232_448, "{name}");
        assert_eq!(made.text, kernel(&spec).unwrap().text, "{name}");
    }
}

#[test]
fn refuses_what_it_does_not_make() {
    let plain = spec(128, 4, 128, butterfly());
    for change in [
        KernelSpec {
            dtype: Dtype::F32,
            ..plain.clone()
        },
        KernelSpec {
            head_dim: 576,
            v_head_dim: 192,
            ..plain.clone()
        },
        KernelSpec {
            head_dim: 1024,
            v_head_dim: 1024,
            ..plain.clone()
        },
        KernelSpec {
            block: 96,
            ..plain.clone()
        },
        KernelSpec {
            block: 8,
            ..plain.clone()
        },
    ] {
        assert!(kernel(&change).is_err());
    }
}

#[cfg(feature = "cuda")]
#[test]
fn compiles_to_asynchronous_products_and_copies() {
    let search = crate::cuda::nvrtc::find();
    let nvrtc = search.nvrtc.as_ref();
    let nvrtc = nvrtc.expect("NVRTC; scripts/test installs and names one");
    for (name, _, spec) in cases() {
        let made = kernel(&spec).unwrap();
        let compiled = nvrtc
            .compile(&made.text, "sm_90a")
            .unwrap_or_else(|log| panic!("{name}: {log}"));
        let ptx = String::from_utf8_lossy(&compiled.ptx);
        let count = |word: &str| ptx.matches(word).count();
        assert!(count("wgmma.mma_async") > 0, "{name}");
        assert!(count("cp.async.bulk.tensor") > 0, "{name}");
        assert_eq!(count(".local"), 0, "{name}: arrays in memory");
    }
}

/// Tunings from the environment variable `HOPPER_TUNING`: consumers, k_tile, q_slots and cluster of
/// each, as in `4,64,2,1 3,128,2,1`.
fn tunings() -> Vec<(String, blueprint::Tuning)> {
    let wanted = std::env::var("HOPPER_TUNING").unwrap_or_default();
    let tuning = |text: &str| {
        let numbers: Vec<u32> = text
            .split(',')
            .map(|n| n.parse().expect("a number"))
            .collect();
        let [consumers, k_tile, q_slots, cluster] = numbers[..] else {
            panic!("four numbers, not {text}");
        };
        let tuning = blueprint::Tuning {
            cluster,
            consumers,
            shares_unit: false,
            k_tile,
            q_slots,
        };
        (
            format!("_c{consumers}k{k_tile}q{q_slots}x{cluster}"),
            tuning,
        )
    };
    wanted.split_whitespace().map(tuning).collect()
}

/// Writes the texts, and a list of them for `bench/hopper`, into the folder `HOPPER_OUT`.
#[test]
#[ignore = "writes files: HOPPER_OUT=DIR cargo test -p butterfly-codegen --lib -- --ignored write_texts"]
fn write_texts() {
    let folder = std::env::var("HOPPER_OUT").expect("HOPPER_OUT names a folder");
    let mut list = String::new();
    for (name, pattern, spec) in cases().into_iter().filter(|case| case.1 != "none") {
        let best = kernel(&spec).unwrap().blueprint;
        let others = tunings().into_iter().filter_map(|(suffix, tuning)| {
            let blueprint = Blueprint::with(&spec, tuning).ok()?;
            Some((format!("{name}{suffix}"), blueprint))
        });
        for (name, blueprint) in [(name.clone(), best)].into_iter().chain(others) {
            let text = text(&spec, &blueprint);
            std::fs::write(format!("{folder}/{name}.cu"), text).unwrap();
            let _ = writeln!(
                list,
                "{{\"name\":\"{name}\",\"pattern\":\"{pattern}\",\"D\":{},\"Dv\":{},\"group\":{},\
                 \"dtype\":\"{}\",\"block\":{},\"threads\":{},\"shared\":{},\"k_box\":{},\
                 \"unit_tokens\":{},\"unit_heads\":{},\"table\":{}}}",
                spec.head_dim,
                spec.v_head_dim,
                spec.group,
                spec.dtype.name(),
                spec.block,
                blueprint.threads(),
                blueprint.shared_bytes,
                blueprint.k_box(),
                blueprint.unit_tokens,
                blueprint.unit_heads,
                spec.rows == Rows::Table,
            );
        }
    }
    std::fs::write(format!("{folder}/list.jsonl"), list).unwrap();
}
