//! Compares the emitted cubins with a plain f64 reference, on an NVIDIA GPU:
//! `cargo test -p butterfly-codegen --test cuda -- --ignored`. Tests that need no GPU are in
//! `tests/emission.rs` and `tests/resources.rs`.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/large.rs"]
mod large;
#[path = "support/random.rs"]
mod random;
#[path = "support/mod.rs"]
mod support;

use butterfly_ir::band::UNBOUNDED;
use butterfly_ir::{Dtype, Kernel, Launch, Role, Target};
use support::{Case, cases, check};

/// Checks a table of cases on the device, in every dtype.
fn run(table: fn(&dyn Fn(Case))) {
    let gpu = cuda::device();
    let mut few = cuda::device();
    few.processors = 8;
    table(&|case| {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            // Rows that start at multiples of 16 bytes, and rows that do not.
            for pad in [8, 3] {
                let mut case = case.clone();
                (case.target, case.spec.dtype, case.pad) = (gpu.target, dtype, pad);
                check(&case, &|kernel, launch| gpu.launch(kernel, launch));
                if let (8, Some(own)) = (pad, gpu.own_target()) {
                    case.target = own;
                    check(&case, &|kernel, launch| gpu.launch(kernel, launch));
                    // A launch sized for few SMs gives each workgroup more work.
                    check(&case, &|kernel, launch| few.launch(kernel, launch));
                }
            }
        }
    });
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn head_sizes() {
    run(cases::head_sizes);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn lengths_and_blocks() {
    run(cases::lengths_and_blocks);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn groups_batches_and_offsets() {
    run(cases::groups_batches_and_offsets);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn every_rule_at_every_stage() {
    run(cases::every_rule_at_every_stage);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn windows_and_other_leaves() {
    run(cases::windows_and_other_leaves);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn bands_of_some_heads() {
    run(cases::bands_of_some_heads);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn tables_by_head() {
    run(cases::tables_by_head);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn tails() {
    run(cases::tails);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn dense_beside_sparse() {
    run(cases::dense_beside_sparse);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn tables() {
    run(cases::tables);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn large_heads() {
    run(cases::large_heads);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn softcaps_and_sinks() {
    run(cases::softcaps_and_sinks);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored"]
fn sharp_logits() {
    run(cases::sharp_logits);
}

/// Rows of up to 70,000 keys, as they are launched and with even short rows spread; ten launches give the
/// same bits.
#[test]
#[ignore = "needs a Hopper GPU: cargo test --release -p butterfly-codegen --test cuda -- --ignored long_rows"]
fn long_rows() {
    let gpu = cuda::device();
    let own = gpu.own_target().expect("a Hopper GPU");
    let mut few = cuda::device();
    few.processors = 8;
    cases::long_rows(&|mut case| {
        let dtypes = match case.kv_len > 10_000 {
            true => vec![Dtype::Bf16],
            false => vec![Dtype::Bf16, Dtype::F16],
        };
        for dtype in dtypes {
            (case.target, case.spec.dtype) = (own, dtype);
            check(&case, &|kernel, launch| {
                let first = gpu.launch(kernel, launch);
                let times = if launch.keys < 10_000 { 10 } else { 2 };
                for _ in 1..times {
                    assert!(first == gpu.launch(kernel, launch), "{:?}", kernel.spec);
                }
                first
            });
            if case.kv_len > 10_000 {
                continue;
            }
            for gpu in [&gpu, &few] {
                check(&case, &|kernel, launch| {
                    gpu.launch(&spread_always(kernel), launch)
                });
            }
        }
    });
}

/// The kernel with a geometry by which rows of any length are spread, over parts that may be empty.
fn spread_always(kernel: &Kernel) -> Kernel {
    let mut kernel = kernel.clone();
    if let Launch::Split(split) = &mut kernel.geometry.launch
        && let Some(spread) = &mut split.spread
    {
        (spread.from, spread.part) = (1, 16);
    }
    kernel
}

/// Prints how fast decode of one sequence reads long rows.
#[test]
#[ignore = "measures, checks nothing: cargo test --release -p butterfly-codegen --test cuda -- --ignored --nocapture reads"]
fn reads_of_long_rows() {
    let gpu = cuda::device();
    let own = gpu.own_target().expect("a Hopper GPU");
    for (d, dv, group, kv_heads, v_in_k) in [
        (576, 512, 20, 1, true),
        (128, 128, 4, 8, false),
        (256, 256, 4, 4, false),
        (64, 64, 8, 8, false),
    ] {
        for length in [1024, 8192, 65_536, 229_376] {
            let mut case = cases::case(Role::Decode, d);
            case.spec.rows = butterfly_ir::Rows::ClosedForm(cases::relative(-UNBOUNDED));
            (case.target, case.spec.dtype) = (own, Dtype::Bf16);
            (case.spec.v_head_dim, case.spec.group, case.spec.block) = (dv, group, 128);
            (case.kv_heads, case.v_in_k, case.pad) = (kv_heads, v_in_k, 0);
            (case.q_len, case.kv_len, case.capacity) = (1, length, length);
            case.q_offset = length - 1;
            let (kernel, launch) = support::prepare(&case, &support::tensors(&case));
            let (_, _, time) = gpu.launch_often(&kernel, &launch, 200);
            let of_key = 2 * (d + if v_in_k { 0 } else { dv }) * kv_heads;
            let bytes = f64::from(of_key) * f64::from(length);
            let rate = bytes / time.as_secs_f64() * 1e-9;
            println!("D {d} Hkv {kv_heads} group {group}, {length} keys: {time:?}, {rate:.0} GB/s");
        }
    }
}

/// 500 random shapes and patterns, on kernels with Hopper's own instructions.
#[test]
#[ignore = "needs a Hopper GPU: cargo test --release -p butterfly-codegen --test cuda -- --ignored random"]
fn random_shapes_and_patterns() {
    let own = cuda::device().own_target().expect("a Hopper GPU");
    const KERNELS: u32 = 125;
    const SHAPES: u32 = 4;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut gpu = cuda::device();
                for kernel in (0..KERNELS).filter(|kernel| kernel % threads == thread) {
                    for shape in 0..SHAPES {
                        let case = random::case(kernel, shape, own);
                        // Sometimes launches are sized for fewer SMs than the device has.
                        gpu.processors = [132, 132, 20, 8][shape as usize];
                        check(&case, &|kernel, launch| {
                            let geometry = &kernel.geometry;
                            assert_ne!(geometry.launch, butterfly_ir::Launch::Grid);
                            gpu.launch(kernel, launch)
                        });
                    }
                }
            });
        }
    });
}

/// A KV cache with more elements than 32 bits can count: 9 GB of k and as many of v.
#[test]
#[ignore = "needs a Hopper GPU with 24 GB, and as much memory: cargo test --release -p butterfly-codegen --test cuda -- --ignored more_elements"]
fn more_elements_than_32_bits_count() {
    let gpu = cuda::device();
    let own = gpu.own_target().expect("a Hopper GPU");
    for role in cases::ROLES {
        large::check(role, own, &|kernel, launch| gpu.launch(kernel, launch));
    }
}

/// Small launches of different kernels, ten times each.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored ten_launches; also under compute-sanitizer"]
fn ten_launches_give_the_same_bits() {
    repeat(random::few);
}

/// The same with launches that use each slot of shared memory many times; also for memcheck and
/// synccheck of compute-sanitizer.
///
/// Its racecheck reports false races in prefill here. A whole warp reads a slot that the producer
/// filled, waits at `__syncwarp`, and then one lane releases the slot. Where the lanes of a warp
/// are converged anyway, that wait compiles to no instruction, so the tool takes the reads for a
/// race with the producer's next write. If only the lane that releases the slot reads it, and
/// `__shfl_sync` passes the value on, racecheck reports nothing; but that spills registers, and
/// costs 3 % at head size 64.
#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly-codegen --test cuda -- --ignored long_launches"]
fn long_launches_give_the_same_bits() {
    repeat(random::long);
}

fn repeat(cases: fn(Target) -> Vec<Case>) {
    let gpu = cuda::device();
    let own = gpu.own_target().unwrap_or(gpu.target);
    for case in cases(own) {
        let (kernel, launch) = support::prepare(&case, &support::tensors(&case));
        let first = gpu.launch(&kernel, &launch);
        for _ in 1..10 {
            assert!(first == gpu.launch(&kernel, &launch), "{:?}", case.spec);
        }
        check(&case, &|kernel, launch| gpu.launch(kernel, launch));
    }
}

/// Prints the time of a launch at the sizes in the README's table.
#[test]
#[ignore = "measures, checks nothing: cargo test --release -p butterfly-codegen --test cuda -- --ignored --nocapture speed"]
fn speed() {
    let gpu = cuda::device();
    let targets = [Some(gpu.target), gpu.own_target()];
    for (role, target) in cases::ROLES
        .iter()
        .flat_map(|role| targets.map(|t| (*role, t)))
    {
        let Some(target) = target else { continue };
        for dtype in [Dtype::Bf16, Dtype::F32] {
            for (length, d) in [(8192, 128), (32768, 128), (32768, 64), (32768, 256)] {
                let mut case = cases::case(role, d);
                (case.target, case.spec.dtype) = (target, dtype);
                (case.spec.block, case.spec.group, case.kv_heads) = (128, 4, 4);
                (case.kv_len, case.capacity, case.index) = (length, length, 3);
                case.q_len = if role == Role::Prefill { length } else { 1 };
                case.q_offset = length - case.q_len;
                let (kernel, launch) = support::prepare(&case, &support::tensors(&case));
                let (_, _, time) = gpu.launch_often(&kernel, &launch, 50);
                println!(
                    "{role:?} {target} {} T {length} D {d}: {time:?}",
                    dtype.name()
                );
            }
        }
    }
}
