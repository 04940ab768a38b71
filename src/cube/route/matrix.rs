//! Scores on the matrix units of Hopper, by generated kernels.

use super::Shape;
use crate::{Attend, OperationError};
use burn::tensor::DType;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, FloatElement};
use butterfly_ir::{Dtype, Scorer, ScorerPass, ScorerShape};
use butterfly_ops::cube::capability;
use butterfly_runtime::{Device, Launches, ReadyScorer, Scoring, ScoringTensors};
use cubecl::server::Handle;

/// The kernels of a launch, and means of keys in the type of q.
pub(super) struct Matrix<R: CubeRuntime> {
    kernels: [ReadyScorer; 2],
    means: CubeTensor<R>,
}

impl<R: CubeRuntime + Launches> Matrix<R> {
    /// `None` if the device is no Hopper GPU, or if its kernels do not take the type or the shape.
    pub(super) fn new<F: FloatElement>(
        op: &Attend,
        shape: &Shape,
        q: &CubeTensor<R>,
        means: &CubeTensor<R>,
    ) -> Result<Option<Self>, OperationError> {
        let dtype = match F::dtype() {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::Bf16,
            _ => return Ok(None),
        };
        if R::device(&q.client) != Device::Cuda || capability()?.version != 90 {
            return Ok(None);
        }
        let wanted = ScorerShape {
            head_dim: shape.head_dim,
            group: shape.group,
            block: shape.block,
            pool: shape.pool,
            every: shape.every,
        };
        // Strides of dimensions of size 1 are not used, and need not be multiples of 16 bytes.
        let steps = (0..3).filter(|d| q.meta.shape()[*d] > 1);
        let aligned = steps.map(|d| q.meta.strides()[d]).all(|step| step % 8 == 0);
        if !aligned || op.scale <= 0.0 {
            return Ok(None);
        }
        let find = |pass| op.plan.scorer(Scorer::of(pass, dtype, wanted));
        let (Some(weigh), Some(score)) = (find(ScorerPass::Weigh)?, find(ScorerPass::Score)?)
        else {
            return Ok(None);
        };
        // Rows of a tensor that CubeCL allocates can have gaps.
        let means = into_contiguous(cast(means.clone(), F::dtype()));
        Ok(Some(Self {
            kernels: [weigh, score],
            means,
        }))
    }

    /// Parts of a block's score.
    pub(super) fn tiles(&self) -> u32 {
        self.kernels[0].scorer().tiles()
    }

    /// Scores `rows`: the first, and how many. Buffers: the number of blocks that each kv head chooses, sums, scores.
    pub(super) fn launch(
        &self,
        op: &Attend,
        q: &CubeTensor<R>,
        q_strides: [u32; 3],
        rows: [u32; 2],
        stride: u32,
        [wanted, sums, scores]: [&Handle; 3],
    ) -> Result<(), OperationError> {
        let dims = |x: &CubeTensor<R>, d: usize| x.meta.shape()[d] as u32;
        let scoring = Scoring {
            batch: dims(q, 0),
            kv_heads: dims(&self.means, 1),
            q_len: dims(q, 2),
            q_offset: op.q_offset as u32,
            q_strides,
            room: dims(&self.means, 2),
            rows,
            stride,
            scale_bits: op.scale.to_bits(),
        };
        let tensors = ScoringTensors {
            q: &q.handle,
            means: &self.means.handle,
            wanted,
            sums,
            scores,
        };
        for kernel in &self.kernels {
            kernel.launch(&q.client, &scoring, &tensors)?;
        }
        Ok(())
    }
}
