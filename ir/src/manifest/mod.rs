//! What an artifact folder says of itself: `manifest.json`.
//!
//! The file's last member, `digest`, is the BLAKE3 of the file as it would be with an
//! empty digest, so that any changed byte is noticed.

mod check;

pub use check::ManifestError;

use crate::kernel::geometry::second_entry;
use crate::kernel::signature::{self, Binding, Role, Way};
use crate::plan::{Proof, SwappedLayer};
use crate::{
    Geometry, KernelSpec, Launch, Leaf, Phase, Product, Resident, Rows, Score, Sparsity, Split,
    StageBy, Target,
};
use serde::{Deserialize, Serialize};

/// The schema that this version writes and reads.
pub const SCHEMA: u32 = 5;

/// The content of `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub schema: u32,
    /// Version of the compiler.
    pub compiler: String,
    /// The pattern as text.
    pub pattern: String,
    /// The pattern as data.
    pub sparsity: Sparsity,
    /// The model config it was compiled for.
    pub config: ConfigRef,
    /// Which layers are replaced, and the index that picks each one's stage.
    pub layers: Vec<SwappedLayer>,
    /// The longest sequence, in tokens, for which the pattern was checked.
    pub capacity: u32,
    /// What the replaced layers reach at that length.
    pub proof: Proof,
    /// Rows of [`dense`] attention, where the folder holds kernels for layers that keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense: Option<Rows>,
    /// All kernels, sorted by target, then key.
    pub kernels: Vec<KernelEntry>,
    /// Matrix products of linear layers, for targets that have a kernel of ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub products: Vec<ProductEntry>,
    /// Lower-case hexadecimal BLAKE3 of the file with this member empty.
    pub digest: String,
}

/// Causal attention over everything before: what layers do that keep their attention.
pub fn dense() -> Sparsity {
    Sparsity {
        block: 128,
        stage_by: StageBy::SwappedIndex,
        swapped_layers: None,
        stage: None,
        pattern: Leaf::Causal.into(),
    }
}

/// A model config by name and content.
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
    /// Content key: equal keys mean interchangeable kernels.
    pub key: String,
    /// Where it runs.
    pub target: Target,
    /// What it was made for.
    pub spec: KernelSpec,
    /// Name of the entry point.
    pub entry: String,
    /// Tile sizes and threads.
    pub geometry: Geometry,
    /// Workgroups along x, y, z as formulas of the run-time scalars.
    pub grid: [String; 3],
    /// The second entry point of a [`Split`] kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alone: Option<AloneEntry>,
    /// Tensor maps and buffers in binding order.
    pub arguments: Vec<Argument>,
    /// Registers of a thread, where it was compiled.
    pub registers: Option<u32>,
    /// Bytes of registers that a thread spills to memory, where it was compiled.
    pub spills: Option<u32>,
    /// Its files; the last is the one that is launched.
    pub files: Vec<FileEntry>,
}

/// An entry point by which a workgroup has a query and a kv head alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AloneEntry {
    /// Its name.
    pub entry: String,
    /// Workgroups along x, y, z.
    pub grid: [String; 3],
    /// The launches that take it.
    pub when: String,
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

impl Manifest {
    /// Every file of the folder but the manifest.
    pub fn files(&self) -> impl Iterator<Item = &FileEntry> {
        let products = self.products.iter().flat_map(|product| &product.files);
        let kernels = self.kernels.iter().flat_map(|kernel| &kernel.files);
        kernels.chain(products)
    }
}

/// One buffer of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Argument {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: String,
    /// Whether the kernel writes it.
    pub output: bool,
}

/// One file of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path below the artifact folder, with `/`.
    pub path: String,
    /// Length.
    pub bytes: u64,
    /// BLAKE3 of the content.
    pub blake3: String,
}

/// The grid of `spec` as text: what [`Geometry::grid`] computes.
pub fn grid_formulas(spec: &KernelSpec, geometry: &Geometry) -> [String; 3] {
    let (block, group) = (spec.block, spec.group);
    let rows = format!("(ceil((q_offset + q_len) / {block}) - floor(q_offset / {block}))");
    match (spec.phase, geometry.launch) {
        (
            Phase::Prefill,
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
        (Phase::Prefill, Launch::Grid | Launch::Split(_)) => [
            format!("{rows} * {}", block.div_ceil(geometry.q_tile)),
            format!("kv_heads * {group}"),
            "batch".into(),
        ],
        (Phase::Decode, _) => {
            let x = match geometry.launch {
                Launch::Split(Split { cluster }) => format!("{cluster} * q_len"),
                Launch::Grid | Launch::Resident(_) => "q_len".into(),
            };
            [x, "kv_heads".into(), "batch".into()]
        }
    }
}

/// The second entry point of a kernel whose first is `entry`, if it has one: when it is taken as
/// [`Geometry::fitted`] decides.
pub fn alone(entry: &str, geometry: &Geometry) -> Option<AloneEntry> {
    let Launch::Split(Split { cluster }) = geometry.launch else {
        return None;
    };
    Some(AloneEntry {
        entry: second_entry(entry),
        grid: ["q_len", "kv_heads", "batch"].map(String::from),
        when: format!("{cluster} * q_len * kv_heads * batch >= floor(processors * 9 / 10)"),
    })
}

/// The arguments of `spec` in binding order.
pub fn arguments(spec: &KernelSpec, geometry: &Geometry) -> Vec<Argument> {
    let listed = |Binding { role, way }: Binding| {
        let dtype = match role {
            Role::Q | Role::K | Role::V | Role::O => spec.dtype.name(),
            Role::Lse | Role::Sinks => "f32",
            Role::Offsets | Role::Scalars => "u32",
            Role::Bands => "i32",
        };
        let (name, dtype, shape) = match way {
            Way::Map([b, h, t, d]) => (
                format!("{}_map", role.name()),
                format!("tensor map of {dtype}"),
                format!("boxes of {b}, {h}, {t}, {d}"),
            ),
            Way::Mapped | Way::Buffer | Way::Value => {
                let shape = shape(role, way, spec.score).to_string();
                (role.name().into(), dtype.into(), shape)
            }
        };
        Argument {
            name,
            dtype,
            shape,
            output: role.is_output(),
        }
    };
    signature::of(spec, geometry)
        .into_iter()
        .map(listed)
        .collect()
}

/// The dimensions of an argument.
fn shape(role: Role, way: Way, score: Score) -> &'static str {
    match role {
        Role::Q => "batch, q_heads, q_len, head_dim",
        Role::K => "batch, kv_heads, kv_len, head_dim",
        Role::V => "batch, kv_heads, kv_len, v_head_dim",
        Role::O => "batch, q_heads, q_len, v_head_dim",
        Role::Lse => "batch, q_heads, q_len",
        Role::Offsets => "rows + 1",
        Role::Bands => "bands, 4",
        Role::Sinks => "q_heads",
        Role::Scalars if way == Way::Value => "22 by value, from 19 on batch and softcap",
        Role::Scalars if score.sinks => "21 + q_heads, from 19 on batch, softcap and sinks",
        Role::Scalars if score.softcap => "21, from 19 on batch and softcap",
        Role::Scalars => "19",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::geometry::Fitted;

    /// Where the manifest says so, and only there, `fitted` takes the second entry point.
    #[test]
    fn a_second_entry_point_is_listed_as_it_is_taken() {
        let geometry = |launch| Geometry {
            launch,
            ..Geometry::new([128, 1, 1], [1, 16], 0)
        };
        assert_eq!(alone("kernel", &geometry(Launch::Grid)), None);
        let geometry = geometry(Launch::Split(Split { cluster: 4 }));
        let second = alone("kernel", &geometry).expect("it has two");
        assert_eq!(second.entry, "kernel_alone");
        assert_eq!(
            second.when,
            "4 * q_len * kv_heads * batch >= floor(processors * 9 / 10)"
        );
        for (jobs, processors) in [(29, 132), (30, 132), (1, 4), (1, 5)] {
            let listed = 4 * jobs >= processors * 9 / 10;
            let Fitted { grid, alone } = geometry.fitted([1, jobs, 1], processors);
            assert_eq!((alone, grid[0]), (listed, if listed { 1 } else { 4 }));
        }
    }
}
