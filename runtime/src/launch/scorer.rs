//! Launches kernels that score blocks by content on a CubeCL server that other code uses too.

use super::bind::{Map, long_enough};
use super::ready::Image;
use super::run::by_value;
use super::{Device, LaunchError, Launches};
use butterfly_ir::Scorer;
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::{CubeCount, Handle, KernelArguments};
use std::sync::Arc;

/// A kernel that scores blocks, prepared for launching; clones share it.
#[derive(Clone, Debug)]
pub struct ReadyScorer {
    image: Arc<Image>,
    scorer: Scorer,
}

/// The sizes of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// B, the number of sequences.
    pub batch: u32,
    /// Hkv.
    pub kv_heads: u32,
    /// Queries of each sequence.
    pub q_len: u32,
    /// Absolute position of the first query.
    pub q_offset: u32,
    /// Strides of q in elements, from one sequence, head and token to the next: multiples of 8.
    pub q_strides: [u32; 3],
    /// Means for which there is room in each head.
    pub room: u32,
    /// The first row of blocks to score, and the number of rows.
    pub rows: [u32; 2],
    /// Scores of a tile for which there is room, one for each earlier block.
    pub stride: u32,
    /// The bits of the scale of logits, a positive f32.
    pub scale_bits: u32,
}

/// Tensors of a launch; contiguous, except q.
#[derive(Clone, Copy, Debug)]
pub struct ScoringTensors<'a> {
    /// Queries `[B, Hq, q_len, D]`.
    pub q: &'a Handle,
    /// Means of keys `[B, Hkv, room, D]`, in the type of q.
    pub means: &'a Handle,
    /// The number of blocks that each kv head chooses, u32 `[Hkv]`.
    pub wanted: &'a Handle,
    /// Sums `[B, Hkv, rows of blocks, rows]`, f32.
    pub sums: &'a Handle,
    /// Scores `[B, Hkv, rows of blocks, tiles, stride]`, f32.
    pub scores: &'a Handle,
}

impl ReadyScorer {
    /// Checks and prepares a kernel. `image` is a cubin, PTX, or CUDA C++, which CubeCL compiles at the
    /// first launch.
    ///
    /// # Errors
    /// [`LaunchError::Image`] if `image` is none of these, [`LaunchError::Unfit`] if a field of `scorer` is
    /// invalid.
    pub fn new(scorer: Scorer, image: &[u8]) -> Result<Self, LaunchError> {
        let launch = [scorer.threads, scorer.shared_bytes];
        let image = Image::beside_attention(scorer.check(), &scorer.entry, launch, image)?;
        Ok(Self {
            image: Arc::new(image),
            scorer,
        })
    }

    /// What the kernel was made for.
    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub(super) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Launches the kernel on the stream of `client`, without waiting for it.
    ///
    /// # Errors
    /// [`LaunchError::Short`] if a tensor is shorter than the launch reaches, [`LaunchError::Unsupported`] if
    /// sizes are 0 or exceed 2^30, if the strides of q are no multiples of 8, or if the scale is not positive.
    pub fn launch<R: Launches>(
        &self,
        client: &ComputeClient<R>,
        scoring: &Scoring,
        tensors: &ScoringTensors<'_>,
    ) -> Result<(), LaunchError> {
        let Self { scorer, .. } = self;
        let [first, count] = scoring.rows;
        let scale = f32::from_bits(scoring.scale_bits);
        let sizes = [
            scoring.batch,
            scoring.kv_heads,
            scoring.q_len,
            scoring.room,
            count,
            scoring.stride,
        ];
        let small = sizes.iter().all(|n| (1..1 << 30).contains(n));
        let end = u64::from(scoring.q_offset) + u64::from(scoring.q_len);
        let row_end = u64::from(first) + u64::from(count);
        // The last row has the most blocks before it.
        let blocks = row_end.saturating_sub(1);
        let within = blocks * u64::from(scorer.means()) <= u64::from(scoring.room)
            && blocks <= u64::from(scoring.stride)
            && first >= scoring.q_offset / scorer.block
            && row_end <= end.div_ceil(scorer.block.into());
        let aligned = scoring.q_strides.iter().all(|step| step.is_multiple_of(8));
        let workgroups = (u64::from(count) * u64::from(scorer.padded_rows()))
            .div_ceil(Scorer::WORKGROUP_ROWS.into());
        let lists = u64::from(scoring.batch) * u64::from(scoring.kv_heads);
        if !(small && within && aligned && scale > 0.0 && scale.is_finite())
            || end > 1 << 30
            || workgroups >= 1 << 24
            || lists > u16::MAX.into()
        {
            return Err(LaunchError::Unsupported {
                device: Device::Cuda,
                key: scorer.entry.clone(),
                what: "a form for these sizes, strides or this scale".into(),
            });
        }
        let (batch, d) = (u64::from(scoring.batch), u64::from(scorer.head_dim));
        let [q_batch, q_head, q_token] = scoring.q_strides.map(u64::from);
        let q_heads = u64::from(scoring.kv_heads) * u64::from(scorer.group);
        let reach = (batch - 1) * q_batch
            + (q_heads - 1) * q_head
            + u64::from(scoring.q_len - 1) * q_token
            + d;
        let means = lists * u64::from(scoring.room) * d;
        let entries = lists * u64::from(count);
        let scores = entries * u64::from(scorer.tiles()) * u64::from(scoring.stride);
        for (name, handle, bytes) in [
            ("q", tensors.q, reach * 2),
            ("means", tensors.means, means * 2),
            ("wanted", tensors.wanted, u64::from(scoring.kv_heads) * 4),
            ("sums", tensors.sums, entries * u64::from(scorer.rows()) * 4),
            ("scores", tensors.scores, scores * 4),
        ] {
            long_enough(name, handle.size_in_used(), bytes)?;
        }
        let map = Map {
            dtype: scorer.dtype,
            shape: [
                scoring.batch,
                scoring.kv_heads,
                scoring.room,
                scorer.head_dim,
            ],
            strides: {
                let of_head = u64::from(scoring.room) * d;
                [of_head * u64::from(scoring.kv_heads), of_head, d, 1]
            },
            tile: [1, 1, Scorer::MEANS_TILE, 64],
        };
        let maps = R::tensor_maps(&[map], std::slice::from_ref(tensors.means));
        let buffers = [tensors.q, tensors.wanted, tensors.sums, tensors.scores];
        let arguments = KernelArguments::new()
            .with_tensor_maps(maps)
            .with_buffers(buffers.map(|x| x.clone().binding()).to_vec())
            .with_info(by_value(&[
                scoring.q_len,
                scoring.q_offset,
                scoring.kv_heads,
                scoring.q_strides[0],
                scoring.q_strides[1],
                scoring.q_strides[2],
                first,
                count,
                scoring.stride,
                scoring.scale_bits,
            ]));
        #[expect(clippy::cast_possible_truncation, reason = "both were bounded above")]
        let grid = CubeCount::Static(workgroups as u32, lists as u32, 1);
        // SAFETY: every length was checked against what the rows reach.
        unsafe { client.launch_unchecked(R::task(&self.image), grid, arguments) };
        Ok(())
    }
}
