//! Tests of the checks before a launch, at the limits. They need no device.

use super::*;
use crate::Loaded;
use butterfly_ir::{Boxes, Geometry, KernelSpec, Role, Split, Target};

const ROLES: [Role; 2] = [Role::Prefill, Role::Decode];

fn spec(role: Role, dtype: Dtype) -> KernelSpec {
    KernelSpec {
        role,
        head_dim: 256,
        v_head_dim: 256,
        group: 1,
        dtype,
        block: 128,
        rows: Rows::ClosedForm(Default::default()),
        score: Score::default(),
    }
}

fn ready_of(spec: &KernelSpec, geometry: Geometry) -> Result<Ready, LaunchError> {
    let loaded = Loaded {
        key: "key",
        entry: "entry",
        spec,
        geometry,
        image: b"text",
    };
    Ready::new(Device::Cuda, &loaded)
}

fn geometry(spec: &KernelSpec, target: Target) -> Geometry {
    let choice = butterfly_codegen::choose(spec, target);
    choice.expect("a spec that the target runs").geometry
}

/// A kernel for [`PORTABLE`] or [`HOPPER`].
fn ready(role: Role, target: &str) -> Ready {
    let target: Target = target.parse().expect("a target");
    let spec = spec(role, Dtype::Bf16);
    ready_of(&spec, geometry(&spec, target)).expect("a kernel")
}

const PORTABLE: &str = "cuda:sm_90";
const HOPPER: &str = "cuda:sm_90a";

/// One query at the end of `kv_len` keys of contiguous tensors.
fn call(batch: u32, kv_heads: u32, kv_len: u32) -> Call<'static> {
    let strides = |tokens: u32| {
        let head = u64::from(tokens) * 256;
        [u64::from(kv_heads) * head, head, 256]
    };
    Call {
        scalars: LaunchScalars {
            q_len: 1,
            kv_len,
            q_offset: kv_len.saturating_sub(1),
            kv_heads,
            blocks: kv_len.div_ceil(128),
            index: 0,
            prompt: kv_len,
            table: Default::default(),
            scale_bits: 1.0f32.to_bits(),
            q_strides: strides(1),
            k_strides: strides(kv_len),
            v_strides: strides(kv_len),
            o_strides: strides(1),
        },
        batch,
        score: ScoreValues::default(),
        v_in_k: false,
        lags: &[],
    }
}

fn refused(kernel: &Ready, call: &Call<'_>, what: &str) {
    match needs(Device::Cuda, kernel, call) {
        Err(LaunchError::Limit { what: limited, .. }) => assert_eq!(limited, what),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{what} is not limited"),
    }
}

/// Every kernel has the same limit: the number that stands for "no limit" in a band must not be a
/// position.
#[test]
fn positions_end_where_kernels_mean_no_limit() {
    for (role, target) in ROLES.into_iter().flat_map(|p| [(p, PORTABLE), (p, HOPPER)]) {
        let kernel = ready(role, target);
        // All tokens at one address: only their positions matter here.
        let mut call = call(1, 1, MAX_TOKENS);
        call.scalars.k_strides = [0; 3];
        call.scalars.v_strides = [0; 3];
        assert!(needs(Device::Cuda, &kernel, &call).is_ok());
        call.scalars.kv_len = MAX_TOKENS + 1;
        refused(&kernel, &call, "kv_len");
        call.scalars.kv_len = MAX_TOKENS;
        call.scalars.q_offset = MAX_TOKENS;
        refused(&kernel, &call, "the end of the queries");
        call.scalars.q_offset = u32::MAX;
        refused(&kernel, &call, "the end of the queries");
    }
}

/// 17 heads of 2^20 keys of 256 elements are more elements than 32 bits can count.
#[test]
fn large_caches_are_for_kernels_that_count_by_64_bits() {
    for role in ROLES {
        let large = call(1, 17, 1 << 20);
        let elements = 17u64 << 28;
        assert!(elements > u64::from(u32::MAX));
        refused(&ready(role, PORTABLE), &large, "the length of k");
        let needs = needs(Device::Cuda, &ready(role, HOPPER), &large).expect("fits");
        assert_eq!(needs.tensors[1..3], [2 * elements; 2]);
        assert_eq!(needs.maps[1].strides, [elements, 1 << 28, 256, 1]);
        // The most heads whose elements 32 bits can count.
        let just = call(1, 15, 1 << 20);
        assert!(super::needs(Device::Cuda, &ready(role, PORTABLE), &just).is_ok());
    }
}

/// Sequences may be as far apart as tensor maps can express, but each stride of o has 32 bits.
#[test]
fn strides_have_limits_of_their_own() {
    for role in ROLES {
        let kernel = ready(role, HOPPER);
        let mut call = call(2, 1, 64);
        call.scalars.k_strides[0] = 1 << 33;
        assert!(needs(Device::Cuda, &kernel, &call).is_ok());
        refused(&ready(role, PORTABLE), &call, "the length of k");
        call.scalars.k_strides[0] = 1 << 39;
        refused(&kernel, &call, "the length of k");
        call.scalars.k_strides[0] = 1 << 33;
        call.scalars.o_strides[0] = 1 << 32;
        refused(&kernel, &call, "a stride of o");
        // The batch stride of a single sequence is multiplied by zero.
        call.batch = 1;
        assert!(needs(Device::Cuda, &kernel, &call).is_ok());
    }
}

#[test]
fn work_is_counted_before_it_wraps() {
    let mut spec = spec(Role::Prefill, Dtype::Bf16);
    (spec.block, spec.group) = (1 << 20, 32);
    let target = HOPPER.parse().expect("a target");
    let kernel = ready_of(&spec, geometry(&spec, target)).expect("a kernel");
    let mut call = call(1 << 14, 2, 64);
    for strides in [
        &mut call.scalars.q_strides,
        &mut call.scalars.k_strides,
        &mut call.scalars.v_strides,
        &mut call.scalars.o_strides,
    ] {
        *strides = [0; 3];
    }
    refused(&kernel, &call, "the number of items of work");
    call.batch = u32::MAX;
    refused(&kernel, &call, "the number of results");
}

#[test]
fn no_keys_and_no_queries() {
    for role in ROLES {
        let kernel = ready(role, HOPPER);
        let none = call(1, 1, 0);
        let error = needs(Device::Cuda, &kernel, &none)
            .err()
            .expect("no map of nothing");
        assert!(error.to_string().contains("without any key"), "{error}");
        let mut none = call(1, u32::MAX, 64);
        none.scalars.q_len = 0;
        none.scalars.k_strides = [0; 3];
        none.scalars.v_strides = [0; 3];
        let needs = needs(Device::Cuda, &kernel, &none).expect("nothing to do");
        assert_eq!((needs.grid, needs.maps.is_empty()), ([0; 3], true));
    }
}

/// A geometry is refused if any one of the fields that a launch relies on is wrong.
#[test]
fn geometries_that_are_none_are_refused() {
    type Change = fn(&mut Geometry);
    const fn split(cluster: u32) -> Launch {
        Launch::Split(Split {
            cluster,
            spread: None,
        })
    }
    let all: &[Change] = &[
        |g| g.q_tile = 0,
        |g| g.q_tile *= 4,
        |g| g.k_tile = 0,
        |g| g.threads[0] = 0,
        |g| g.threads[0] += 1,
        |g| g.threads[1] = 2,
        |g| g.shared_bytes = u32::MAX,
        |g| g.boxes = g.boxes.xor(Some(Boxes { q: [1, 64], k: 64 })),
        |g| {
            if let Some(boxes) = &mut g.boxes {
                boxes.k *= 2;
            } else {
                g.launch = split(4);
            }
        },
        |g| match &mut g.launch {
            Launch::Resident(resident) => resident.items_per_row += 1,
            Launch::Split(split) => split.cluster = 0,
            Launch::Grid => g.threads[2] = 0,
        },
        |g| match &mut g.launch {
            Launch::Resident(resident) => resident.cluster = 0,
            Launch::Split(_) => g.launch = Launch::Grid,
            Launch::Grid => g.launch = split(2),
        },
    ];
    for (role, target) in ROLES.into_iter().flat_map(|p| [(p, PORTABLE), (p, HOPPER)]) {
        let spec = spec(role, Dtype::Bf16);
        let good = geometry(&spec, target.parse().expect("a target"));
        ready_of(&spec, good).expect("a kernel");
        for (i, change) in all.iter().enumerate() {
            let mut geometry = good;
            change(&mut geometry);
            let error = ready_of(&spec, geometry).expect_err("refused");
            let unfit = matches!(error, LaunchError::Unfit { .. });
            assert!(unfit, "{i} of {role:?} {target}: {error}");
        }
    }
}
