//! Weights as files store them → the tensors that a device gets.
//!
//! In:  the stored parts of a weight. Out: the parts as they will be in memory, and the data of their
//! tensors. On the host, tensors share the mapping of their file where the bytes can be used as they
//! are. For other devices, parts that are stored alike are joined into one.

use super::packed::Stored;
use burn::prelude::TensorData;
use burn::tensor::{Bytes, DType};
use butterfly::ops::{Packed, Part, Storage};
use half::{bf16, f16};

/// A weight before its bytes are read.
#[derive(Debug)]
pub(crate) struct Upload<'a> {
    columns: usize,
    runs: Vec<Run<'a>>,
    on_host: bool,
    /// Element type of dense matrices.
    dtype: DType,
}

/// Stored matrices that become one part.
#[derive(Debug)]
struct Run<'a> {
    part: Part,
    stored: Vec<Stored<'a>>,
}

/// Bytes of the words by which devices other than the host read packed weights.
pub(crate) const WORD: usize = 4;

/// The memory that a weight takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Memory of the device that is allocated for it.
    pub allocated: u64,
    /// Memory of files that is mapped and used as it is.
    pub mapped: u64,
    /// Memory of the device for the panel of a packed weight that is unpacked at once, for all
    /// weights together.
    pub panel: u64,
    /// Whether any weight wants many rows in FP8, which then have memory of their own.
    pub quantises: bool,
}

/// Bytes of the panel to which devices unpack packed weights.
pub(crate) fn panel(dtype: DType) -> u64 {
    (Packed::PANEL * dtype.size()) as u64
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.allocated = self.allocated.saturating_add(other.allocated);
        self.mapped = self.mapped.saturating_add(other.mapped);
        self.panel = self.panel.max(other.panel);
        self.quantises = self.quantises || other.quantises;
    }
}

impl<'a> Upload<'a> {
    pub(crate) fn new(columns: usize, dtype: DType, on_host: bool) -> Self {
        Self {
            columns,
            runs: Vec::new(),
            on_host,
            dtype,
        }
    }

    /// Adds a matrix of `rows` rows below those so far.
    pub(crate) fn add(&mut self, stored: Stored<'a>, rows: usize) {
        let storage = self.in_memory(stored.storage);
        if let Some(run) = self.runs.last_mut()
            && !self.on_host
            && run.part.storage == storage
            && joins(storage, run.part.rows)
        {
            run.part.rows += rows;
            run.stored.push(stored);
            return;
        }
        self.runs.push(Run {
            part: Part { storage, rows },
            stored: vec![stored],
        });
    }

    /// Adds a part of matrices that are stored alike, one below another, `rows` rows in all.
    pub(crate) fn add_joined(&mut self, stored: Vec<Stored<'a>>, rows: usize) {
        let storage = self.in_memory(stored[0].storage);
        let part = Part { storage, rows };
        self.runs.push(Run { part, stored });
    }

    /// How a matrix is stored once it is loaded.
    pub(crate) fn in_memory(&self, stored: Storage) -> Storage {
        match stored {
            // 16-bit floats are exact in f32, and products with rows in f32 widen them on the way.
            Storage::Dense(given) if self.on_host && self.dtype == DType::F32 => {
                Storage::Dense(given)
            }
            Storage::Dense(_) => Storage::Dense(self.dtype),
            Storage::Packed(packed) => Storage::Packed(packed),
        }
    }

    /// The parts, in order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Part> {
        self.runs.iter().map(|run| run.part)
    }

    /// The memory that the tensors will take.
    pub(crate) fn taken(&self) -> Taken {
        let mut taken = Taken::default();
        for run in &self.runs {
            for at in 0..run.part.names().len() {
                let bytes: usize = match run.part.storage {
                    Storage::Dense(dtype) => run.part.rows * self.columns * dtype.size(),
                    Storage::Packed(_) => run.stored.iter().map(|one| one.tensors[at].len()).sum(),
                };
                match run.shares(self.on_host, at) {
                    true => taken.mapped += bytes as u64,
                    false => taken.allocated += bytes as u64,
                }
            }
            if let (Storage::Packed(_), false) = (run.part.storage, self.on_host) {
                taken.panel = panel(self.dtype);
            }
            taken.quantises |= run.part.storage.quantises();
        }
        taken
    }

    /// The data of all tensors, part after part: [rows, K] of dense parts, bytes of packed ones.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (Storage, TensorData)> {
        let runs = self.runs.iter().flat_map(move |run| {
            (0..run.part.names().len()).map(move |at| (run.part, run.bytes(self.on_host, at)))
        });
        runs.map(|(part, bytes)| {
            let data = match part.storage {
                Storage::Dense(dtype) => {
                    TensorData::from_bytes(bytes, [part.rows, self.columns], dtype)
                }
                Storage::Packed(_) => {
                    let length = bytes.len();
                    TensorData::from_bytes(bytes, [length], DType::U8)
                }
            };
            (part.storage, data)
        })
    }
}

/// Whether a part of `rows` rows can be continued by others that are stored in the same way.
pub(crate) fn joins(storage: Storage, rows: usize) -> bool {
    match storage {
        Storage::Dense(_) => true,
        Storage::Packed(packed) => packed.joins_after(rows),
    }
}

impl Run<'_> {
    /// Whether tensor `at` shares the memory of its file.
    fn shares(&self, on_host: bool, at: usize) -> bool {
        let [stored] = self.stored.as_slice() else {
            return false;
        };
        let aligned = |size: usize| {
            let address = stored.tensors[at].as_ptr() as usize;
            address.is_multiple_of(size)
        };
        on_host
            && stored.storage == self.part.storage
            && match self.part.storage {
                Storage::Dense(dtype) => aligned(dtype.size()),
                Storage::Packed(_) => true,
            }
    }

    fn bytes(&self, on_host: bool, at: usize) -> Bytes {
        if self.shares(on_host, at) {
            return self.stored[0].tensors[at].shared();
        }
        let mut bytes = Vec::new();
        for stored in &self.stored {
            match (stored.storage, self.part.storage) {
                (Storage::Dense(from), Storage::Dense(to)) => {
                    convert(from, &stored.tensors[at], to, &mut bytes);
                }
                (_, _) => bytes.extend_from_slice(&stored.tensors[at]),
            }
        }
        if let Storage::Packed(_) = self.part.storage
            && !on_host
        {
            bytes.resize(bytes.len().next_multiple_of(WORD), 0);
        }
        Bytes::from_bytes_vec(bytes)
    }
}

/// Converts f32, f16 or bf16 elements and appends them to `into`.
pub(crate) fn convert(from: DType, bytes: &[u8], to: DType, into: &mut Vec<u8>) {
    if from == to {
        into.extend_from_slice(bytes);
        return;
    }
    into.reserve(bytes.len() / from.size() * to.size());
    let mut push = |x: f32| match to {
        DType::F16 => into.extend(f16::from_f32(x).to_le_bytes()),
        DType::BF16 => into.extend(bf16::from_f32(x).to_le_bytes()),
        _ => into.extend(x.to_le_bytes()),
    };
    let halves = bytes.as_chunks::<2>().0.iter();
    match from {
        DType::F16 => halves.for_each(|b| push(f16::from_le_bytes(*b).to_f32())),
        DType::BF16 => halves.for_each(|b| push(bf16::from_le_bytes(*b).to_f32())),
        _ => {
            let words = bytes.as_chunks::<4>().0.iter();
            words.for_each(|b| push(f32::from_le_bytes(*b)));
        }
    }
}
