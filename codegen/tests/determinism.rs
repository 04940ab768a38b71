//! The same arguments give the same bytes: in any order, on any thread, in any process. This
//! includes PTX and machine code, so NVRTC must be installed.

use butterfly_codegen::emit;
use butterfly_ir::{
    Atom, Bound, Dtype, KernelSpec, PartnerRule, Role, RowProgram, Rows, Sm, SymbolicBand, Target,
};
use std::hash::{DefaultHasher, Hash, Hasher};

const H100: Target = Target::Cuda(Sm {
    version: 90,
    arch_specific: true,
});

fn jobs() -> Vec<(KernelSpec, Target)> {
    let program = RowProgram {
        atoms: vec![
            Atom::Local {
                before: 1,
                after: 0,
            },
            Atom::Partner {
                rule: PartnerRule::Benes,
                radix: 2,
                offset: 0,
                step: 1,
            },
        ],
        bands: (0..2)
            .map(|i| SymbolicBand {
                lo: vec![Bound::Start(i)],
                hi: vec![Bound::Stop(i)],
                first: -500,
                end: 1,
                heads: Default::default(),
            })
            .collect(),
    };
    let mut jobs = Vec::new();
    for target in [H100, Target::Vulkan, Target::Webgpu, Target::Metal] {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for role in [Role::Prefill, Role::Decode] {
                for rows in [Rows::ClosedForm(program.clone()), Rows::Table] {
                    let spec = KernelSpec {
                        score: Default::default(),
                        role,
                        head_dim: 128,
                        v_head_dim: 64,
                        group: 4,
                        dtype,
                        block: 128,
                        rows,
                    };
                    let bf16 = matches!(target, H100 | Target::Metal);
                    if dtype != Dtype::Bf16 || bf16 {
                        jobs.push((spec, target));
                    }
                }
            }
        }
    }
    jobs
}

/// A digest of each job's files.
fn digests(jobs: &[(KernelSpec, Target)]) -> Vec<u64> {
    let digest = |(spec, target): &(KernelSpec, Target)| {
        let mut hasher = DefaultHasher::new();
        let kernel = emit(spec, *target).expect("emits");
        if matches!(target, Target::Cuda(_)) {
            let forms: Vec<&str> = kernel.files.iter().map(|f| f.0.as_str()).collect();
            let missing = "scripts/test installs and names one";
            assert_eq!(forms, ["cu", "ptx", "cubin"], "{missing}");
        }
        kernel.files.hash(&mut hasher);
        format!("{:?}", kernel.resources).hash(&mut hasher);
        hasher.finish()
    };
    jobs.iter().map(digest).collect()
}

#[test]
fn order_threads_and_processes_do_not_matter() {
    let jobs = jobs();
    let mut backwards = jobs.clone();
    backwards.reverse();
    // At the same time, so that threads meet.
    let ([wanted, other, mut reversed], output) = std::thread::scope(|scope| {
        let threads = [&jobs, &jobs, &backwards].map(|jobs| scope.spawn(|| digests(jobs)));
        let program = std::env::current_exe().expect("a path");
        let output = std::process::Command::new(program)
            .args(["--exact", "print_digests", "--ignored", "--nocapture"])
            .output()
            .expect("runs");
        let digests = threads.map(|thread| thread.join().expect("joins"));
        (digests, output)
    });
    assert_eq!(other, wanted, "on a thread");
    reversed.reverse();
    assert_eq!(reversed, wanted, "in the other order");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains(&format!("{wanted:?}")),
        "in a process: {text}"
    );
}

#[test]
#[ignore = "the process that the test above starts: cargo test -p butterfly-codegen --test determinism -- --ignored --nocapture print_digests"]
fn print_digests() {
    println!("{:?}", digests(&jobs()));
}
