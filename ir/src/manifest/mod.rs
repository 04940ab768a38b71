//! The manifest: `manifest.json`, which describes an artifact folder.
//!
//! The last member of the file, `digest`, is the BLAKE3 of the same file with an empty
//! digest, so that any changed byte is detected.

mod check;

pub use check::ManifestError;

use crate::kernel::geometry::{cluster_entry, merge_entry, second_entry, spread_entry};
use crate::kernel::signature::{self, Binding, Operand, Way};
use crate::plan::{Kept, Proof, SwappedLayer, Variant};
use crate::{
    DeltaRule, Geometry, Grouped, KernelSpec, Launch, Product, Resident, Role, Score, Scorer,
    Sparsity, Split, Spread, Target,
};
use serde::{Deserialize, Serialize};

/// The schema version that this version of the crate writes and reads.
pub const SCHEMA: u32 = 13;

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the file format; [`SCHEMA`] when written by this version.
    pub schema: u32,
    /// Version of the compiler.
    pub compiler: String,
    /// The pattern as text.
    pub pattern: String,
    /// The pattern as data.
    pub sparsity: Sparsity,
    /// The model config for which the folder was compiled.
    pub config: ConfigRef,
    /// The swapped layers, first to last, each with the index that picks its stage.
    pub layers: Vec<SwappedLayer>,
    /// The longest sequence, in tokens, for which the pattern was checked.
    pub capacity: u32,
    /// Facts proved about the swapped layers at that length.
    pub proof: Proof,
    /// The patterns of the swapped layers, each once, with the rows of their kernels.
    pub variants: Vec<Variant>,
    /// The layers' own attention, if the folder holds kernels for layers that keep it; each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Kept>,
    /// All kernels, sorted by target, then key.
    pub kernels: Vec<KernelEntry>,
    /// Matrix products of linear layers, for targets with generated kernels for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub products: Vec<ProductEntry>,
    /// Kernels that score blocks by content, for targets with generated kernels for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scorers: Vec<ScorerEntry>,
    /// Kernels of the gated delta rule, for targets with generated kernels for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delta_rules: Vec<DeltaRuleEntry>,
    /// Kernels for products with experts and with packed weights, for targets with generated kernels for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grouped: Vec<GroupedEntry>,
    /// Lower-case hexadecimal BLAKE3 of the file with this member empty.
    pub digest: String,
}

/// A model config, identified by name and content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigRef {
    /// File name without folders.
    pub file: String,
    /// `model_type` of the text model.
    pub model_type: String,
    /// BLAKE3 of the file.
    pub blake3: String,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelEntry {
    /// Content key (see [`key::of`](crate::key::of)).
    pub key: String,
    /// Where it runs.
    pub target: Target,
    /// What it computes.
    pub spec: KernelSpec,
    /// Name of the entry point.
    pub entry: String,
    /// Tile sizes and threads.
    pub geometry: Geometry,
    /// Workgroups along x, y, z, as formulas over the run-time scalars, for human readers.
    pub grid: [String; 3],
    /// The second entry point of a [`Split`] kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<AloneEntry>,
    /// The entry points of a [`Spread`] kernel for long rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<SpreadEntry>,
    /// Tensor maps, buffers and values in binding order.
    pub arguments: Vec<Argument>,
    /// Registers per thread; `None` if it was not compiled to machine code.
    pub registers: Option<u32>,
    /// Bytes stored by register spills; `None` if it was not compiled to machine code.
    pub spills: Option<u32>,
    /// Its files; the last is the one that is launched.
    pub files: Vec<FileEntry>,
}

/// The second entry point of a [`Split`] kernel, at which one workgroup reads all keys of a query
/// and kv head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AloneEntry {
    /// Its name.
    pub entry: String,
    /// Workgroups along x, y, z, as formulas over the run-time scalars.
    pub grid: [String; 3],
    /// The condition under which a launch takes it, as a formula.
    pub when: String,
}

/// The entry points of a [`Spread`] kernel for long rows, which are launched one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpreadEntry {
    /// The one that computes parts of the keys of each job.
    pub parts: LaunchEntry,
    /// The one that merges their results.
    pub merge: LaunchEntry,
    /// The one at which a cluster does both, for rows that are not too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<LaunchEntry>,
    /// The number of parts of a job, as a formula.
    pub count: String,
    /// The condition under which a launch takes them, as a formula.
    pub when: String,
}

/// A further entry point of a kernel, with arguments of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchEntry {
    /// Its name.
    pub entry: String,
    /// Workgroups along x, y, z, as formulas over the run-time scalars.
    pub grid: [String; 3],
    /// Bytes of shared memory that a launch asks for.
    pub shared_bytes: u32,
    /// Tensor maps, buffers and values in binding order.
    pub arguments: Vec<Argument>,
}

/// One matrix product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductEntry {
    /// Where it runs.
    pub target: Target,
    /// How it is launched.
    pub product: Product,
    /// Its files; the last is the one that is launched.
    pub files: Vec<FileEntry>,
}

/// One kernel that scores blocks by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScorerEntry {
    /// Where it runs.
    pub target: Target,
    /// What it computes, and how it is launched.
    pub scorer: Scorer,
    /// Its files; the last is the one that is launched.
    pub files: Vec<FileEntry>,
}

/// The kernels of one gated delta rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaRuleEntry {
    /// Where they run.
    pub target: Target,
    /// What they compute, and how they are launched.
    pub rule: DeltaRule,
    /// Their files; the last is the one that is launched, and holds all of them.
    pub files: Vec<FileEntry>,
}

/// The kernels for products with weights of one format, whose rows have the same length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupedEntry {
    /// Where they run.
    pub target: Target,
    /// What they compute, and how they are launched.
    pub grouped: Grouped,
    /// Their files; the last is the one that is launched, and holds both.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// Every file of the folder except the manifest.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        let products = self.products.iter().flat_map(|product| &product.files);
        let kernels = self.kernels.iter().flat_map(|kernel| &kernel.files);
        let scorers = self.scorers.iter().flat_map(|scorer| &scorer.files);
        let rules = self.delta_rules.iter().flat_map(|rule| &rule.files);
        let grouped = self.grouped.iter().flat_map(|grouped| &grouped.files);
        let beside = products.chain(scorers).chain(rules).chain(grouped);
        kernels.chain(beside)
    }
}

/// One argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Element type; for a tensor map, with the words "tensor map of".
    pub dtype: String,
    /// Dimensions, outermost first; for a tensor map, those of its boxes.
    pub shape: String,
    /// Whether the kernel writes it.
    pub output: bool,
}

/// One file of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path relative to the artifact folder, with `/` on every platform.
    pub path: String,
    /// Length of the file.
    pub bytes: u64,
    /// BLAKE3 of the content.
    pub blake3: String,
}

/// The grid of a kernel as formulas: what [`Geometry::grid`] and [`Geometry::fitted`] compute.
pub fn grid_formulas(spec: &KernelSpec, geometry: &Geometry) -> [String; 3] {
    let (block, group) = (spec.block, spec.group);
    let rows = format!("(ceil((q_offset + q_len) / {block}) - floor(q_offset / {block}))");
    match (spec.role, geometry.launch) {
        (
            Role::Prefill,
            Launch::Resident(Resident {
                items_per_row,
                cluster,
            }),
        ) => [
            format!(
                "min(processors, {cluster} * {rows} * {items_per_row} * kv_heads * batch), a multiple of {cluster}"
            ),
            "1".into(),
            "1".into(),
        ],
        (Role::Prefill, Launch::Grid | Launch::Split(_)) => [
            format!("{rows} * {}", block.div_ceil(geometry.q_tile)),
            format!("kv_heads * {group}"),
            "batch".into(),
        ],
        (Role::Decode, _) => {
            let x = match geometry.launch {
                Launch::Split(Split { cluster, .. }) => format!("{cluster} * q_len"),
                Launch::Grid | Launch::Resident(_) => "q_len".into(),
            };
            [x, "kv_heads".into(), "batch".into()]
        }
    }
}

/// The second entry point of a kernel whose first one is `entry`; `None` if it has only one.
///
/// Its condition is the one by which [`Geometry::fitted`] decides.
pub fn alone(entry: &str, geometry: &Geometry) -> Option<AloneEntry> {
    let Launch::Split(Split { cluster, .. }) = geometry.launch else {
        return None;
    };
    Some(AloneEntry {
        entry: second_entry(entry),
        grid: ["q_len", "kv_heads", "batch"].map(String::from),
        when: format!("{cluster} * q_len * kv_heads * batch >= floor(processors * 9 / 10)"),
    })
}

/// The entry points for long rows of the kernel of `spec` whose first one is `entry`; `None` if it has
/// none.
///
/// Condition and count are those by which [`Geometry::fitted`] decides.
pub fn spread(entry: &str, spec: &KernelSpec, geometry: &Geometry) -> Option<SpreadEntry> {
    let Launch::Split(Split {
        cluster,
        spread: Some(spread),
    }) = geometry.launch
    else {
        return None;
    };
    let Spread {
        from,
        part,
        per_processor,
        shared_bytes,
        v_in_k,
        within,
    } = spread;
    let grid = |x: String| [x, "kv_heads".into(), "batch".into()];
    let of_query = Spread::merge_grid(spec, [1; 3])[0];
    let keys = format!("keys of the last query >= {from}");
    Some(SpreadEntry {
        parts: LaunchEntry {
            entry: spread_entry(entry),
            grid: grid("q_len * parts".into()),
            shared_bytes,
            arguments: listed(spec, signature::spread(spec, geometry)),
        },
        merge: LaunchEntry {
            entry: merge_entry(entry),
            grid: grid(format!("q_len * {of_query}")),
            shared_bytes: 0,
            arguments: listed(spec, signature::merge(spec)),
        },
        cluster: (within > 0).then(|| LaunchEntry {
            entry: cluster_entry(entry),
            grid: grid(format!("{} * q_len", Spread::CLUSTER)),
            shared_bytes,
            arguments: listed(spec, signature::of(spec, geometry)),
        }),
        count: format!(
            "max(1, min(ceil(keys / {part}), floor({per_processor} * processors / (q_len * kv_heads * batch))))"
        ),
        when: match v_in_k {
            true => format!(
                "{keys}, and v is the first elements of k; `cluster` up to {within} keys, if {} * q_len * kv_heads * batch <= floor(processors * 9 / 10)",
                Spread::CLUSTER
            ),
            false => format!("{keys}, and parts > {cluster}, or > 1 where `alone` would be taken"),
        },
    })
}

/// The arguments of a kernel in binding order, in the form that manifests list.
pub fn arguments(spec: &KernelSpec, geometry: &Geometry) -> Vec<Argument> {
    listed(spec, signature::of(spec, geometry))
}

fn listed(spec: &KernelSpec, signature: Vec<Binding>) -> Vec<Argument> {
    let listed = |Binding { operand, way }: Binding| {
        let dtype = match operand {
            Operand::Q | Operand::K | Operand::V | Operand::O => spec.dtype.name(),
            Operand::Lse | Operand::Sinks | Operand::Partials => "f32",
            Operand::Offsets | Operand::Scalars => "u32",
            Operand::Bands => "i32",
        };
        let (name, dtype, shape) = match way {
            Way::Map([b, h, t, d]) => (
                format!("{}_map", operand.name()),
                format!("tensor map of {dtype}"),
                format!("boxes of {b}, {h}, {t}, {d}"),
            ),
            Way::Mapped | Way::Buffer | Way::Value => {
                let shape = shape(operand, way, spec.score).to_string();
                (operand.name().into(), dtype.into(), shape)
            }
        };
        Argument {
            name,
            dtype,
            shape,
            output: operand.is_output(),
        }
    };
    signature.into_iter().map(listed).collect()
}

/// The dimensions of an argument.
fn shape(operand: Operand, way: Way, score: Score) -> &'static str {
    match operand {
        Operand::Q => "batch, q_heads, q_len, head_dim",
        Operand::K => "batch, kv_heads, kv_len, head_dim",
        Operand::V => "batch, kv_heads, kv_len, v_head_dim",
        Operand::O => "batch, q_heads, q_len, v_head_dim",
        Operand::Lse => "batch, q_heads, q_len",
        Operand::Offsets => "heads * rows + 1",
        Operand::Bands => "bands, 4",
        Operand::Sinks => "q_heads",
        Operand::Partials => "batch, kv_heads, q_len, parts, group, v_head_dim + 4",
        Operand::Scalars if way == Way::Value => "24 by value, from 21 on batch and softcap",
        Operand::Scalars if score.sinks => "23 + q_heads, from 21 on batch, softcap and sinks",
        Operand::Scalars if score.softcap => "23, from 21 on batch and softcap",
        Operand::Scalars => "21",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::geometry::{Entry, Fitted};

    /// `fitted` takes the second entry point exactly if the manifest's condition holds.
    #[test]
    fn a_second_entry_point_is_listed_as_it_is_taken() {
        let geometry = |launch| Geometry {
            launch,
            ..Geometry::new([128, 1, 1], [1, 16], 0)
        };
        assert_eq!(alone("kernel", &geometry(Launch::Grid)), None);
        let geometry = geometry(Launch::Split(Split {
            cluster: 4,
            spread: None,
        }));
        let second = alone("kernel", &geometry).expect("it has two");
        assert_eq!(second.entry, "kernel_alone");
        assert_eq!(
            second.when,
            "4 * q_len * kv_heads * batch >= floor(processors * 9 / 10)"
        );
        for (jobs, processors) in [(29, 132), (30, 132), (1, 4), (1, 5)] {
            let listed = 4 * jobs >= processors * 9 / 10;
            let Fitted { grid, entry } = geometry.fitted([1, jobs, 1], processors, 0);
            let expected = match listed {
                true => (Entry::Alone, 1),
                false => (Entry::First, 4),
            };
            assert_eq!((entry, grid[0]), expected);
        }
    }
}
