use super::*;
use butterfly_ir::{Atom, Bound, PartnerRule, Phase, RowProgram, SymbolicBand, band::UNBOUNDED};

fn program(atoms: &[Atom], first: i32, end: i32) -> RowProgram {
    let band = |i: usize| SymbolicBand {
        lo: vec![Bound::Start(i as u32)],
        hi: vec![Bound::Stop(i as u32)],
        first,
        end,
    };
    RowProgram {
        atoms: atoms.to_vec(),
        bands: (0..atoms.len()).map(band).collect(),
    }
}

/// `causal & (local(1) | partner(causal_shift) | sink(1))`.
fn butterfly() -> RowProgram {
    let atoms = [
        Atom::Local { before: 1, after: 0 },
        Atom::Partner { rule: PartnerRule::CausalShift, radix: 2, offset: 0, step: 1 },
        Atom::Sink { blocks: 1 },
    ];
    program(&atoms, -UNBOUNDED, 1)
}

fn relative(first: i32) -> RowProgram {
    RowProgram {
        atoms: vec![],
        bands: vec![SymbolicBand { lo: vec![], hi: vec![], first, end: 1 }],
    }
}

fn spec(head_dim: u32, rows: RowProgram) -> KernelSpec {
    KernelSpec {
        phase: Phase::Prefill,
        head_dim,
        v_head_dim: head_dim,
        group: 4,
        dtype: Dtype::Bf16,
        block: 128,
        rows: Rows::ClosedForm(rows),
    }
}

/// Writes texts for the bench, with a list of them, into the folder `HOPPER_OUT`.
#[test]
fn write_texts() {
    let Ok(folder) = std::env::var("HOPPER_OUT") else { return };
    let mut list = String::new();
    let mut put = |name: String, spec: &KernelSpec, tuning: Option<Tuning>, pattern: &str| {
        let made = match tuning {
            Some(tuning) => tuned(spec, tuning),
            None => kernel(spec),
        };
        let made = match made {
            Ok(made) => made,
            Err(reason) => { eprintln!("{name}: {reason}"); return }
        };
        std::fs::write(format!("{folder}/{name}.cu"), &made.text).unwrap();
        list += &format!(
            "{{\"name\":\"{name}\",\"pattern\":\"{pattern}\",\"D\":{},\"Dv\":{},\"group\":{},\"dtype\":\"{}\",\"block\":{},\"threads\":{},\"shared\":{},\"k_box\":{},\"unit_tokens\":{},\"unit_heads\":{}}}\n",
            spec.head_dim, spec.v_head_dim, spec.group, spec.dtype.name(), spec.block,
            made.geometry.threads[0], made.geometry.shared_bytes, made.plan.k_box(),
            made.plan.unit_tokens, made.plan.unit_heads,
        );
    };
    let t = |cluster, consumers, k_tile, q_slots, take_turns| Some(Tuning { cluster, consumers, k_tile, q_slots, take_turns });
    for (name, rows) in [("bf", butterfly()), ("window1024", relative(-1023)), ("causal", relative(-UNBOUNDED))] {
        let tunings = [
            (128, "q2", t(1, 2, 128, 2, false)),
            (128, "q2t", t(1, 2, 128, 2, true)),
            (128, "x2q2", t(2, 2, 128, 2, false)),
            (128, "q1", t(1, 2, 128, 1, false)),
            (64, "q2", t(1, 2, 128, 2, false)),
            (64, "q2t", t(1, 2, 128, 2, true)),
            (64, "c3q2", t(1, 3, 128, 2, false)),
            (64, "x2q2", t(2, 2, 128, 2, false)),
            (256, "q1", t(1, 2, 64, 1, false)),
        ];
        for (d, tag, tuning) in tunings {
            put(format!("{name}_d{d}_{tag}"), &spec(d, rows.clone()), tuning, name);
        }
    }
    let sharing = t(2, 2, 128, 2, false);
    put("bf_d128_g1x2".into(), &KernelSpec { group: 1, ..spec(128, butterfly()) }, sharing, "bf");
    put("bf_d128_g6b32x2".into(), &KernelSpec { group: 6, block: 32, ..spec(128, butterfly()) }, sharing, "bf");
    put("bf_d128_tablex2".into(), &KernelSpec { rows: Rows::Table, ..spec(128, butterfly()) }, sharing, "bf");
    for d in [72, 80, 96] {
        put(format!("bf_d{d}"), &spec(d, butterfly()), None, "bf");
    }
    put("bf_d128_f16".into(), &KernelSpec { dtype: Dtype::F16, ..spec(128, butterfly()) }, None, "bf");
    put("bf_d128_g1".into(), &KernelSpec { group: 1, ..spec(128, butterfly()) }, None, "bf");
    put("bf_d128_g8b64".into(), &KernelSpec { group: 8, block: 64, ..spec(128, butterfly()) }, None, "bf");
    put("bf_d128_g6b32".into(), &KernelSpec { group: 6, block: 32, ..spec(128, butterfly()) }, None, "bf");
    put("bf_d64_g4b256".into(), &KernelSpec { group: 4, block: 256, ..spec(64, butterfly()) }, None, "bf");
    put("bf_d128_table".into(), &KernelSpec { rows: Rows::Table, ..spec(128, butterfly()) }, None, "bf");
    std::fs::write(format!("{folder}/list.jsonl"), list).unwrap();
}
