//! One source for every GPU: `#[cube]` kernels, specialised when they are expanded.
//!
//! In:  a checked `KernelSpec` and a target. Out: a kernel definition, which the target's printer
//! turns into text. Nothing here depends on a target's language. CubeCL's words cube, plane and
//! unit (for workgroup, subgroup and thread) are used in `codegen` only.

mod blueprint;
mod decode;
mod fragments;
mod matrix;
mod prefill;
mod rows;
mod score;

pub(crate) use blueprint::Blueprint;
use butterfly_ir::kernel::signature::{self, Binding, Operand};
use butterfly_ir::{Dtype, Geometry, KernelSpec, Role, Rows};
use cubecl_core::compute::KernelBuilder;
use cubecl_core::ir::{
    AddressType, ContiguousElements, DeviceProperties, HardwareProperties, MatrixLayout,
    MemoryDeviceProperties, MmaProperties, TargetProperties, features::TypeUsage,
};
use cubecl_core::prelude::*;
use std::collections::BTreeMap;

/// Name of every entry point.
pub(crate) use butterfly_ir::kernel::ENTRY;

/// A kernel before it is printed in a target's language.
pub(crate) struct Definition {
    pub(crate) kernel: KernelDefinition,
    pub(crate) geometry: Geometry,
    /// Whether one workgroup may use all registers of an SM. So it is for decode, which keeps many
    /// loads in flight and has few workgroups.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub(crate) one_per_sm: bool,
}

/// Expands the kernel of `spec`, whose blueprint is `blueprint`.
pub(crate) fn define(spec: &KernelSpec, blueprint: &Blueprint) -> Definition {
    let kernel = match spec.dtype {
        Dtype::F32 => expand::<f32>(spec, blueprint),
        Dtype::F16 => expand::<half::f16>(spec, blueprint),
        Dtype::Bf16 => expand::<half::bf16>(spec, blueprint),
    };
    Definition {
        kernel,
        geometry: blueprint.geometry(spec.role),
        one_per_sm: spec.role == Role::Decode,
    }
}

/// Whether a kernel can evaluate the rows of `spec`: the bands of a closed form must fit registers.
pub(crate) fn rows_fit(spec: &KernelSpec) -> bool {
    match &spec.rows {
        Rows::ClosedForm(program) => rows::fits_registers(program),
        Rows::Table => true,
    }
}

fn expand<F: Float + CubeElement>(spec: &KernelSpec, blueprint: &Blueprint) -> KernelDefinition {
    let mut builder = KernelBuilder::default();
    builder.runtime_properties(TargetProperties { mma: registers() });
    builder.device_properties(&properties());
    AddressType::U32.register(&mut builder.scope);
    let arg = ArrayCompilationArg { inplace: None };
    let (mut tensors, mut words, mut lse) = (BTreeMap::new(), BTreeMap::new(), None);
    for Binding { operand, .. } in signature::of(spec, &blueprint.geometry(spec.role)) {
        match operand {
            Operand::Q | Operand::K | Operand::V => {
                let tensor = <Array<F> as LaunchArg>::expand(&arg, &mut builder);
                tensors.insert(operand, tensor);
            }
            Operand::O => {
                let tensor = <Array<F> as LaunchArg>::expand_output(&arg, &mut builder);
                tensors.insert(operand, tensor);
            }
            Operand::Lse => {
                lse = Some(<Array<f32> as LaunchArg>::expand_output(&arg, &mut builder))
            }
            Operand::Scalars | Operand::Offsets | Operand::Bands | Operand::Sinks => {
                let buffer = <Array<u32> as LaunchArg>::expand(&arg, &mut builder);
                words.insert(operand, buffer);
            }
            // Of further entry points of Hopper kernels.
            Operand::Partials => {}
        }
    }
    let tensor = |operand| tensors[&operand].clone();
    let (q, k, v, o) = (
        tensor(Operand::Q),
        tensor(Operand::K),
        tensor(Operand::V),
        tensor(Operand::O),
    );
    let lse = lse.expect("every kernel writes lse");
    let params = words[&Operand::Scalars].clone();
    // Closed forms have no table: the parameters stand in for its two buffers, which the kernel
    // then never reads.
    let table = |operand| words.get(&operand).unwrap_or(&params).clone();
    let (offsets, table) = (table(Operand::Offsets), table(Operand::Bands));
    let scope = &mut builder.scope;
    let own = blueprint.clone();
    match spec.role {
        Role::Prefill if blueprint.uses_matrix_units() => {
            matrix::prefill::expand::<F>(scope, q, k, v, params, offsets, table, o, lse, own)
        }
        Role::Prefill => {
            prefill::prefill::expand::<F>(scope, q, k, v, params, offsets, table, o, lse, own)
        }
        Role::Decode => {
            decode::decode::expand::<F>(scope, q, k, v, params, offsets, table, o, lse, own)
        }
    }
    builder.build(
        KernelSettings::default()
            .cube_dim(CubeDim::new_1d(blueprint.threads()))
            .address_type(AddressType::U32)
            .kernel_name(ENTRY),
    )
}

/// How threads hold the factors and sums of a product: the register layout of `mma.sync`.
fn registers() -> MmaProperties {
    MmaProperties {
        register_size_bits: 32,
        const_plane_size: 32,
        register_layout_a: MatrixLayout::RowMajor,
        register_layout_b: MatrixLayout::ColMajor,
        register_layout_acc: MatrixLayout::RowMajor,
        register_duplication_a: 1,
        register_duplication_b: 1,
        register_duplication_acc: 1,
        contiguous_elements: ContiguousElements::new(|_, _| 2),
    }
}

/// Properties of an assumed device; the kernels need no more than these.
fn properties() -> DeviceProperties {
    let mut properties = DeviceProperties::new(
        Default::default(),
        MemoryDeviceProperties {
            max_page_size: 1 << 32,
            alignment: 256,
        },
        HardwareProperties {
            load_width: 128,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 32,
            max_shared_memory_size: 48 << 10,
            max_cube_count: (65535, 65535, 65535),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: None,
            num_cpu_cores: None,
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            max_vector_size: 4,
        },
        cubecl_common::profile::TimingMethod::System,
    );
    properties.register_address_type(AddressType::U32);
    use cubecl_core::ir::{ElemType, FloatKind, IntKind, UIntKind};
    for kind in [
        ElemType::Float(FloatKind::F32),
        ElemType::Float(FloatKind::F16),
        ElemType::Float(FloatKind::BF16),
        ElemType::UInt(UIntKind::U32),
        ElemType::Int(IntKind::I32),
        ElemType::Bool,
    ] {
        properties.register_type_usage(kind, TypeUsage::all());
    }
    properties
}
