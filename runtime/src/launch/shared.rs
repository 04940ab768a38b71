//! Launches on a CubeCL server that other code uses too, such as the one behind Burn's tensors.
//!
//! In:  a prepared kernel, and tensors on the device.
//! Out: a launch, in the order of the client's stream. Only scalars and sinks are copied, and
//! nothing waits for the device. Errors of the driver are reported at the client's next
//! synchronisation.

use super::bind::{self, Map, long_enough};
use super::ready::Image;
use super::{Call, Device, LaunchError, Ready, run};
use butterfly_ir::geometry::{Entry, Fitted};
use butterfly_ir::kernel::signature::Operand;
use butterfly_ir::{BandTable, Geometry, TableLayout};
use cubecl_core::Runtime;
use cubecl_core::ir::DeviceProperties;
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::{ComputeServer, CubeCount, Handle, KernelArguments, TensorMapBinding};
use std::sync::Arc;

/// A CubeCL runtime that can launch finished kernels.
pub trait Launches: Runtime {
    /// The device behind a client.
    fn device(client: &ComputeClient<Self>) -> Device;

    /// The kernel as the runtime's server takes it.
    #[doc(hidden)]
    fn task(image: &Arc<Image>) -> <Self::Server as ComputeServer>::Kernel;

    /// The tensor maps of `tensors`, described by `maps`.
    #[doc(hidden)]
    fn tensor_maps(maps: &[Map], tensors: &[Handle]) -> Vec<TensorMapBinding>;

    /// The grid and the entry point to launch on this device, for queries that see at most `keys` keys (see
    /// [`Geometry::fitted`]).
    #[doc(hidden)]
    fn fitted(
        geometry: &Geometry,
        grid: [u32; 3],
        keys: u32,
        properties: &DeviceProperties,
    ) -> Fitted;
}

/// A band table on a device.
#[derive(Clone, Debug)]
pub struct DeviceTable {
    offsets: u64,
    layout: TableLayout,
    widest_row: u32,
    buffers: [Handle; 2],
}

impl DeviceTable {
    /// Copies a table to the device of `client`.
    pub fn new<R: Runtime>(client: &ComputeClient<R>, table: &BandTable) -> Self {
        Self {
            offsets: table.offsets.len() as u64,
            layout: table.layout(),
            widest_row: table.widest_row(),
            buffers: [bind::offsets(table), bind::bands(table)]
                .map(|words| client.create_from_slice(&bind::padded(words))),
        }
    }
}

impl DeviceTable {
    /// A table that kernels write: `offsets` u32, of which there are so many, and `bands` i32 [bands, 4],
    /// at most `widest_row` of them in a row.
    pub fn of_buffers(
        offsets: u64,
        layout: TableLayout,
        widest_row: u32,
        buffers: [Handle; 2],
    ) -> Self {
        Self {
            offsets,
            layout,
            widest_row,
            buffers,
        }
    }

    /// Its offsets and its bands.
    pub fn buffers(&self) -> [Handle; 2] {
        self.buffers.clone()
    }

    /// The most bands of a row.
    pub fn widest_row(&self) -> u32 {
        self.widest_row
    }

    /// Where its rows lie, which the scalars of a launch have to repeat.
    pub fn layout(&self) -> TableLayout {
        self.layout
    }
}

/// Tensors on a device. Each handle starts at the tensor's first element.
#[derive(Clone, Copy, Debug)]
pub struct Tensors<'a> {
    /// Queries, `[B, Hq, q_len, D]`.
    pub q: &'a Handle,
    /// Keys, `[B, Hkv, kv_len, D]`.
    pub k: &'a Handle,
    /// Values, `[B, Hkv, kv_len, Dv]`.
    pub v: &'a Handle,
    /// Outputs, `[B, Hq, q_len, Dv]`, which the kernel writes.
    pub o: &'a Handle,
    /// Natural log-sum-exp, f32, contiguous `[B, Hq, q_len]`, which the kernel writes.
    pub lse: &'a Handle,
    /// The band table, if and only if the kernel's rows are
    /// [`Rows::Table`](butterfly_ir::Rows::Table).
    pub rows: Option<&'a DeviceTable>,
}

/// Launches `kernel` on the stream of `client`, without waiting for it.
///
/// # Errors
/// See [`LaunchError`]. Nothing is launched unless all arguments have passed their checks.
pub fn enqueue<R: Launches>(
    client: &ComputeClient<R>,
    kernel: &Ready,
    call: &Call<'_>,
    tensors: &Tensors<'_>,
) -> Result<(), LaunchError> {
    let device = kernel.device();
    let given = R::device(client);
    if given != device {
        return Err(LaunchError::Elsewhere {
            key: kernel.key().into(),
            made: device,
            given,
        });
    }
    let mut needs = bind::needs(device, kernel, call)?;
    let lse = needs.results * 4;
    let [q, k, v, o] = needs.tensors;
    for (name, handle, needed) in [
        ("q", tensors.q, q),
        ("k", tensors.k, k),
        ("v", tensors.v, v),
        ("o", tensors.o, o),
        ("lse", tensors.lse, lse),
    ] {
        long_enough(name, handle.size_in_used(), needed)?;
    }
    if needs.grid.contains(&0) {
        return Ok(());
    }
    let properties = client.properties();
    let fitted = R::fitted(kernel.geometry(), needs.grid, needs.keys, properties);
    needs.words.set_parts(fitted.entry);
    let partial_bytes = bind::partial_bytes(kernel, needs.grid, fitted.entry);
    let largest = needs
        .tensors
        .into_iter()
        .fold(lse.max(partial_bytes), u64::max);
    let steps = kernel.steps(fitted, needs.grid);
    for step in &steps {
        run::check_limits(
            device,
            &step.geometry(kernel),
            step.grid,
            largest,
            properties,
        )?;
    }
    let table = bind::rows_of(kernel, tensors.rows)?;
    if let Some(table) = table {
        bind::check_rows(table.offsets, table.layout, needs.rows, call)?;
    }
    let of_table = |i: usize| Ok(bind::there(table)?.buffers[i].clone());
    let upload =
        |words: &[u32]| client.create_from_slice(&bind::padded(bind::words(words.iter().copied())));
    let partials = match fitted.entry {
        Entry::Spread(_) => Some(run::partials(client, partial_bytes)),
        Entry::First | Entry::Alone | Entry::Cluster => None,
    };
    let of = |operand: Operand| match operand {
        Operand::Q => Ok(tensors.q.clone()),
        Operand::K => Ok(tensors.k.clone()),
        Operand::V => Ok(tensors.v.clone()),
        Operand::O => Ok(tensors.o.clone()),
        Operand::Lse => Ok(tensors.lse.clone()),
        Operand::Offsets => of_table(0),
        Operand::Bands => of_table(1),
        Operand::Scalars => Ok(upload(&needs.words.scalars)),
        Operand::Sinks => Ok(upload(&needs.words.sinks)),
        Operand::Partials => partials.clone().ok_or_else(|| LaunchError::Unsupported {
            device,
            key: kernel.key().into(),
            what: "memory for the results of parts".into(),
        }),
    };
    // All arguments before the first launch, so that nothing is launched after an error.
    let bound: Vec<_> = steps
        .iter()
        .map(|step| Ok((step, bind::in_order(step.signature, of)?)))
        .collect::<Result<_, LaunchError>>()?;
    for (step, (mapped, buffers)) in bound {
        let arguments = KernelArguments::new()
            .with_tensor_maps(R::tensor_maps(&needs.maps, &mapped))
            .with_buffers(buffers.into_iter().map(Handle::binding).collect())
            .with_info(run::by_value(needs.words.by_value()));
        let [x, y, z] = step.grid;
        // SAFETY: every length was checked against the strides, the rows and the grid; the results of
        // parts have the size that follows from the grid and the number of parts.
        unsafe {
            client.launch_unchecked(R::task(step.image), CubeCount::Static(x, y, z), arguments)
        };
    }
    Ok(())
}
