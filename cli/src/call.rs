//! One attention call on a chosen device: host memory in, host memory and times out.

#![expect(
    clippy::cast_possible_truncation,
    reason = "commands hold shapes to 32 bits"
)]

use crate::device::{Chosen, Runner};
use crate::failure::Failure;
use crate::tensors;
use butterfly_cpu::{Attention, Problem, Route};
use butterfly_ir::pattern::Routing;
use butterfly_ir::{BandTable, Context, Dtype, LaunchScalars, Pattern, Rows, ScoreValues, rows};
use butterfly_runtime::{Arguments, Device, Loaded, launch};
use std::time::Instant;

/// Sizes of q `[B, Hq, q_len, D]`, k `[B, Hkv, kv_len, D]` and v `[B, Hkv, kv_len, Dv]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) q_len: usize,
    pub(crate) kv_len: usize,
    pub(crate) head_dim: usize,
    pub(crate) v_head_dim: usize,
}

/// One attention call, checked.
pub(crate) struct Call<'a> {
    pub(crate) pattern: &'a Pattern,
    pub(crate) context: Context,
    pub(crate) shape: Shape,
    pub(crate) dtype: Dtype,
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) q_offset: usize,
    pub(crate) scale: f32,
    pub(crate) score: ScoreValues<'a>,
    pub(crate) threads: Option<usize>,
    /// Timed runs after the first.
    pub(crate) runs: u32,
}

/// The results and times of a call.
pub(crate) struct Outcome {
    pub(crate) o: Vec<f32>,
    pub(crate) lse: Vec<f32>,
    pub(crate) first_milliseconds: f64,
    pub(crate) milliseconds: Vec<f64>,
}

impl Outcome {
    /// The median of the timed runs.
    pub(crate) fn median(&self) -> f64 {
        let mut times = self.milliseconds.clone();
        times.sort_unstable_by(f64::total_cmp);
        times[times.len() / 2]
    }
}

impl Call<'_> {
    /// Runs the call on the device and kernel that were chosen for it.
    pub(crate) fn run(&self, chosen: &Chosen) -> Result<Outcome, Failure> {
        match chosen.device {
            Runner::Cpu => self.native(&self.table()?),
            Runner::Gpu(device) => self.on_gpu(device, chosen),
        }
    }

    /// The bands of each row; those that rows choose by content are chosen on the CPU.
    pub(crate) fn table(&self) -> Result<BandTable, Failure> {
        let shape = &self.shape;
        let kv_heads = shape.kv_heads as u32;
        let fixed = rows::table(self.pattern, &self.context, kv_heads);
        let Some(Routing { pool, every, .. }) = self.pattern.routing() else {
            return Ok(fixed);
        };
        let pool = pool as usize;
        let room = shape.kv_len / pool;
        let means = self.k.chunks(shape.kv_len * shape.head_dim).flat_map(|k| {
            let pools = k.chunks_exact(pool * shape.head_dim);
            pools.flat_map(|keys| {
                let sum = |i: usize| keys[i..].iter().step_by(shape.head_dim).sum::<f32>();
                (0..shape.head_dim).map(move |i| sum(i) / pool as f32)
            })
        });
        let route = Route {
            batch: shape.batch,
            q_heads: shape.q_heads,
            kv_heads: shape.kv_heads,
            q_len: shape.q_len,
            head_dim: shape.head_dim,
            q_offset: self.q_offset,
            block: self.context.block as usize,
            pool,
            every: every as usize,
            scale: self.scale,
            q: self.q,
            means: &means.collect::<Vec<f32>>(),
            room,
            blocks: &self.pattern.routed_blocks(kv_heads),
            fixed: &fixed,
        };
        butterfly_cpu::route(&route).map_err(Failure::bad)
    }

    /// The call as the native kernel takes it.
    pub(crate) fn problem<'a>(&'a self, table: &'a BandTable) -> Problem<'a> {
        let shape = &self.shape;
        Problem {
            score: self.score,
            batch: shape.batch,
            q_heads: shape.q_heads,
            kv_heads: shape.kv_heads,
            q_len: shape.q_len,
            kv_len: shape.kv_len,
            kv_room: shape.kv_len,
            head_dim: shape.head_dim,
            v_head_dim: shape.v_head_dim,
            q_offset: self.q_offset,
            block: self.context.block as usize,
            scale: self.scale,
            q: self.q,
            k: self.k.into(),
            v: self.v.into(),
            rows: table,
        }
    }

    fn native(&self, table: &BandTable) -> Result<Outcome, Failure> {
        let problem = self.problem(table);
        let mut result = Attention::default();
        let mut once = || {
            let started = Instant::now();
            butterfly_cpu::attend_into(&problem, self.threads, &mut result)
                .map_err(Failure::bad)?;
            Ok(started.elapsed().as_secs_f64() * 1e3)
        };
        let first_milliseconds = once()?;
        let milliseconds = (0..self.runs)
            .map(|_| once())
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Outcome {
            o: result.o,
            lse: result.lse,
            first_milliseconds,
            milliseconds: match milliseconds.is_empty() {
                true => vec![first_milliseconds],
                false => milliseconds,
            },
        })
    }

    fn on_gpu(&self, device: Device, chosen: &Chosen) -> Result<Outcome, Failure> {
        let Some((entry, image)) = &chosen.kernel else {
            return Err(Failure::Bad(format!("no kernel was chosen for {device}")));
        };
        let [q, k, v] = [self.q, self.k, self.v].map(|x| tensors::encode(x, self.dtype));
        // A kernel with closed-form rows computes them, and needs no table.
        let table = match chosen.spec.rows {
            Rows::Table => Some(self.table()?),
            Rows::ClosedForm(_) => None,
        };
        let kernel = Loaded {
            key: &entry.key,
            entry: &entry.entry,
            spec: &chosen.spec,
            geometry: entry.geometry,
            image,
        };
        let arguments = Arguments {
            scalars: LaunchScalars {
                table: table
                    .as_ref()
                    .map_or_else(Default::default, BandTable::layout),
                ..self.scalars()
            },
            batch: self.shape.batch as u32,
            q: &q,
            k: &k,
            v: &v,
            rows: table.as_ref(),
            score: self.score,
        };
        let output = launch(device, &kernel, &arguments, self.runs).map_err(Failure::bad)?;
        Ok(Outcome {
            o: tensors::floats(&output.o, self.dtype),
            lse: output.lse,
            first_milliseconds: output.first_milliseconds,
            milliseconds: output.milliseconds,
        })
    }

    fn scalars(&self) -> LaunchScalars {
        let shape = &self.shape;
        let strides = |heads: usize, tokens: usize, dim: usize| {
            [heads * tokens * dim, tokens * dim, dim].map(|n| n as u64)
        };
        LaunchScalars {
            q_len: shape.q_len as u32,
            kv_len: shape.kv_len as u32,
            q_offset: self.q_offset as u32,
            kv_heads: shape.kv_heads as u32,
            blocks: self.context.blocks(),
            index: self.context.index,
            prompt: self.context.prompt,
            table: Default::default(),
            scale_bits: self.scale.to_bits(),
            q_strides: strides(shape.q_heads, shape.q_len, shape.head_dim),
            k_strides: strides(shape.kv_heads, shape.kv_len, shape.head_dim),
            v_strides: strides(shape.kv_heads, shape.kv_len, shape.v_head_dim),
            o_strides: strides(shape.q_heads, shape.q_len, shape.v_head_dim),
        }
    }
}
