//! The steps around a launch that all devices share: limits, uploading, timing, reading back.

use super::bind::{self, Buffers, padded};
use super::ready::{Image, Step};
use super::{Device, LaunchError, Output};
use butterfly_ir::Geometry;
use butterfly_ir::kernel::signature::Operand;
use cubecl_common::future::block_on;
use cubecl_core::Runtime;
use cubecl_core::ir::DeviceProperties;
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::{
    ComputeServer, CubeCount, Handle, KernelArguments, MetadataBindingInfo, TensorMapBinding,
};
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// The output of a launch that has nothing to compute; `None` for any other launch.
pub(super) fn nothing(buffers: &Buffers<'_>) -> Option<Output> {
    buffers.grid.contains(&0).then(|| Output {
        o: vec![0; buffers.outputs[0]],
        lse: Vec::new(),
        first_milliseconds: 0.0,
        milliseconds: vec![0.0],
    })
}

/// Checks a launch against the limits of a device. `largest` is the size of its largest buffer in
/// bytes.
pub(super) fn check_limits(
    device: Device,
    geometry: &Geometry,
    grid: [u32; 3],
    largest: u64,
    properties: &DeviceProperties,
) -> Result<(), LaunchError> {
    let hardware = &properties.hardware;
    let threads: u64 = geometry.threads.iter().copied().map(u64::from).product();
    let cubes = hardware.max_cube_count;
    let (group, units) = (geometry.threads, hardware.max_cube_dim);
    let memory = properties.memory.max_page_size;
    let shared = hardware.max_shared_memory_size as u64;
    for (what, asked, available) in [
        ("workgroups in x", grid[0].into(), cubes.0.into()),
        ("workgroups in y", grid[1].into(), cubes.1.into()),
        ("workgroups in z", grid[2].into(), cubes.2.into()),
        ("threads in x", group[0].into(), units.0.into()),
        ("threads in y", group[1].into(), units.1.into()),
        ("threads in z", group[2].into(), units.2.into()),
        ("threads", threads, hardware.max_units_per_cube.into()),
        ("shared memory", geometry.shared_bytes.into(), shared),
        ("bytes of one buffer", largest, memory),
    ] {
        if asked > available {
            return Err(LaunchError::Limit {
                device,
                what,
                asked,
                available,
            });
        }
    }
    Ok(())
}

/// Runs `f`, and turns a panic in it into an error with the panic's message.
pub(super) fn caught<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "the driver's library panicked".to_string()))
    })
}

/// Packs an even number of 32-bit words into an argument that is passed by value.
pub(super) fn by_value(words: &[u32]) -> MetadataBindingInfo {
    let pairs = words.chunks_exact(2);
    let data: Vec<u64> = pairs
        .map(|pair| u64::from(pair[0]) | u64::from(pair[1]) << 32)
        .collect();
    // CubeCL puts what follows this offset into a buffer: here, nothing does.
    let all = data.len();
    MetadataBindingInfo::new(data, all)
}

/// Memory for the results of parts; a little where there are none, which no kernel is given.
pub(super) fn partials<R: Runtime>(client: &ComputeClient<R>, bytes: u64) -> Handle {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked against the limits of the device"
    )]
    client.empty(bytes.max(16) as usize)
}

/// Launches that are too short to be timed one by one are timed in bursts of about this length.
const BURST_MILLISECONDS: f64 = 2.0;

/// The launches of a call, one after the other, with the memory between them.
pub(super) struct Steps<'a> {
    pub(super) steps: Vec<Step<'a>>,
    /// Bytes of the results of parts.
    pub(super) partial_bytes: u64,
}

/// Uploads the arguments, launches, and reads the results back. `task` makes the kernel for each
/// launch, `maps` its tensor maps from the buffers behind them. The first launch loads the kernel;
/// then `runs` bursts of launches are timed, at least one.
pub(super) fn run<R: Runtime>(
    client: &ComputeClient<R>,
    (steps, buffers): (&Steps<'_>, &Buffers<'_>),
    runs: u32,
    maps: impl Fn(&[Handle]) -> Vec<TensorMapBinding>,
    task: impl Fn(&Arc<Image>) -> <R::Server as ComputeServer>::Kernel,
) -> Result<Output, String> {
    // Zeros, so that gaps between the rows of o are the same in every run.
    let outputs = buffers
        .outputs
        .map(|bytes| client.create_from_slice(&padded(Cow::Owned(vec![0; bytes]))));
    let inputs = buffers.inputs.iter();
    let inputs: Vec<_> = inputs
        .map(|(operand, bytes)| (*operand, client.create_from_slice(bytes)))
        .collect();
    let partials = partials(client, steps.partial_bytes);
    let of = |operand: Operand| match operand {
        Operand::O => Ok(outputs[0].clone()),
        Operand::Lse => Ok(outputs[1].clone()),
        Operand::Partials => Ok(partials.clone()),
        _ => {
            let input = inputs.iter().find(|(of, _)| *of == operand);
            let missing = || format!("`{}` is not bound", operand.name());
            input.map(|(_, handle)| handle.clone()).ok_or_else(missing)
        }
    };
    let wait = || block_on(client.sync()).map_err(|error| format!("{error:?}"));
    let burst = |launches: u32| {
        let start = Instant::now();
        for step in (0..launches).flat_map(|_| &steps.steps) {
            let (tensors, bound) = bind::in_order(step.signature, of)?;
            let arguments = KernelArguments::new()
                .with_tensor_maps(maps(&tensors))
                .with_buffers(bound.into_iter().map(Handle::binding).collect())
                .with_info(by_value(buffers.words.by_value()));
            let [x, y, z] = step.grid;
            let kernel = task(step.image);
            // SAFETY: every length was checked against the strides, the rows and the grid.
            unsafe { client.launch_unchecked(kernel, CubeCount::Static(x, y, z), arguments) };
        }
        wait()?;
        Ok::<_, String>(start.elapsed().as_secs_f64() * 1e3 / f64::from(launches))
    };
    wait()?;
    let first_milliseconds = burst(1)?;
    let milliseconds = match runs {
        0 | 1 => vec![burst(1)?],
        _ => {
            #[expect(clippy::cast_possible_truncation, reason = "clamped")]
            let launches = (BURST_MILLISECONDS / burst(1)?).clamp(1.0, 100.0) as u32;
            (0..runs)
                .map(|_| burst(launches))
                .collect::<Result<_, _>>()?
        }
    };
    let read = |i: usize| {
        let handle = outputs[i].clone();
        let bytes = client
            .read_one(handle)
            .map_err(|error| format!("{error:?}"))?;
        let bytes = bytes.get(..buffers.outputs[i]);
        bytes
            .map(<[u8]>::to_vec)
            .ok_or_else(|| "a buffer came back short".to_string())
    };
    let lse = read(1)?;
    let floats = lse.chunks_exact(4);
    Ok(Output {
        o: read(0)?,
        lse: floats
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        milliseconds,
        first_milliseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_by_value_in_pairs() {
        let info = by_value(&[1, 2, 3, 4]);
        assert_eq!(info.data, [1 | 2 << 32, 3 | 4 << 32]);
        assert_eq!(info.dynamic_metadata_offset, 2);
    }
}
