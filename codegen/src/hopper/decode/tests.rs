use super::*;
use crate::hopper::patterns::{butterfly, everything, relative};
use butterfly_ir::{Role, RowProgram, Rows, Score, band::UNBOUNDED, manifest};

fn spec(head_dim: u32, v_head_dim: u32, group: u32, rows: RowProgram) -> KernelSpec {
    KernelSpec {
        score: Default::default(),
        role: Role::Decode,
        head_dim,
        v_head_dim,
        group,
        dtype: Dtype::Bf16,
        block: 128,
        rows: Rows::ClosedForm(rows),
    }
}

/// Name and spec.
fn cases() -> Vec<(String, KernelSpec)> {
    let mut cases = Vec::new();
    for (d, dv) in [
        (8, 8),
        (64, 64),
        (72, 24),
        (128, 128),
        (192, 128),
        (256, 256),
    ] {
        for group in [1, 4, 20] {
            let name = format!("butterfly_d{d}_v{dv}_g{group}");
            cases.push((name, spec(d, dv, group, butterfly())));
        }
    }
    let plain = spec(128, 128, 4, relative(-UNBOUNDED));
    let f16 = KernelSpec {
        dtype: Dtype::F16,
        ..plain.clone()
    };
    let table = KernelSpec {
        rows: Rows::Table,
        ..plain.clone()
    };
    let scored = KernelSpec {
        score: Score {
            softcap: true,
            sinks: true,
        },
        ..plain.clone()
    };
    for (name, spec) in [
        ("scored", scored),
        ("latent", spec(576, 512, 20, butterfly())),
        ("window1024", spec(128, 128, 4, relative(-1023))),
        ("everything", spec(64, 64, 4, everything())),
        ("causal", plain),
        ("f16", f16),
        ("table", table),
    ] {
        cases.push((name.to_string(), spec));
    }
    cases
}

#[test]
fn texts_are_complete() {
    for (name, spec) in cases() {
        let blueprint = Blueprint::new(&spec).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        let text = text(&spec, &blueprint);
        for mark in [
            "@arguments",
            "@bands",
            "@bounds",
            "@cluster",
            "@kind",
            "@launch",
            "@logit",
            "@name",
            "@partials",
            "@parts",
            "@scale",
            "@score",
            "@sink",
            "@table",
            "@width",
        ] {
            assert!(!text.contains(mark), "{name}: {mark} is left");
        }
        assert!(blueprint.shared_bytes <= 232_448, "{name}");
        let spread = blueprint.spread.map_or(0, |spread| spread.shared_bytes);
        assert!(spread <= 232_448, "{name}");
    }
}

/// Keys that hold their values are read once; tables are not spread.
#[test]
fn long_rows_are_spread() {
    for (name, spec) in cases() {
        let blueprint = Blueprint::new(&spec).expect("a kernel");
        let text = text(&spec, &blueprint);
        let latent = name == "latent";
        assert_eq!(text.contains("mma_latent_values"), latent, "{name}");
        assert_eq!(blueprint.spread.is_none(), name == "table", "{name}");
        for entry in [spread_entry(ENTRY), merge_entry(ENTRY)] {
            assert_eq!(text.contains(&entry), name != "table", "{name}: {entry}");
        }
        let v_in_k = blueprint.spread.is_some_and(|spread| spread.v_in_k);
        assert_eq!(v_in_k, latent, "{name}");
    }
}

#[test]
fn makes_every_group_of_up_to_32_heads() {
    for d in [8, 64, 80, 96, 128, 192, 256] {
        for group in 1..=32 {
            let blueprint = Blueprint::new(&spec(d, d, group, butterfly()));
            assert!(blueprint.is_ok(), "{d} {group}: {blueprint:?}");
        }
    }
}

#[test]
fn refuses_what_it_does_not_make() {
    let plain = spec(128, 128, 4, butterfly());
    for change in [
        KernelSpec {
            dtype: Dtype::F32,
            ..plain.clone()
        },
        KernelSpec {
            group: 33,
            ..plain.clone()
        },
        KernelSpec {
            head_dim: 4096,
            v_head_dim: 4096,
            ..plain.clone()
        },
    ] {
        assert!(Blueprint::new(&change).is_err());
    }
}

#[cfg(feature = "cuda")]
#[test]
fn compiles_without_memory_for_arrays() {
    let search = crate::cuda::nvrtc::find();
    let nvrtc = search.nvrtc.as_ref();
    let nvrtc = nvrtc.expect("NVRTC; scripts/test installs and names one");
    for (name, spec) in cases() {
        let blueprint = Blueprint::new(&spec).unwrap();
        let compiled = nvrtc
            .compile(&text(&spec, &blueprint), "sm_90a")
            .unwrap_or_else(|log| panic!("{name}: {log}"));
        let ptx = String::from_utf8_lossy(&compiled.ptx);
        let count = |word: &str| ptx.matches(word).count();
        assert!(count("mma.sync") > 0, "{name}");
        assert!(count("ld.shared::cluster") > 0, "{name}");
        assert_eq!(count("wgmma.mma_async") > 0, name == "latent", "{name}");
        assert_eq!(count(".local"), 0, "{name}: arrays in memory");
    }
}

/// Writes kernels of the standard pattern for `bench/hopper/decode.py`: with the best known tuning
/// and with those in `HOPPER_TUNING` (cluster, thread blocks per SM and slots of each, as in
/// `8,2,3 2,2,2`).
#[test]
#[ignore = "writes files: HOPPER_OUT=DIR cargo test -p butterfly-codegen --lib -- --ignored write_decode"]
fn write_decode() {
    let folder = std::env::var("HOPPER_OUT").expect("HOPPER_OUT names a folder");
    let wanted = std::env::var("HOPPER_TUNING").unwrap_or_default();
    let tunings: Vec<blueprint::Tuning> = (wanted.split_whitespace())
        .map(|text| {
            let numbers = text.split(',').map(|n| n.parse().expect("a number"));
            let [cluster, per_processor, slots] = numbers.collect::<Vec<u32>>()[..] else {
                panic!("three numbers, not {text}");
            };
            blueprint::Tuning {
                cluster,
                per_processor,
                slots,
            }
        })
        .collect();
    let mut kernels = Vec::new();
    for head_dim in [64, 128, 256] {
        let spec = spec(head_dim, head_dim, 4, butterfly());
        let best = Blueprint::new(&spec).unwrap();
        let others = tunings
            .iter()
            .filter_map(|t| Blueprint::with(&spec, *t).ok());
        for blueprint in [best].into_iter().chain(others) {
            let blueprint::Tuning {
                cluster,
                per_processor,
                slots,
            } = blueprint.tuning;
            let name = format!("decode_d{head_dim}_c{cluster}b{per_processor}s{slots}");
            std::fs::write(format!("{folder}/{name}.cu"), text(&spec, &blueprint)).unwrap();
            kernels.push(serde_json::json!({
                "name": name, "entry": ENTRY, "spec": spec,
                "alone": manifest::alone(ENTRY, &blueprint.geometry()), "geometry": blueprint.geometry(), "files": [{"path": format!("{name}.cubin")}],
            }));
        }
    }
    let list = serde_json::to_string(&kernels).unwrap();
    std::fs::write(format!("{folder}/decode.json"), list).unwrap();
}
