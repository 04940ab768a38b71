//! Limits of kernels and devices: index width, grid size, element types, memory.
//!
//! In:  inputs whose shapes fit. Out: nothing, or an error that names the tensor. Kernels index
//! rows with 32 bits; a KV cache may be larger on devices with 64-bit addresses.

use crate::{Inputs, OperationError};
use ::cubecl::ir::DeviceProperties;
use burn::tensor::{DType, Shape};

/// The inputs of an operation, and the device that is to run it.
#[derive(Clone, Debug)]
pub struct Limits<'a> {
    /// The inputs; their shapes were checked.
    pub inputs: Inputs<'a>,
    /// The device.
    pub device: &'a DeviceProperties,
}

/// The largest number of 32 bits.
pub const MOST: u64 = u32::MAX as u64;
/// Most workgroups in each of the two grid dimensions over which rows are spread.
const GRID: u64 = 65_535;

impl Limits<'_> {
    /// Checks that a quantity of a tensor, described by `what`, is at most `limit`.
    ///
    /// # Errors
    /// [`OperationError::Limit`].
    pub fn at_most(
        &self,
        tensor: &'static str,
        what: &'static str,
        given: u64,
        limit: u64,
    ) -> Result<(), OperationError> {
        match given <= limit {
            true => Ok(()),
            false => Err(OperationError::Limit {
                operation: self.inputs.operation,
                tensor,
                what,
                given,
                limit,
            }),
        }
    }

    /// The name of input `i`.
    pub fn name(&self, i: usize) -> &'static str {
        self.inputs.names[i]
    }

    /// The shape of input `i`.
    pub fn dims(&self, i: usize) -> &[usize] {
        self.inputs.shape(i)
    }

    /// Checks that the elements of each of these inputs can be indexed with 32 bits.
    ///
    /// # Errors
    /// [`OperationError::Limit`].
    pub fn counted(&self, inputs: impl IntoIterator<Item = usize>) -> Result<(), OperationError> {
        inputs
            .into_iter()
            .try_for_each(|i| self.at_most(self.name(i), "elements", product(self.dims(i)), MOST))
    }

    /// Checks kernels that index all inputs with 32 bits and run a workgroup for each row of x.
    pub(crate) fn rows(&self) -> Result<(), OperationError> {
        self.counted(0..self.inputs.inputs.len())?;
        let x = self.dims(0);
        self.at_most("x", "rows", product(&x[..x.len() - 1]), GRID * GRID)
    }

    /// Checks that a grid with a workgroup for each token, head and sequence fits the device.
    pub(crate) fn grid(&self, heads: usize) -> Result<(), OperationError> {
        let (batch, tokens) = (self.dims(0)[0], self.dims(0)[1]);
        let (x, y, z) = self.device.hardware.max_cube_count;
        self.at_most(self.name(0), "tokens", tokens as u64, x.into())?;
        self.at_most(self.name(0), "sequences", batch as u64, z.into())?;
        match heads as u64 <= u64::from(y) {
            true => Ok(()),
            false => Err(self
                .inputs
                .argument(format!("{heads} heads, but this device takes {y}"))),
        }
    }

    /// Checks that the device supports the element types of the inputs and of `outputs`.
    ///
    /// # Errors
    /// [`OperationError::Argument`].
    pub fn element_types(&self, outputs: &[(Shape, DType)]) -> Result<(), OperationError> {
        let mut last = None;
        for (_, dtype) in self.inputs.inputs.iter().chain(outputs) {
            // Neighbours mostly have the same type.
            if last.replace(*dtype) == Some(*dtype) {
                continue;
            }
            let stored: ::cubecl::ir::StorageType = (*dtype).into();
            if !self.device.supports_type(stored) {
                return Err(self
                    .inputs
                    .argument(format!("this device has no {dtype:?}; cast to F32")));
            }
        }
        Ok(())
    }

    /// Checks that each of `outputs` fits the largest buffer of the device.
    ///
    /// # Errors
    /// [`OperationError::Limit`].
    pub fn memory(&self, outputs: &[(Shape, DType)]) -> Result<(), OperationError> {
        let limit = self.device.memory.max_page_size;
        outputs.iter().try_for_each(|(shape, dtype)| {
            let bytes = product(shape.as_slice()).saturating_mul(dtype.size() as u64);
            self.at_most(self.name(0), "bytes of results", bytes, limit)
        })
    }
}

/// The product of sizes, saturating at `u64::MAX`.
pub fn product(numbers: &[usize]) -> u64 {
    let numbers = numbers.iter().map(|n| *n as u64);
    numbers.fold(1, u64::saturating_mul)
}

/// Shapes at the limits of an NVIDIA device and of WebGPU, without data.
#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use super::*;
    use crate::{Activation, Append, Delta, GateOutput, Operation, Project, cube};
    use ::cubecl::ir::AddressType;
    use burn_wgpu::{WgpuDevice, WgpuRuntime};
    use cubecl::Runtime;

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

    fn webgpu() -> DeviceProperties {
        device((65_535, 65_535, 65_535), 1 << 31, false)
    }

    /// The error message for inputs that fit, if the device cannot run them.
    #[track_caller]
    fn said(
        operation: &Operation,
        inputs: &[&[usize]],
        device: &DeviceProperties,
    ) -> Option<String> {
        let f32s = match operation {
            Operation::Delta(_) => &[1usize, 2, 3, 4, 6][..],
            Operation::Append(_) => &[5, 6, 7],
            _ => &[],
        };
        let inputs = inputs.iter().enumerate().map(|(i, shape)| {
            let dtype = if f32s.contains(&i) {
                DType::F32
            } else {
                DType::F16
            };
            (Shape::from(shape.to_vec()), dtype)
        });
        let inputs: Vec<_> = inputs.collect();
        let outputs = operation.outputs(&inputs).expect("shapes that fit");
        let result = cube::check(operation, &inputs, &outputs, device);
        result.err().map(|error| error.to_string())
    }

    /// The delta rule of Qwen3.5-9B, whose projection rows have 12,352 elements.
    fn delta(tokens: usize, device: &DeviceProperties) -> Option<String> {
        let delta = Delta {
            k_heads: 16,
            v_heads: 32,
            k_dim: 128,
            v_dim: 128,
            taps: 4,
            tiled: false,
            epsilon: 1e-6,
            rules: Default::default(),
        };
        let (channels, width) = (delta.channels(), delta.width());
        assert_eq!(width, 12_352);
        let inputs: [&[usize]; 7] = [
            &[1, tokens, width],
            &[4, channels],
            &[32],
            &[32],
            &[128],
            &[1, 3, channels],
            &[1, 32, 128, 128],
        ];
        said(&Operation::Delta(delta), &inputs, device)
    }

    #[test]
    fn chunks_of_the_delta_rule() {
        assert_eq!(delta(347_714, &nvidia()), None);
        assert_eq!(
            delta(347_715, &nvidia()).expect("more than 2^32 elements"),
            "delta: `projections` has 4294975680 elements, but this device takes at most 4294967295; give fewer tokens at a time (--chunk)"
        );
        assert_eq!(delta(65_535, &webgpu()), None);
        assert_eq!(
            delta(65_536, &webgpu()).expect("more workgroups than there are"),
            "delta: `projections` has 65536 tokens, but this device takes at most 65535; give fewer tokens at a time (--chunk)"
        );
    }

    /// Sixteen kv heads of 256, one sequence: 2^32 elements at a million tokens of room.
    fn append(tokens: usize, room: usize, device: &DeviceProperties) -> Option<String> {
        let append = Append {
            q_heads: 16,
            kv_heads: 16,
            head_dim: 256,
            q_step: 256,
            starts: [0, 4096, 8192],
            position: 0,
            lagging: false,
            norm: None,
            rotated: 0,
            interleaved: false,
        };
        let (rows, cache) = ([1, tokens, 12_288], [1, 16, room, 256]);
        let inputs: [&[usize]; 5] = [&rows, &rows, &rows, &cache, &cache];
        said(&Operation::Append(append), &inputs, device)
    }

    #[test]
    fn caches_and_chunks_of_append() {
        assert_eq!(append(1, 1 << 20, &nvidia()), None);
        assert_eq!(append(1, (1 << 20) - 1, &webgpu()), None);
        assert_eq!(
            append(1, 1 << 20, &webgpu()).expect("2^32 elements"),
            "append: `k cache` has 4294967296 elements, but this device takes at most 4294967295; give fewer tokens at a time (--chunk)"
        );
        assert_eq!(append(349_525, 1 << 20, &nvidia()), None);
        let error = append(349_526, 1 << 20, &nvidia()).expect("more than 2^32 elements");
        assert!(
            error.contains("append: `q` has 4294975488 elements"),
            "{error}"
        );
        assert!(
            append(1, (1 << 30) + 1, &nvidia())
                .expect("positions")
                .contains("tokens of room")
        );
    }

    #[test]
    fn rows_of_norms_and_gates() {
        let gated = Operation::Gated(Activation::Silu);
        assert_eq!(said(&gated, &[&[1, 65_535, 65_536]], &nvidia()), None);
        let error = said(&gated, &[&[1, 65_536, 65_536]], &nvidia()).expect("2^32 elements");
        assert!(
            error.contains("gated: `x` has 4294967296 elements"),
            "{error}"
        );
        assert!(error.contains("--chunk"), "{error}");
        let gate = Operation::GateOutput(GateOutput { head_dim: 256 });
        let inputs: [&[usize]; 2] = [&[1, 1 << 20, 2048], &[1, 1 << 20, 4096]];
        let error = said(&gate, &inputs, &nvidia()).expect("2^32 elements");
        assert!(
            error.contains("`projections` has 4294967296 elements"),
            "{error}"
        );
    }

    /// A result is one buffer.
    #[test]
    fn memory_of_results() {
        let project = Operation::Project(Project::dense(1 << 16, DType::F16));
        let inputs: [&[usize]; 2] = [&[1, 1 << 14, 64], &[1 << 16, 64]];
        assert_eq!(said(&project, &inputs, &nvidia()), None);
        assert_eq!(
            said(&project, &inputs, &webgpu()),
            None,
            "2^30 elements of two bytes are just a page"
        );
        let inputs: [&[usize]; 2] = [&[1, (1 << 14) + 1, 64], &[1 << 16, 64]];
        let error = said(&project, &inputs, &webgpu()).expect("more than a page");
        assert!(error.contains("bytes of results"), "{error}");
    }

    #[test]
    fn heads_that_kernels_cannot_be_made_for() {
        let delta = |k_dim, v_dim| Delta {
            k_heads: 1,
            v_heads: 1,
            k_dim,
            v_dim,
            taps: 2,
            tiled: false,
            epsilon: 1e-6,
            rules: Default::default(),
        };
        let hardware = &nvidia().hardware;
        let takes = |k, v| crate::delta::cube::takes(&delta(k, v), hardware);
        assert_eq!(takes(128, 128), Ok(()));
        assert!(
            takes(6, 8)
                .expect_err("lanes")
                .contains("no multiples of 4")
        );
        assert!(takes(8, 4096).expect_err("units").contains("at most"));
        assert!(
            takes(1024, 8)
                .expect_err("shared memory")
                .contains("shared memory")
        );
    }
}
