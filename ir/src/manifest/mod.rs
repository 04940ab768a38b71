//! What an artifact folder says of itself: `manifest.json`.
//!
//! The file's last member, `digest`, is the BLAKE3 of the file as it would be with an
//! empty digest, so that any changed byte is noticed.

mod check;

pub use check::ManifestError;

use crate::geometry::second_entry;
use crate::plan::{Proof, SwappedLayer};
use crate::{
    Boxes, Geometry, KernelSpec, Leaf, Phase, Product, Resident, Rows, Sparsity, Split, StageBy,
    Target,
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
    match (spec.phase, geometry.resident) {
        (
            Phase::Prefill,
            Some(Resident {
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
        (Phase::Prefill, None) => [
            format!("{rows} * {}", block.div_ceil(geometry.q_tile)),
            format!("kv_heads * {group}"),
            "batch".into(),
        ],
        (Phase::Decode, _) => {
            let x = match geometry.split {
                Some(Split { cluster }) => format!("{cluster} * q_len"),
                None => "q_len".into(),
            };
            [x, "kv_heads".into(), "batch".into()]
        }
    }
}

/// The second entry point of a kernel whose first is `entry`, if it has one: when it is taken as
/// [`Geometry::fitted`] decides.
pub fn alone(entry: &str, geometry: &Geometry) -> Option<AloneEntry> {
    let Split { cluster } = geometry.split?;
    Some(AloneEntry {
        entry: second_entry(entry),
        grid: ["q_len", "kv_heads", "batch"].map(String::from),
        when: format!("{cluster} * q_len * kv_heads * batch >= floor(processors * 9 / 10)"),
    })
}

/// The arguments of `spec` in binding order.
pub fn arguments(spec: &KernelSpec, geometry: &Geometry) -> Vec<Argument> {
    let argument = |name: &str, dtype: &str, shape: &str, output| Argument {
        name: name.into(),
        dtype: dtype.into(),
        shape: shape.into(),
        output,
    };
    let dtype = spec.dtype.name();
    let mut arguments = Vec::new();
    if let Some(Boxes {
        q: [heads, tokens],
        k: k_box,
    }) = geometry.boxes
    {
        let map = format!("tensor map of {dtype}");
        let [q, k] =
            [[heads, tokens], [1, k_box]].map(|[h, t]| format!("boxes of 1, {h}, {t}, 64"));
        let o = format!("boxes of 1, 1, {tokens}, 64");
        for (name, boxes) in [("q_map", &q), ("k_map", &k), ("v_map", &k), ("o_map", &o)] {
            arguments.push(argument(name, &map, boxes, name == "o_map"));
        }
    }
    arguments.extend([
        argument("q", dtype, "batch, q_heads, q_len, head_dim", false),
        argument("k", dtype, "batch, kv_heads, kv_len, head_dim", false),
        argument("v", dtype, "batch, kv_heads, kv_len, v_head_dim", false),
    ]);
    let o = argument("o", dtype, "batch, q_heads, q_len, v_head_dim", true);
    let lse = argument("lse", "f32", "batch, q_heads, q_len", true);
    let rows = match spec.rows {
        Rows::ClosedForm(_) => vec![],
        Rows::Table => vec![
            argument("offsets", "u32", "rows + 1", false),
            argument("bands", "i32", "bands, 4", false),
        ],
    };
    // The tensors behind tensor maps come first.
    if geometry.boxes.is_some() {
        arguments.push(o);
        arguments.extend(rows);
        if spec.score.sinks {
            arguments.push(argument("sinks", "f32", "q_heads", false));
        }
        arguments.push(lse);
        let scalars = "22 by value, from 19 on batch and softcap";
        arguments.push(argument("scalars", "u32", scalars, false));
    } else {
        let scalars = match spec.score.sinks {
            true => "21 + q_heads, from 19 on batch, softcap and sinks",
            false if spec.score.softcap => "21, from 19 on batch and softcap",
            false => "19",
        };
        arguments.push(argument("scalars", "u32", scalars, false));
        arguments.extend(rows);
        arguments.extend([o, lse]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Fitted;
    use crate::{Dtype, Score};

    /// Where the manifest says so, and only there, `fitted` takes the second entry point.
    #[test]
    fn a_second_entry_point_is_listed_as_it_is_taken() {
        let geometry = |split| Geometry {
            split,
            ..Geometry::new([128, 1, 1], [1, 16], 0)
        };
        assert_eq!(alone("kernel", &geometry(None)), None);
        let geometry = geometry(Some(Split { cluster: 4 }));
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

    /// What is bound behind tensor maps comes with them, the scalars by value at the end.
    #[test]
    fn arguments_stand_in_binding_order() {
        let spec = KernelSpec {
            phase: Phase::Prefill,
            head_dim: 128,
            v_head_dim: 128,
            group: 4,
            dtype: Dtype::Bf16,
            block: 128,
            rows: Rows::Table,
            score: Score::default(),
        };
        let geometry = |boxes| Geometry {
            boxes,
            ..Geometry::new([1; 3], [1, 1], 0)
        };
        let names = |geometry| {
            let arguments = arguments(&spec, &geometry).into_iter();
            let names: Vec<String> = arguments.map(|argument| argument.name).collect();
            names.join(" ")
        };
        assert_eq!(names(geometry(None)), "q k v scalars offsets bands o lse");
        let boxes = Boxes { q: [1, 64], k: 128 };
        assert_eq!(
            names(geometry(Some(boxes))),
            "q_map k_map v_map o_map q k v o offsets bands lse scalars"
        );
    }
}
