//! Launches an emitted kernel through wgpu and compares it with a plain f64 reference.

use butterfly_ir::{
    Band, BandTable, Context, Dtype, KernelSpec, LaunchScalars, Rows, Target, band::keys_of_query,
};
use wgpu::util::DeviceExt;

/// One launch.
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
    pub(crate) table: BandTable,
}

pub(crate) struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
}

/// A Vulkan device, or `None` after saying so.
pub(crate) fn device() -> Option<Gpu> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let options = wgpu::RequestAdapterOptions::default();
    let Ok(adapter) = pollster::block_on(instance.request_adapter(&options)) else {
        eprintln!("skipped: no Vulkan device");
        return None;
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        required_features: wgpu::Features::SHADER_F16,
        required_limits: adapter.limits(),
        ..Default::default()
    }))
    .expect("a device with f16");
    Some(Gpu { device, queue })
}

/// A repeatable number in `-1..1`.
fn noise(seed: u32, i: usize) -> f32 {
    let mut x = (i as u32).wrapping_mul(0x9E37_79B9) ^ seed.wrapping_mul(0x85EB_CA6B);
    x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    ((x ^ (x >> 16)) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

struct Tensor {
    values: Vec<f32>,
    strides: [u32; 3],
}

/// Values as the dtype holds them, with a pitch that is not the row's length.
fn tensor(dtype: Dtype, seed: u32, batch: u32, heads: u32, tokens: u32, dim: u32) -> Tensor {
    let pitch = dim + 8;
    let strides = [heads * tokens * pitch, tokens * pitch, pitch];
    let round = |x: f32| match dtype {
        Dtype::F32 => x,
        Dtype::F16 => half::f16::from_f32(x).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
    };
    let length = (batch * strides[0]) as usize;
    Tensor {
        values: (0..length).map(|i| round(noise(seed, i))).collect(),
        strides,
    }
}

fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values
            .iter()
            .flat_map(|x| half::f16::from_f32(*x).to_le_bytes())
            .collect(),
        Dtype::Bf16 => unreachable!("not on this target"),
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
        Dtype::Bf16 => unreachable!("not on this target"),
    }
}

/// Launches `case` and compares every element of o and lse.
pub(crate) fn check(gpu: &Gpu, case: &Case) {
    let spec = &case.spec;
    let heads = case.kv_heads * spec.group;
    let (d, dv) = (spec.head_dim, spec.v_head_dim);
    let q = tensor(spec.dtype, 1, case.batch, heads, case.q_len, d);
    let k = tensor(spec.dtype, 2, case.batch, case.kv_heads, case.kv_len, d);
    let v = tensor(spec.dtype, 3, case.batch, case.kv_heads, case.kv_len, dv);
    let o = tensor(spec.dtype, 4, case.batch, heads, case.q_len, dv);
    let scale = 2.0 / (d as f32).sqrt();
    let scalars = LaunchScalars {
        q_len: case.q_len,
        kv_len: case.kv_len,
        q_offset: case.q_offset,
        kv_heads: case.kv_heads,
        blocks: case.capacity.div_ceil(spec.block),
        index: case.index,
        scale_bits: scale.to_bits(),
        q_strides: q.strides,
        k_strides: k.strides,
        v_strides: v.strides,
        o_strides: o.strides,
    };
    let (got_o, got_lse) = launch(gpu, case, &scalars, [&q, &k, &v, &o]);

    let tolerance = match spec.dtype {
        Dtype::F32 => 2e-5,
        Dtype::F16 | Dtype::Bf16 => 2e-3,
    };
    let label = format!(
        "{:?} {} q_len {} kv_len {} q_offset {} capacity {} index {} {spec:?}",
        spec.phase, case.target, case.q_len, case.kv_len, case.q_offset, case.capacity, case.index
    );
    let close = |got: f32, want: f64, what: &str, at: [u32; 4]| {
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
                let q_row = &q.values[of(&q, head, i)..][..d as usize];
                let position = case.q_offset + i;
                let bands = row(case, position / spec.block);
                let seen: Vec<u32> = keys_of_query(&bands, position as i32)
                    .into_iter()
                    .flat_map(|(start, end)| start as u32..end as u32)
                    .collect();
                let logits: Vec<f64> = seen
                    .iter()
                    .map(|key| {
                        let k_row = &k.values[of(&k, kv, *key)..][..d as usize];
                        let dot = |(x, y): (&f32, &f32)| f64::from(*x) * f64::from(*y);
                        q_row.iter().zip(k_row).map(dot).sum::<f64>() * f64::from(scale)
                    })
                    .collect();
                let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = logits.iter().map(|x| (x - top).exp()).sum();
                let lse = if seen.is_empty() {
                    f64::NEG_INFINITY
                } else {
                    top + total.ln()
                };
                let at = ((b * heads + head) * case.q_len + i) as usize;
                close(got_lse[at], lse, "lse", [b, head, i, 0]);
                for c in 0..dv {
                    let sum: f64 = (seen.iter().zip(&logits))
                        .map(|(key, x)| {
                            let value = v.values[of(&v, kv, *key) + c as usize];
                            (x - lse).exp() * f64::from(value)
                        })
                        .sum();
                    close(
                        got_o[of(&o, head, i) + c as usize],
                        sum,
                        "o",
                        [b, head, i, c],
                    );
                }
                // Nothing is written between the rows.
                for c in dv..o.strides[2] {
                    let at = of(&o, head, i) + c as usize;
                    assert_eq!(got_o[at], o.values[at], "pitch of o: {label}");
                }
            }
        }
    }
}

/// The bands of row `b`.
fn row(case: &Case, b: u32) -> Vec<Band> {
    let context = Context {
        block: case.spec.block,
        kv_len: case.kv_len,
        capacity: case.capacity,
        index: case.index,
    };
    let mut bands = match &case.spec.rows {
        Rows::ClosedForm(program) => program.bands(b, &context),
        Rows::Table => {
            let range = case.table.offsets[b as usize]..case.table.offsets[b as usize + 1];
            case.table.bands[range.start as usize..range.end as usize].to_vec()
        }
    };
    for band in &mut bands {
        band.hi = band.hi.min(case.kv_len as i32);
    }
    bands
}

fn launch(
    gpu: &Gpu,
    case: &Case,
    scalars: &LaunchScalars,
    [q, k, v, o]: [&Tensor; 4],
) -> (Vec<f32>, Vec<f32>) {
    let spec = &case.spec;
    let kernel = butterfly_codegen::emit(spec, case.target).expect("emits");
    let (_, text) = &kernel.files[0];
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut inputs = vec![
        bytes(spec.dtype, &q.values),
        bytes(spec.dtype, &k.values),
        bytes(spec.dtype, &v.values),
        words(&scalars.words()),
    ];
    if spec.rows == Rows::Table {
        let bands = case.table.bands.iter();
        let limits: Vec<u32> = bands
            .flat_map(|band| [band.lo, band.hi, band.first, band.end].map(|x| x as u32))
            .collect();
        inputs.push(words(&case.table.offsets));
        inputs.push(words(&limits));
    }
    let heads = case.kv_heads * spec.group;
    let lse_bytes = (case.batch * heads * case.q_len * 4) as usize;
    inputs.push(bytes(spec.dtype, &o.values));
    inputs.push(vec![0; lse_bytes]);
    let buffers: Vec<wgpu::Buffer> = inputs
        .iter()
        .map(|contents| {
            gpu.device
                .create_buffer_init(&wgpu::util::BufferInitDescriptor {
                    label: None,
                    contents,
                    usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
                })
        })
        .collect();
    let module = gpu
        .device
        .create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(String::from_utf8(text.clone()).expect("text").into()),
        });
    let pipeline = gpu
        .device
        .create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: Some(&kernel.entry),
            compilation_options: Default::default(),
            cache: None,
        });
    let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
        .zip(&buffers)
        .map(|(binding, buffer)| wgpu::BindGroupEntry {
            binding,
            resource: buffer.as_entire_binding(),
        })
        .collect();
    let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        let [x, y, z] = kernel.geometry.grid(spec, scalars, case.batch);
        pass.dispatch_workgroups(x, y, z);
    }
    let outputs = &buffers[buffers.len() - 2..];
    let copies: Vec<wgpu::Buffer> = outputs
        .iter()
        .map(|buffer| {
            let copy = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: buffer.size(),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            encoder.copy_buffer_to_buffer(buffer, 0, &copy, 0, buffer.size());
            copy
        })
        .collect();
    gpu.queue.submit([encoder.finish()]);
    for copy in &copies {
        copy.map_async(wgpu::MapMode::Read, .., |result| result.expect("maps"));
    }
    gpu.device
        .poll(wgpu::PollType::wait_indefinitely())
        .expect("finishes");
    let read = |copy: &wgpu::Buffer| copy.get_mapped_range(..).to_vec();
    (
        floats(spec.dtype, &read(&copies[0])),
        floats(Dtype::F32, &read(&copies[1])[..lse_bytes]),
    )
}
