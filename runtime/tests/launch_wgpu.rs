//! Launches emitted kernels, and compares their results with the f64 reference, on whatever Vulkan
//! device there is (Mesa's software device is enough).

use butterfly_ir::{
    Atom, BandTable, Bound, Context, Dtype, KernelSpec, LaunchScalars, PartnerRule, Role,
    RowProgram, Rows, SymbolicBand, Target, band::UNBOUNDED,
};
use butterfly_runtime::{Arguments, Device, LaunchError, Loaded, Output, adapters, launch};

const HEAD_DIM: usize = 40;
const V_HEAD_DIM: usize = 24;
const GROUP: usize = 3;
const KV_HEADS: usize = 2;
const BATCH: usize = 2;
const BLOCK: usize = 32;
const INDEX: u32 = 1;

/// causal & (local(1) | partner(causal_shift) | sink(1))
fn butterfly() -> RowProgram {
    let atoms = vec![
        Atom::Local {
            before: 1,
            after: 0,
        },
        Atom::Partner {
            rule: PartnerRule::CausalShift,
            radix: 2,
            offset: 0,
            step: 1,
        },
        Atom::Sink { blocks: 1 },
    ];
    let band = |i: usize| SymbolicBand {
        lo: vec![Bound::Start(i as u32)],
        hi: vec![Bound::Stop(i as u32)],
        first: -UNBOUNDED,
        end: 1,
        heads: Default::default(),
    };
    let bands = (0..atoms.len()).map(band).collect();
    RowProgram { atoms, bands }
}

struct Case {
    spec: KernelSpec,
    q_len: usize,
    kv_len: usize,
    table: BandTable,
}

impl Case {
    fn new(role: Role, dtype: Dtype, q_len: usize, kv_len: usize) -> Self {
        let context = Context::new(BLOCK as u32, kv_len as u32, INDEX);
        let mut table = BandTable::default();
        table.offsets.push(0);
        for b in 0..context.rows() {
            let mut bands = butterfly().bands(b, 0, &context);
            for band in &mut bands {
                band.hi = band.hi.min(kv_len as i32);
            }
            table.bands.extend(bands);
            table.offsets.push(table.bands.len() as u32);
        }
        Self {
            spec: KernelSpec {
                score: Default::default(),
                role,
                head_dim: HEAD_DIM as u32,
                v_head_dim: V_HEAD_DIM as u32,
                group: GROUP as u32,
                dtype,
                block: BLOCK as u32,
                rows: Rows::ClosedForm(butterfly()),
            },
            q_len,
            kv_len,
            table,
        }
    }

    fn scalars(&self) -> LaunchScalars {
        let strides = |heads: usize, tokens: usize, dim: usize| {
            [heads * tokens * dim, tokens * dim, dim].map(|s| s as u64)
        };
        LaunchScalars {
            q_len: self.q_len as u32,
            kv_len: self.kv_len as u32,
            q_offset: (self.kv_len - self.q_len) as u32,
            kv_heads: KV_HEADS as u32,
            blocks: self.kv_len.div_ceil(BLOCK) as u32,
            index: INDEX,
            prompt: self.kv_len as u32,
            table: self.table.layout(),
            scale_bits: scale().to_bits(),
            q_strides: strides(GROUP * KV_HEADS, self.q_len, HEAD_DIM),
            k_strides: strides(KV_HEADS, self.kv_len, HEAD_DIM),
            v_strides: strides(KV_HEADS, self.kv_len, V_HEAD_DIM),
            o_strides: strides(GROUP * KV_HEADS, self.q_len, V_HEAD_DIM),
        }
    }
}

fn scale() -> f32 {
    2.0 / (HEAD_DIM as f32).sqrt()
}

/// Repeatable numbers in `-1..1`, rounded to `dtype`.
fn noise(dtype: Dtype, seed: u32, length: usize) -> Vec<f32> {
    let number = |i: usize| {
        let mut x = (i as u32).wrapping_mul(0x9E37_79B9) ^ seed.wrapping_mul(0x85EB_CA6B);
        x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
        x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
        let x = ((x ^ (x >> 16)) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        match dtype {
            Dtype::F32 => x,
            Dtype::F16 => half::f16::from_f32(x).to_f32(),
            Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
        }
    };
    (0..length).map(number).collect()
}

fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let values = values.iter().copied();
    match dtype {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Dtype::F16 => values
            .flat_map(|x| half::f16::from_f32(x).to_le_bytes())
            .collect(),
        Dtype::Bf16 => values
            .flat_map(|x| half::bf16::from_f32(x).to_le_bytes())
            .collect(),
    }
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        Dtype::F16 => pairs
            .map(|b| half::f16::from_le_bytes(b).to_f32())
            .collect(),
        Dtype::Bf16 => pairs
            .map(|b| half::bf16::from_le_bytes(b).to_f32())
            .collect(),
    }
}

fn target(device: Device) -> Target {
    match device {
        Device::Vulkan => Target::Vulkan,
        Device::Webgpu => Target::Webgpu,
        Device::Cuda => unreachable!("not here"),
    }
}

/// Panics if there is no such device: `scripts/setup` installs a software one.
fn demand(device: Device) {
    let all = adapters();
    let one = all.iter().find(|adapter| adapter.device == device);
    if let Err(reason) = &one.expect("every device is listed").found {
        panic!("no {device} device: {reason}; scripts/setup installs one");
    }
}

struct Tensors {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn tensors(case: &Case) -> Tensors {
    let dtype = case.spec.dtype;
    let (q_rows, rows) = (
        BATCH * KV_HEADS * GROUP * case.q_len,
        BATCH * KV_HEADS * case.kv_len,
    );
    Tensors {
        q: noise(dtype, 1, q_rows * HEAD_DIM),
        k: noise(dtype, 2, rows * HEAD_DIM),
        v: noise(dtype, 3, rows * V_HEAD_DIM),
    }
}

fn run(device: Device, case: &Case) -> Result<Output, LaunchError> {
    let kernel = butterfly_codegen::emit(&case.spec, target(device)).expect("emits");
    let (_, image) = kernel.files.last().expect("a file");
    let tensors = tensors(case);
    let dtype = case.spec.dtype;
    launch(
        device,
        &Loaded {
            key: &blake3::hash(image).to_hex(),
            entry: &kernel.entry,
            spec: &case.spec,
            geometry: kernel.geometry,
            image,
        },
        &Arguments {
            score: Default::default(),
            scalars: case.scalars(),
            batch: BATCH as u32,
            q: &bytes(dtype, &tensors.q),
            k: &bytes(dtype, &tensors.k),
            v: &bytes(dtype, &tensors.v),
            rows: (case.spec.rows == Rows::Table).then_some(&case.table),
        },
        2,
    )
}

fn check(device: Device, case: &Case) {
    let got = run(device, case).unwrap_or_else(|error| panic!("{device}: {error}"));
    let tensors = tensors(case);
    let offset = case.kv_len - case.q_len;
    let problem = butterfly_cpu::Problem {
        score: Default::default(),
        batch: BATCH,
        q_heads: KV_HEADS * GROUP,
        kv_heads: KV_HEADS,
        q_len: case.q_len,
        kv_len: case.kv_len,
        kv_room: case.kv_len,
        head_dim: HEAD_DIM,
        v_head_dim: V_HEAD_DIM,
        q_offset: offset,
        block: BLOCK,
        scale: scale(),
        q: &tensors.q,
        k: (&tensors.k).into(),
        v: (&tensors.v).into(),
        rows: &case.table,
    };
    let sees = |head, q, k| problem.sees(head, q, k);
    let (o, lse) = butterfly_cpu::reference::attend_f64(&problem, sees);
    let o_within = match case.spec.dtype {
        Dtype::F32 => (2e-5, 1e-5),
        Dtype::F16 | Dtype::Bf16 => (2e-3, 2e-3),
    };
    let compare = |what: &str, got: &[f32], want: &[f64], (atol, rtol): (f64, f64)| {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let off = (f64::from(*got) - want).abs();
            let near = f64::from(*got) == *want || off <= atol + rtol * want.abs();
            assert!(
                near,
                "{what}[{i}] is {got}, not {want}: {device} {:?}",
                case.spec
            );
        }
    };
    compare("o", &floats(case.spec.dtype, &got.o), &o, o_within);
    // lse is f32 for every element type.
    compare("lse", &got.lse, &lse, (1e-4, 0.0));
    assert!(got.first_milliseconds > 0.0 && got.milliseconds.len() == 2);
    assert!(got.milliseconds.iter().all(|ms| *ms > 0.0));
}

const DEVICES: [Device; 2] = [Device::Vulkan, Device::Webgpu];

#[test]
fn prefill_and_decode() {
    for device in DEVICES {
        demand(device);
        check(device, &Case::new(Role::Prefill, Dtype::F32, 205, 205));
        check(device, &Case::new(Role::Prefill, Dtype::F32, 51, 301));
        check(device, &Case::new(Role::Decode, Dtype::F32, 1, 333));
        check(device, &Case::new(Role::Decode, Dtype::F32, 3, 77));
    }
}

#[test]
fn half_precision_and_odd_lengths() {
    for device in DEVICES {
        demand(device);
        check(device, &Case::new(Role::Prefill, Dtype::F16, 101, 101));
        check(device, &Case::new(Role::Decode, Dtype::F16, 1, 99));
    }
}

#[test]
fn rows_from_a_table() {
    for device in DEVICES {
        demand(device);
        for role in [Role::Prefill, Role::Decode] {
            let mut case = Case::new(role, Dtype::F32, 70, 130);
            case.spec.rows = Rows::Table;
            check(device, &case);
        }
    }
}

#[test]
fn no_queries() {
    for device in DEVICES {
        demand(device);
        let output = run(device, &Case::new(Role::Prefill, Dtype::F32, 0, 40)).expect("runs");
        assert_eq!((output.o.len(), output.lse.len()), (0, 0));
    }
}

#[test]
fn errors_name_what_is_wrong() {
    let mut case = Case::new(Role::Prefill, Dtype::F32, 40, 40);
    case.spec.rows = Rows::Table;
    case.table.offsets.pop();
    assert!(matches!(
        run(Device::Vulkan, &case),
        Err(LaunchError::Rows(_))
    ));

    let case = Case::new(Role::Prefill, Dtype::F32, 40, 40);
    let kernel = butterfly_codegen::emit(&case.spec, Target::Vulkan).expect("emits");
    let some = vec![0; 4 * BATCH * KV_HEADS * GROUP * 40 * HEAD_DIM];
    let attempt = |image: &[u8], k: &[u8], device: Device| {
        let loaded = Loaded {
            key: "wrong",
            entry: &kernel.entry,
            spec: &case.spec,
            geometry: kernel.geometry,
            image,
        };
        let arguments = Arguments {
            score: Default::default(),
            scalars: case.scalars(),
            batch: BATCH as u32,
            q: &some,
            k,
            v: &some,
            rows: None,
        };
        launch(device, &loaded, &arguments, 1).expect_err("refused")
    };
    let text = b"@compute fn nonsense(";
    let image = &kernel.files.last().expect("a form that is launched").1;
    let short = attempt(image, &some[..12], Device::Vulkan);
    assert!(matches!(short, LaunchError::Short { name: "k", .. }));
    let image = attempt(text, &some, Device::Vulkan);
    assert!(matches!(image, LaunchError::Image { .. }));
    demand(Device::Webgpu);
    let failed = attempt(text, &some, Device::Webgpu);
    assert!(matches!(failed, LaunchError::Failed { .. }), "{failed}");
    // The device still works after these failures.
    check(Device::Webgpu, &case);
}
