//! Limits of attention kernels on a device.
//!
//! In:  shapes that fit. Out: nothing, or an error that names the tensor.

use crate::{Attend, OperationError};
use butterfly_ir::band::UNBOUNDED;
use butterfly_ops::{Inputs, Limits, MOST, product};
use cubecl::ir::DeviceProperties;

/// Checks that the strides of contiguous tensors of these shapes fit 32 bits, which every kernel
/// takes.
pub(super) fn check(
    attend: &Attend,
    inputs: Inputs<'_>,
    device: &DeviceProperties,
) -> Result<(), OperationError> {
    let limits = Limits { inputs, device };
    for i in 0..attend.means() {
        let [batch, heads, tokens, dim] = [0, 1, 2, 3].map(|d| limits.dims(i)[d]);
        let stride = match (batch, heads) {
            (1, 1) => product(&[dim]),
            (1, _) => product(&[tokens, dim]),
            _ => product(&[heads, tokens, dim]),
        };
        limits.at_most(
            limits.name(i),
            "elements from one head to the next",
            stride,
            MOST,
        )?;
    }
    let q = limits.dims(0);
    let v_head_dim = attend.v_in_k.unwrap_or_else(|| limits.dims(2)[3]);
    let o = match q[0] {
        1 => product(&[q[1], v_head_dim]),
        _ => product(&[q[1], q[2], v_head_dim]),
    };
    limits.at_most("q", "elements of o from one sequence to the next", o, MOST)?;
    limits.at_most("q", "sequences", q[0] as u64, MOST)?;
    debug_assert!(
        attend.capacity < UNBOUNDED as usize,
        "checked with the shapes"
    );
    Ok(())
}

/// Shapes at the limits of an NVIDIA device, without data.
#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use super::*;
    use crate::{Counts, Operation, Plan};
    use burn::tensor::{DType, Shape};
    use burn_wgpu::{WgpuDevice, WgpuRuntime};
    use cubecl::Runtime;
    use cubecl::ir::AddressType;

    fn device(grid: (u32, u32, u32), page: u64, addresses: bool) -> DeviceProperties {
        let mut device = WgpuRuntime::client(&WgpuDevice::Cpu).properties().clone();
        device.hardware.max_cube_count = grid;
        device.memory.max_page_size = page;
        device.features.types.address = [AddressType::U32].into();
        if addresses {
            device.register_address_type(AddressType::U64);
        }
        device
    }

    fn nvidia() -> DeviceProperties {
        device((i32::MAX as u32, 65_535, 65_535), 1 << 35, true)
    }

    fn attend([batch, heads, tokens]: [usize; 3], device: &DeviceProperties) -> Option<String> {
        let attend = Attend {
            plan: Plan::dense(),
            index: 0,
            q_offset: tokens - 1,
            kv_len: tokens,
            lags: Vec::new(),
            capacity: tokens,
            v_in_k: None,
            prompt: tokens,
            scale: 1.0,
            softcap: None,
            sinks: None,
            counts: Counts::default(),
        };
        let (q, k) = ([batch, heads, 1, 256], [batch, heads, tokens, 256]);
        let inputs = [q, k, k].map(|shape| (Shape::from(shape.to_vec()), DType::F16));
        let operation = Operation::Attend(attend.clone());
        operation.outputs(&inputs).expect("shapes that fit");
        let result = check(&attend, operation.named(&inputs), device);
        result.err().map(|error| error.to_string())
    }

    /// Strides have to fit 32 bits, not the number of elements: a dimension of size 1 needs none.
    #[test]
    fn strides_of_attention() {
        assert_eq!(attend([1, 16, 1 << 20], &nvidia()), None);
        assert_eq!(attend([2, 16, (1 << 20) - 1], &nvidia()), None);
        let error = attend([2, 16, 1 << 20], &nvidia()).expect("2^32 elements of a sequence");
        assert!(
            error.contains("`k` has 4294967296 elements from one head"),
            "{error}"
        );
        assert_eq!(attend([1, 1, 1 << 25], &nvidia()), None);
    }
}
