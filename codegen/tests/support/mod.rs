//! Launches an emitted kernel and compares it with a plain f64 reference.

pub(crate) mod cases;

use butterfly_ir::{
    Band, BandTable, Context, Dtype, Geometry, Kernel, KernelSpec, LaunchScalars, Rows,
    ScoreValues, Target, band::keys_of_query,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// One launch.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) spec: KernelSpec,
    pub(crate) target: Target,
    pub(crate) batch: u32,
    pub(crate) kv_heads: u32,
    pub(crate) q_len: u32,
    pub(crate) kv_len: u32,
    pub(crate) q_offset: u32,
    pub(crate) capacity: u32,
    pub(crate) index: u32,
    pub(crate) prompt: u32,
    /// Unused elements between the rows of each tensor.
    pub(crate) pad: u32,
    /// Whether the values are the first elements of the keys.
    pub(crate) v_in_k: bool,
    /// 1.5 times the standard deviation of logits.
    pub(crate) sharpness: f32,
    pub(crate) table: BandTable,
}

/// One launch of an emitted kernel: the bytes of its inputs and of o before it, the size of lse,
/// and the grid.
pub(crate) struct Launch {
    pub(crate) inputs: Vec<Vec<u8>>,
    pub(crate) o: Vec<u8>,
    pub(crate) lse_bytes: usize,
    pub(crate) grid: [u32; 3],
    /// The most keys that a query sees, as `Geometry::fitted` takes it.
    #[allow(dead_code, reason = "only on CUDA")]
    pub(crate) keys: u32,
    /// The tensor maps of q, k, v and o, for a kernel that copies by TMA.
    #[allow(dead_code, reason = "only on CUDA")]
    pub(crate) maps: Vec<Map>,
    /// The scalars, for a kernel that takes them by value.
    #[allow(dead_code, reason = "only on CUDA")]
    pub(crate) by_value: Option<Vec<u32>>,
}

/// A tensor map: shape `[B, H, length, D]`, strides, and the box that one copy transfers, all in
/// elements of two bytes.
#[allow(dead_code, reason = "only on CUDA")]
pub(crate) struct Map {
    pub(crate) bf16: bool,
    pub(crate) shape: [u32; 4],
    pub(crate) strides: [u64; 3],
    pub(crate) tile: [u32; 4],
}

/// Launches a kernel and returns the bytes of o and lse.
pub(crate) type Run<'a> = &'a dyn Fn(&Kernel, &Launch) -> (Vec<u8>, Vec<u8>);

/// A pseudo-random number in `-1..1`, the same in every run.
pub(crate) fn noise(seed: u32, i: usize) -> f32 {
    let mut x = (i as u32).wrapping_mul(0x9E37_79B9) ^ seed.wrapping_mul(0x85EB_CA6B);
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    ((x ^ (x >> 16)) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

#[derive(Clone)]
pub(crate) struct Tensor {
    values: Vec<f32>,
    strides: [u32; 3],
}

/// A tensor of pseudo-random values, rounded to the case's dtype, with `case.pad` elements between
/// rows.
fn tensor(case: &Case, seed: u32, heads: u32, tokens: u32, dim: u32) -> Tensor {
    let (dtype, pitch) = (case.spec.dtype, dim + case.pad);
    let strides = [heads * tokens * pitch, tokens * pitch, pitch];
    let round = |x: f32| match dtype {
        Dtype::F32 => x,
        Dtype::F16 => half::f16::from_f32(x).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
    };
    let length = (case.batch * strides[0]) as usize;
    Tensor {
        values: (0..length).map(|i| round(noise(seed, i))).collect(),
        strides,
    }
}

/// q, k, v and o as it is before the launch.
pub(crate) fn tensors(case: &Case) -> [Tensor; 4] {
    let heads = case.kv_heads * case.spec.group;
    let (d, dv) = (case.spec.head_dim, case.spec.v_head_dim);
    let mut tensors = [
        tensor(case, 1, heads, case.q_len, d),
        tensor(case, 2, case.kv_heads, case.kv_len, d),
        tensor(case, 3, case.kv_heads, case.kv_len, dv),
        tensor(case, 4, heads, case.q_len, dv),
    ];
    // Keys that no query sees, and their values, are NaN for kernels that guarantee to ignore them:
    // those for decode on Hopper.
    if let butterfly_ir::Launch::Split(_) = emitted(&case.spec, case.target).geometry.launch {
        let positions = case.q_offset..case.q_offset + case.q_len;
        let by = |kv: u32| positions.clone().flat_map(move |i| seen(case, kv, i));
        let seen: Vec<BTreeSet<u32>> = (0..case.kv_heads).map(|kv| by(kv).collect()).collect();
        for t in &mut tensors[1..3] {
            let [batch, head, token] = t.strides.map(|stride| stride as usize);
            for (i, x) in t.values.iter_mut().enumerate() {
                if !seen[i % batch / head].contains(&((i % head / token) as u32)) {
                    *x = f32::NAN;
                }
            }
        }
    }
    if case.v_in_k {
        tensors[2] = tensors[1].clone();
    }
    tensors
}

fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values
            .iter()
            .flat_map(|x| half::f16::from_f32(*x).to_le_bytes())
            .collect(),
        Dtype::Bf16 => values
            .iter()
            .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
            .collect(),
    }
}

fn floats(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        Dtype::F16 => bytes
            .chunks_exact(2)
            .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        Dtype::Bf16 => bytes
            .chunks_exact(2)
            .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
    }
}

/// Launches `case` and compares every element of o and lse.
pub(crate) fn check(case: &Case, gpu: Run<'_>) {
    let spec = &case.spec;
    let heads = case.kv_heads * spec.group;
    let (d, dv) = (spec.head_dim, spec.v_head_dim);
    let tensors = tensors(case);
    let (kernel, launch) = prepare(case, &tensors);
    let [q, k, v, o] = &tensors;
    let scale = scale(case);
    let sinks = sinks(case);
    let values = score(case, &sinks);
    let (got_o, got_lse) = gpu(&kernel, &launch);
    let got_o = floats(spec.dtype, &got_o);
    let got_lse = floats(Dtype::F32, &got_lse);

    let tolerance = match spec.dtype {
        // Logits are rounded, larger ones by more.
        Dtype::F32 => 2e-5 * f64::from(case.sharpness),
        Dtype::F16 => 2e-3,
        Dtype::Bf16 => 1.6e-2,
    };
    let label = format!(
        "{:?} {} q_len {} kv_len {} q_offset {} capacity {} index {} {spec:?}",
        spec.role, case.target, case.q_len, case.kv_len, case.q_offset, case.capacity, case.index
    );
    // lse is f32 for every dtype. One lost key of n equal ones would change it by about 1/n.
    let lse_tolerance = |lse: f64| 1e-4 + 1e-6 * lse.abs();
    let close = |got: f32, want: f64, tolerance: f64, what: &str, at: [u32; 4]| {
        let same = f64::from(got) == want || (f64::from(got) - want).abs() <= tolerance;
        assert!(same, "{what}{at:?} is {got}, not {want}: {label}");
    };
    for b in 0..case.batch {
        for head in 0..heads {
            for i in 0..case.q_len {
                let of = |t: &Tensor, h: u32, i: u32| {
                    (b * t.strides[0] + h * t.strides[1] + i * t.strides[2]) as usize
                };
                let kv = head / spec.group;
                let q_row = &q.values[of(q, head, i)..][..d as usize];
                let position = case.q_offset + i;
                let seen = seen(case, kv, position);
                let logits: Vec<f64> = seen
                    .iter()
                    .map(|key| {
                        let k_row = &k.values[of(k, kv, *key)..][..d as usize];
                        let dot = |(x, y): (&f32, &f32)| f64::from(*x) * f64::from(*y);
                        let logit =
                            q_row.iter().zip(k_row).map(dot).sum::<f64>() * f64::from(scale);
                        let cap = values.softcap.map(f64::from);
                        cap.map_or(logit, |cap| cap * (logit / cap).tanh())
                    })
                    .collect();
                let sink = values.sinks.map(|sinks| f64::from(sinks[head as usize]));
                let all = || logits.iter().copied().chain(sink);
                let top = all().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = all().map(|x| (x - top).exp()).sum();
                let lse = if seen.is_empty() && sink.is_none() {
                    f64::NEG_INFINITY
                } else {
                    top + total.ln()
                };
                let at = ((b * heads + head) * case.q_len + i) as usize;
                let within = lse_tolerance(lse);
                close(got_lse[at], lse, within, "lse", [b, head, i, 0]);
                for c in 0..dv {
                    let sum: f64 = (seen.iter().zip(&logits))
                        .map(|(key, x)| {
                            let value = v.values[of(v, kv, *key) + c as usize];
                            (x - lse).exp() * f64::from(value)
                        })
                        .sum();
                    close(
                        got_o[of(o, head, i) + c as usize],
                        sum,
                        tolerance,
                        "o",
                        [b, head, i, c],
                    );
                }
                // The elements between rows must not be written.
                for c in dv..o.strides[2] {
                    let at = of(o, head, i) + c as usize;
                    assert_eq!(got_o[at], o.values[at], "pitch of o: {label}");
                }
            }
        }
    }
}

/// The keys that the query at `position` sees in kv head `kv_head`.
pub(crate) fn seen(case: &Case, kv_head: u32, position: u32) -> Vec<u32> {
    let bands = row(case, kv_head, position / case.spec.block);
    let intervals = keys_of_query(&bands, position as i32).into_iter();
    intervals
        .flat_map(|(start, end)| start as u32..end as u32)
        .collect()
}

/// The bands of row `b` in kv head `kv_head`.
fn row(case: &Case, kv_head: u32, b: u32) -> Vec<Band> {
    let context = Context {
        capacity: case.capacity,
        prompt: case.prompt,
        ..Context::new(case.spec.block, case.kv_len, case.index)
    };
    let mut bands = match &case.spec.rows {
        Rows::ClosedForm(program) => program.bands(b, kv_head, &context),
        Rows::Table => case.table.row(kv_head as usize, b as usize).to_vec(),
    };
    for band in &mut bands {
        band.hi = band.hi.min(case.kv_len as i32);
    }
    bands
}

/// Sink logits, of the same size as other logits.
fn sinks(case: &Case) -> Vec<f32> {
    let heads = case.kv_heads * case.spec.group;
    (0..heads as usize).map(|i| 3.0 * noise(5, i)).collect()
}

/// The softcap and sinks of a case; the softcap is small enough to change most logits.
fn score<'a>(case: &Case, sinks: &'a [f32]) -> ScoreValues<'a> {
    ScoreValues {
        softcap: case.spec.score.softcap.then_some(0.7),
        sinks: case.spec.score.sinks.then_some(sinks),
    }
}

/// The factor by which scores are multiplied.
fn scale(case: &Case) -> f32 {
    2.0 * case.sharpness / (case.spec.head_dim as f32).sqrt()
}

/// Emits the kernel of a case, and prepares its launch on these tensors.
pub(crate) fn prepare(case: &Case, [q, k, v, o]: &[Tensor; 4]) -> (Arc<Kernel>, Launch) {
    let spec = &case.spec;
    let heads = case.kv_heads * spec.group;
    let (d, dv) = (spec.head_dim, spec.v_head_dim);
    let scalars = LaunchScalars {
        q_len: case.q_len,
        kv_len: case.kv_len,
        q_offset: case.q_offset,
        kv_heads: case.kv_heads,
        blocks: case.capacity.div_ceil(spec.block),
        index: case.index,
        prompt: case.prompt,
        table: case.table.layout(),
        scale_bits: scale(case).to_bits(),
        q_strides: q.strides.map(u64::from),
        k_strides: k.strides.map(u64::from),
        v_strides: v.strides.map(u64::from),
        o_strides: o.strides.map(u64::from),
    };
    let kernel = emitted(spec, case.target);
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let sinks = sinks(case);
    let values = score(case, &sinks);
    let mut maps = Vec::new();
    if let Some(boxes) = kernel.geometry.boxes {
        let [heads_at_once, tokens] = boxes.q;
        let keys = [1, 1, boxes.k, 64];
        for (strides, heads, length, dim, tile) in [
            (
                q.strides,
                heads,
                case.q_len,
                d,
                [1, heads_at_once, tokens, 64],
            ),
            (k.strides, case.kv_heads, case.kv_len, d, keys),
            (v.strides, case.kv_heads, case.kv_len, dv, keys),
            (o.strides, heads, case.q_len, dv, [1, 1, tokens, 64]),
        ] {
            maps.push(Map {
                bf16: spec.dtype == Dtype::Bf16,
                shape: [case.batch, heads, length, dim],
                strides: strides.map(u64::from),
                tile,
            });
        }
    }
    let mut inputs = vec![
        bytes(spec.dtype, &q.values),
        bytes(spec.dtype, &k.values),
        bytes(spec.dtype, &v.values),
    ];
    let by_value = kernel.geometry.boxes.is_some();
    if !by_value {
        inputs.push(words(&scalars.parameters(spec, case.batch, &values, &[])));
    }
    if spec.rows == Rows::Table {
        let bands = case.table.bands.iter();
        let limits: Vec<u32> = bands
            .flat_map(|band| [band.lo, band.hi, band.first, band.end].map(|x| x as u32))
            .collect();
        inputs.push(words(&case.table.offsets));
        inputs.push(words(&limits));
    }
    if let (true, Some(sinks)) = (by_value, values.sinks) {
        inputs.push(sinks.iter().flat_map(|sink| sink.to_le_bytes()).collect());
    }
    let lse_bytes = (case.batch * heads * case.q_len * 4) as usize;
    let launch = Launch {
        inputs,
        o: bytes(spec.dtype, &o.values),
        lse_bytes,
        grid: kernel.geometry.grid(spec, &scalars, case.batch),
        keys: keys(case, &kernel.geometry),
        maps,
        by_value: by_value.then(|| scalars.by_value(spec, case.batch, &values, &[])),
    };
    (kernel, launch)
}

/// The most keys that the last query sees in a kv head, if the kernel could be spread for this case; else 0.
fn keys(case: &Case, geometry: &Geometry) -> u32 {
    let spread = match geometry.launch {
        butterfly_ir::Launch::Split(split) => split.spread,
        _ => None,
    };
    match spread {
        Some(spread) if case.v_in_k || !spread.v_in_k => {
            let last = case.q_offset + case.q_len - 1;
            let heads = (0..case.kv_heads).map(|kv| seen(case, kv, last).len() as u32);
            heads.max().unwrap_or(0)
        }
        _ => 0,
    }
}

/// Emits each kernel once, because compiling takes longer than running.
fn emitted(spec: &KernelSpec, target: Target) -> Arc<Kernel> {
    static KERNELS: Mutex<BTreeMap<String, Arc<Kernel>>> = Mutex::new(BTreeMap::new());
    let name = format!("{spec:?} {target}");
    if let Some(kernel) = KERNELS.lock().expect("a lock").get(&name) {
        return kernel.clone();
    }
    let kernel = Arc::new(butterfly_codegen::emit(spec, target).expect("emits"));
    KERNELS.lock().expect("a lock").insert(name, kernel.clone());
    kernel
}
