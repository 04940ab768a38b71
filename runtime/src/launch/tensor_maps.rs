//! Tensor maps, which describe tensors to TMA, the copy engine of NVIDIA GPUs since Hopper.

use super::bind::Map;
use butterfly_ir::Dtype;
use cubecl_core::ir::{ElemType, FloatKind, StorageType};
use cubecl_core::zspace::metadata::Metadata;
use cubecl_runtime::server::{Handle, TensorMapBinding, TensorMapMeta};
use cubecl_runtime::tma::{
    OobFill, TensorMapFormat, TensorMapInterleave, TensorMapPrefetch, TensorMapSwizzle, TiledArgs,
};

/// One tensor map for each of `tensors`, described by `maps`.
pub(super) fn bind(maps: &[Map], tensors: &[Handle]) -> Vec<TensorMapBinding> {
    let binding = |(map, tensor): (&Map, &Handle)| {
        let dims = |dims: [u32; 4]| dims.map(|n| n as usize);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "strides of what lies in memory"
        )]
        let strides = map.strides.map(|n| n as usize);
        let kind = match map.dtype {
            Dtype::F32 => FloatKind::F32,
            Dtype::F16 => FloatKind::F16,
            Dtype::Bf16 => FloatKind::BF16,
        };
        TensorMapBinding {
            binding: tensor.clone().binding(),
            map: TensorMapMeta {
                format: TensorMapFormat::Tiled(TiledArgs {
                    tile_size: dims(map.tile).into(),
                }),
                metadata: Metadata::new(dims(map.shape), strides),
                elem_stride: [1usize; 4].into(),
                interleave: TensorMapInterleave::None,
                swizzle: TensorMapSwizzle::B128,
                prefetch: TensorMapPrefetch::B128,
                oob_fill: OobFill::Zero,
                storage_ty: StorageType::Scalar(ElemType::Float(kind)),
            },
        }
    };
    maps.iter().zip(tensors).map(binding).collect()
}
