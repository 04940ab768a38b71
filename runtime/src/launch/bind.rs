//! Checks the arguments of a launch and lays them out for binding: the last check before kernels
//! run, which have no bounds checks of their own.
//!
//! In:  a kernel, and arguments in host memory or device memory of any length.
//! Out: buffers that are at least as long as the strides and the rows reach, or an error that names
//! the argument.

mod lags;
mod long;

#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(super) use long::partial_bytes;

use super::{Arguments, Call, Device, LaunchError, Ready};
use butterfly_ir::band::MAX_TOKENS;
use butterfly_ir::geometry::Entry;
use butterfly_ir::kernel::signature::{Binding, Operand, Way};
use butterfly_ir::{
    Band, BandTable, Dtype, Launch, LaunchScalars, Rows, Score, ScoreValues, TableLayout, scalar,
};
use std::borrow::Cow;
use std::ops::Range;

/// What a launch needs. The scalars have been checked; tensors and rows are checked against it.
pub(super) struct Needs {
    /// Bytes of q, k, v and o up to the last element that is touched.
    pub(super) tensors: [u64; 4],
    /// Number of elements of lse, B x Hq x q_len.
    pub(super) results: u64,
    /// Scalars and sinks.
    pub(super) words: Words,
    /// As [`Buffers::grid`].
    pub(super) grid: [u32; 3],
    /// As [`Buffers::keys`].
    pub(super) keys: u32,
    /// As [`Buffers::maps`].
    pub(super) maps: Vec<Map>,
    /// The rows of blocks that hold queries.
    pub(super) rows: Range<u64>,
}

/// The scalars and sinks of a launch, as 32-bit words.
pub(super) struct Words {
    /// The scalars, for a buffer or by value.
    pub(super) scalars: Vec<u32>,
    /// The logits of sinks, if they have a buffer of their own rather than following the scalars.
    pub(super) sinks: Vec<u32>,
    by_value: bool,
}

impl Words {
    /// The words that are passed by value: the scalars, or none.
    pub(super) fn by_value(&self) -> &[u32] {
        match self.by_value {
            true => &self.scalars,
            false => &[],
        }
    }

    /// Tells the kernel into how many parts the keys of each query are spread.
    pub(super) fn set_parts(&mut self, entry: Entry) {
        if let (true, Entry::Spread(parts)) = (self.by_value, entry) {
            self.scalars[scalar::PARTS] = parts;
        }
    }
}

/// The checked arguments of a launch from host memory.
pub(super) struct Buffers<'a> {
    /// The buffers that the kernel reads, each padded to a positive multiple of [`ALIGN`] bytes.
    pub(super) inputs: Vec<(Operand, Cow<'a, [u8]>)>,
    /// The scalars.
    pub(super) words: Words,
    /// Bytes of o and lse that are read back.
    pub(super) outputs: [usize; 2],
    /// Workgroups in x, y and z, before `Geometry::fitted` adapts them to the device.
    pub(super) grid: [u32; 3],
    /// The most keys that a query sees, as `Geometry::fitted` takes it.
    pub(super) keys: u32,
    /// The tensors behind its tensor maps.
    pub(super) maps: Vec<Map>,
}

impl Buffers<'_> {
    /// Bytes of the largest buffer.
    pub(super) fn largest(&self) -> u64 {
        let lengths = self.inputs.iter().map(|(_, bytes)| bytes.len());
        lengths.chain(self.outputs).max().unwrap_or(0) as u64
    }
}

/// A tensor in memory, and the box of it that TMA copies at a time. Dimensions are
/// `[B, H, length, D]`; strides are in elements.
pub struct Map {
    pub(super) dtype: Dtype,
    pub(super) shape: [u32; 4],
    pub(super) strides: [u64; 4],
    pub(super) tile: [u32; 4],
}

/// Buffers are padded to a multiple of this many bytes: the widest load of a kernel, and no less
/// than the alignment that any device requires of a copy.
const ALIGN: usize = 16;

/// Most elements that a tensor behind a tensor map may span: strides of tensor maps are below 2^40
/// bytes.
const MOST_MAPPED: u64 = 1 << 39;

/// Most items of work of a persistent kernel. It counts them with signed 32-bit numbers, and its
/// workgroups may count one round past the last item.
const MOST_ITEMS: u64 = 1 << 30;

/// Checks the scalars of a call, and works out what `kernel` needs for it on `device`.
pub(super) fn needs(device: Device, kernel: &Ready, call: &Call<'_>) -> Result<Needs, LaunchError> {
    let (spec, scalars) = (kernel.spec(), &call.scalars);
    let batch = call.batch;
    let limit = |what, asked: u64, available: u64| match asked <= available {
        true => Ok(()),
        false => Err(LaunchError::Limit {
            device,
            what,
            asked,
            available,
        }),
    };
    let last = u64::from(scalars.q_offset) + u64::from(scalars.q_len);
    limit("the end of the queries", last, MAX_TOKENS.into())?;
    limit("kv_len", scalars.kv_len.into(), MAX_TOKENS.into())?;
    let heads = u64::from(scalars.kv_heads) * u64::from(spec.group);
    let results = u128::from(batch) * u128::from(heads) * u128::from(scalars.q_len);
    let results = u64::try_from(results).unwrap_or(u64::MAX);
    // Kernels count them with signed 32-bit numbers.
    limit("the number of results", results, i32::MAX as u64)?;

    let (hq, hkv) = (heads, scalars.kv_heads.into());
    let (q_len, kv_len) = (scalars.q_len.into(), scalars.kv_len.into());
    // Tensor maps take any stride that fits a device's memory, and kernels that use them address o
    // with 64 bits; the other kernels count elements with 32 bits.
    let geometry = kernel.geometry();
    let most = geometry.boxes.map_or(u64::from(u32::MAX), |_| MOST_MAPPED);
    let reach = |what, [b, h, t]: [u64; 3], heads: u64, tokens: u64, dim: u32| {
        if batch == 0 || heads == 0 || tokens == 0 {
            return Ok(0);
        }
        let step = |count: u64, stride: u64| u128::from(count - 1) * u128::from(stride);
        let elements = step(batch.into(), b) + step(heads, h) + step(tokens, t) + u128::from(dim);
        let elements = u64::try_from(elements).unwrap_or(u64::MAX);
        limit(what, elements, most)?;
        Ok(elements * u64::from(spec.dtype.bytes()))
    };
    let (d, dv) = (spec.head_dim, spec.v_head_dim);
    let tensors = [
        reach("the length of q", scalars.q_strides, hq, q_len, d)?,
        reach("the length of k", scalars.k_strides, hkv, kv_len, d)?,
        reach("the length of v", scalars.v_strides, hkv, kv_len, dv)?,
        reach("the length of o", scalars.o_strides, hq, q_len, dv)?,
    ];
    // Every kernel gets each stride of o as 32 bits. The stride of a dimension of 1 is multiplied
    // by zero.
    let counts = [batch.into(), hq, q_len];
    for (stride, _) in scalars.o_strides.iter().zip(counts).filter(|(_, n)| *n > 1) {
        limit("a stride of o", *stride, u32::MAX.into())?;
    }
    check_copies(kernel, scalars, results)?;
    check_score(spec.score, &call.score, heads)?;
    lags::check(kernel, call)?;
    // Nothing to compute, so no workgroups, whatever q_offset is.
    let grid = match results {
        0 => [0; 3],
        _ => geometry.grid(spec, scalars, batch),
    };
    if let Launch::Resident(_) = geometry.launch {
        limit("the number of items of work", grid[0].into(), MOST_ITEMS)?;
    }
    Ok(Needs {
        tensors,
        results,
        words: words_of(kernel, call),
        keys: match results {
            0 => 0,
            _ => long::keys(kernel, call),
        },
        grid,
        maps: match results {
            0 => Vec::new(),
            _ => maps(kernel, call),
        },
        rows: u64::from(call.first_query() / spec.block)..last.div_ceil(spec.block.into()),
    })
}

/// Checks that a tensor has as many bytes as its strides reach.
pub(super) fn long_enough(name: &'static str, given: u64, needed: u64) -> Result<(), LaunchError> {
    match given < needed {
        true => Err(LaunchError::Short {
            name,
            given,
            needed,
        }),
        false => Ok(()),
    }
}

/// Checks arguments in host memory, and returns them as they are bound.
pub(super) fn buffers<'a>(
    device: Device,
    kernel: &Ready,
    arguments: &Arguments<'a>,
) -> Result<Buffers<'a>, LaunchError> {
    let call = Call {
        scalars: arguments.scalars,
        batch: arguments.batch,
        score: arguments.score,
        v_in_k: false,
        lags: &[],
    };
    let needs = needs(device, kernel, &call)?;
    let [q, k, v, o] = needs.tensors;
    let table = rows_of(kernel, arguments.rows)?;
    if let Some(table) = table {
        check_table(table, needs.rows, &call)?;
    }
    let tensor = |operand: Operand, bytes: &'a [u8], needed| {
        long_enough(operand.name(), bytes.len() as u64, needed)?;
        Ok::<_, LaunchError>(padded(Cow::Borrowed(bytes)))
    };
    let mut inputs = Vec::new();
    for operand in kernel.buffers() {
        let bytes = match operand {
            Operand::Q => tensor(operand, arguments.q, q)?,
            Operand::K => tensor(operand, arguments.k, k)?,
            Operand::V => tensor(operand, arguments.v, v)?,
            Operand::Offsets => padded(offsets(there(table)?)),
            Operand::Bands => padded(bands(there(table)?)),
            Operand::Scalars => padded(words(needs.words.scalars.iter().copied())),
            Operand::Sinks => padded(words(needs.words.sinks.iter().copied())),
            Operand::O | Operand::Lse | Operand::Partials => continue,
        };
        inputs.push((operand, bytes));
    }
    let bytes = |bytes: u64| {
        usize::try_from(bytes).map_err(|_| LaunchError::Limit {
            device,
            what: "the number of bytes of a result",
            asked: bytes,
            available: usize::MAX as u64,
        })
    };
    Ok(Buffers {
        inputs,
        words: needs.words,
        outputs: [bytes(o)?, bytes(4 * needs.results)?],
        grid: needs.grid,
        keys: needs.keys,
        maps: needs.maps,
    })
}

/// The buffers of a launch, in binding order: first those behind tensor maps, which are bound
/// together with the maps, then the others.
pub(super) fn in_order<T, E>(
    signature: &[Binding],
    mut of: impl FnMut(Operand) -> Result<T, E>,
) -> Result<(Vec<T>, Vec<T>), E> {
    let (mut mapped, mut buffers) = (Vec::new(), Vec::new());
    for Binding { operand, way } in signature {
        match way {
            Way::Mapped => mapped.push(of(*operand)?),
            Way::Buffer => buffers.push(of(*operand)?),
            Way::Map(_) | Way::Value => {}
        }
    }
    Ok((mapped, buffers))
}

/// The band table of a launch, if the kernel reads one. It is an error to give a table to a kernel
/// with closed-form rows, or none to a kernel that needs one.
pub(super) fn rows_of<T>(kernel: &Ready, given: Option<T>) -> Result<Option<T>, LaunchError> {
    match (&kernel.spec().rows, &given) {
        (Rows::ClosedForm(_), Some(_)) => Err(LaunchError::Rows("is not read by this kernel")),
        (Rows::ClosedForm(_), None) => Ok(None),
        (Rows::Table, _) => there(given).map(Some),
    }
}

/// The table, or an error if it is missing.
pub(super) fn there<T>(table: Option<T>) -> Result<T, LaunchError> {
    table.ok_or(LaunchError::Rows("is missing"))
}

/// The offsets of a table, as they are bound.
pub(super) fn offsets(table: &BandTable) -> Cow<'static, [u8]> {
    words(table.offsets.iter().copied())
}

/// The bands of a table, as they are bound.
pub(super) fn bands(table: &BandTable) -> Cow<'static, [u8]> {
    let limits = |band: &Band| [band.lo, band.hi, band.first, band.end].map(i32::cast_unsigned);
    words(table.bands.iter().flat_map(limits))
}

/// Checks the extra preconditions of kernels with tensor maps: strides that are multiples of 16
/// bytes; at least one key, if there are results; and for persistent kernels a positive scale, on
/// which their masks rely.
fn check_copies(kernel: &Ready, scalars: &LaunchScalars, results: u64) -> Result<(), LaunchError> {
    let geometry = kernel.geometry();
    if geometry.boxes.is_none() {
        return Ok(());
    }
    if results > 0 && scalars.kv_len == 0 {
        return Err(LaunchError::Unsupported {
            device: Device::Cuda,
            key: kernel.key().into(),
            what: "a form for queries without any key".into(),
        });
    }
    let elements = u64::from(16 / kernel.spec().dtype.bytes());
    let all = [
        scalars.q_strides,
        scalars.k_strides,
        scalars.v_strides,
        scalars.o_strides,
    ];
    let aligned = all.iter().flatten().all(|s| s.is_multiple_of(elements));
    let resident = matches!(geometry.launch, Launch::Resident(_));
    let positive = !resident || f32::from_bits(scalars.scale_bits) > 0.0;
    match aligned && positive {
        true => Ok(()),
        false => Err(LaunchError::Unsupported {
            device: Device::Cuda,
            key: kernel.key().into(),
            what: format!(
                "a form for strides that are no multiples of {elements} elements, or a scale that is not positive; compile for cuda:sm_90, whose kernels take both"
            ),
        }),
    }
}

/// Scalars and sinks, in the form in which the kernel takes them.
fn words_of(kernel: &Ready, call: &Call<'_>) -> Words {
    let (scalars, score) = (&call.scalars, &call.score);
    let mut bindings = kernel.signature().iter();
    let by_value = bindings.any(|binding| binding.way == Way::Value);
    let sinks = score.sinks.unwrap_or_default().iter();
    match by_value {
        true => Words {
            scalars: scalars.by_value(kernel.spec(), call.batch, score, call.lags),
            sinks: sinks.map(|sink| sink.to_bits()).collect(),
            by_value,
        },
        false => Words {
            scalars: scalars.parameters(kernel.spec(), call.batch, score, call.lags),
            sinks: Vec::new(),
            by_value,
        },
    }
}

/// The tensors behind the tensor maps of a kernel, in binding order.
fn maps(kernel: &Ready, call: &Call<'_>) -> Vec<Map> {
    let (spec, scalars) = (kernel.spec(), &call.scalars);
    let (q, kv) = (scalars.kv_heads * spec.group, scalars.kv_heads);
    let (q_len, kv_len) = (scalars.q_len, scalars.kv_len);
    let (d, dv) = (spec.head_dim, spec.v_head_dim);
    let map = |binding: &Binding| {
        let Way::Map(tile) = binding.way else {
            return None;
        };
        let ([batch, head, token], [heads, length, dim]) = match binding.operand {
            Operand::Q => (scalars.q_strides, [q, q_len, d]),
            Operand::K => (scalars.k_strides, [kv, kv_len, d]),
            Operand::V => (scalars.v_strides, [kv, kv_len, dv]),
            Operand::O => (scalars.o_strides, [q, q_len, dv]),
            Operand::Lse
            | Operand::Offsets
            | Operand::Bands
            | Operand::Scalars
            | Operand::Sinks
            | Operand::Partials => return None,
        };
        Some(Map {
            dtype: spec.dtype,
            shape: [call.batch, heads, length, dim],
            strides: [batch, head, token, 1],
            tile,
        })
    };
    kernel.signature().iter().filter_map(map).collect()
}

/// Checks that `values` are valid, and exactly those that the kernel reads. `heads` is Hq.
fn check_score(score: Score, values: &ScoreValues<'_>, heads: u64) -> Result<(), LaunchError> {
    let wrong = |what: String| Err(LaunchError::Score(what));
    if values.kind() != score {
        let (needs, given) = (score, values.kind());
        return wrong(format!(
            "the kernel is made for {needs:?}, but given {given:?}"
        ));
    }
    if let Some(cap) = values.softcap
        && !ScoreValues::is_softcap(cap)
    {
        return wrong(format!(
            "the softcap is {cap}, but must be positive and finite"
        ));
    }
    match values.sinks {
        Some(sinks) if sinks.len() as u64 != heads => wrong(format!(
            "there are {} sinks, but {heads} q heads",
            sinks.len()
        )),
        Some(sinks)
            if sinks
                .iter()
                .any(|sink| sink.is_nan() || *sink == f32::INFINITY) =>
        {
            wrong("a sink is not a number below infinity".into())
        }
        _ => Ok(()),
    }
}

/// Checks that a table has the rows that a launch reads, and that its offsets never decrease and stay
/// within its bands.
fn check_table(table: &BandTable, rows: Range<u64>, call: &Call<'_>) -> Result<(), LaunchError> {
    let offsets = &table.offsets;
    check_rows(offsets.len() as u64, table.layout(), rows, call)?;
    if !offsets.is_sorted() {
        return Err(LaunchError::Rows("has offsets that decrease"));
    }
    if offsets
        .last()
        .is_some_and(|end| *end as usize > table.bands.len())
    {
        return Err(LaunchError::Rows("has fewer bands than its offsets reach"));
    }
    Ok(())
}

/// Checks that a table of so many offsets, with rows that lie as `layout` says, has the rows `rows`
/// for each kv head and sequence that a launch reads.
pub(super) fn check_rows(
    offsets: u64,
    layout: TableLayout,
    rows: Range<u64>,
    call: &Call<'_>,
) -> Result<(), LaunchError> {
    if call.scalars.table != layout {
        return Err(LaunchError::Rows("lies otherwise than the scalars say"));
    }
    let [head_rows, sequence_rows, first_row] =
        [layout.head_rows, layout.sequence_rows, layout.first_row].map(u64::from);
    if rows.start < first_row {
        return Err(LaunchError::Rows("begins after the first query"));
    }
    let of_head = rows.end.saturating_sub(first_row);
    let before = |count: u32, step: u64| u64::from(count.saturating_sub(1)) * step;
    let of_sequence = before(call.scalars.kv_heads, head_rows) + of_head;
    let all = before(call.batch, sequence_rows) + of_sequence;
    let overlaps = |step: u64, rows: u64| step > 0 && step < rows;
    if overlaps(head_rows, of_head) || overlaps(sequence_rows, of_sequence) || offsets <= all {
        return Err(LaunchError::Rows("has fewer rows than the queries reach"));
    }
    Ok(())
}

pub(super) fn words(words: impl IntoIterator<Item = u32>) -> Cow<'static, [u8]> {
    Cow::Owned(words.into_iter().flat_map(u32::to_le_bytes).collect())
}

pub(super) fn padded(mut bytes: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let length = bytes.len().max(1).next_multiple_of(ALIGN);
    if length != bytes.len() {
        bytes.to_mut().resize(length, 0);
    }
    bytes
}

#[cfg(test)]
mod limits;
