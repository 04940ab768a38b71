//! `butterfly inspect MODEL`: what the files of a model hold.

use crate::failure::Failure;
use butterfly::backends::Cpu;
use butterfly_ir::model::{AttentionShape, ExpertsShape, LayerKind};
use butterfly_models::Contents;
use std::path::Path;

pub(crate) fn inspect(path: &Path, json: bool) -> Result<(), Failure> {
    let contents = Contents::of::<Cpu>(path, &Default::default()).map_err(Failure::bad)?;
    crate::print(json, &contents, || text(path, &contents))
}

fn experts(shape: &ExpertsShape) -> String {
    let mut text = format!(
        "{} experts of {}, {} chosen for a token",
        shape.count, shape.intermediate, shape.chosen
    );
    if let Some(shared) = shape.shared {
        text += &format!(", a shared one of {}", shared.intermediate);
    }
    if !shape.dense.is_empty() {
        let layers: Vec<String> = shape.dense.iter().map(u32::to_string).collect();
        text += &format!("; dense layers: {}", layers.join(", "));
    }
    text + "\n"
}

fn text(path: &Path, contents: &Contents) -> String {
    let heads = match contents.attention {
        AttentionShape::Gqa {
            q_heads,
            kv_heads,
            head_dim,
        } => format!("{q_heads} q heads, {kv_heads} kv heads of {head_dim}"),
        AttentionShape::Mla {
            q_heads,
            kv_lora_rank,
            ..
        } => format!("{q_heads} q heads, latent of {kv_lora_rank}"),
    };
    let tied = match contents.tied {
        true => ", embedding and output tied",
        false => "",
    };
    let mut text = format!(
        "{}: {}\n{}\n{heads}, hidden {}, vocabulary {}, context {}{tied}\n",
        path.display(),
        contents.family,
        layers(&contents.layers),
        contents.hidden,
        contents.vocabulary,
        contents.context,
    );
    text += &contents.experts.as_ref().map(experts).unwrap_or_default();
    for kind in &contents.types {
        text += &format!(
            "{:<10} {:>5} tensors {:>16} bytes\n",
            kind.name, kind.tensors, kind.bytes
        );
    }
    for (what, names) in [("missing", &contents.missing), ("extra", &contents.extra)] {
        text += &format!("{what}: {}\n", names.len());
        names.iter().for_each(|name| text += &format!("  {name}\n"));
    }
    text
}

/// How many layers there are of each kind.
fn layers(layers: &[LayerKind]) -> String {
    let mut counts: Vec<(LayerKind, usize)> = Vec::new();
    for kind in layers {
        match counts.iter_mut().find(|(other, _)| other == kind) {
            Some((_, count)) => *count += 1,
            None => counts.push((*kind, 1)),
        }
    }
    let named = counts.into_iter().map(|(kind, count)| match kind {
        LayerKind::FullAttention => format!("{count} of full attention"),
        LayerKind::WindowAttention { window } => {
            format!("{count} of attention to the last {window} tokens")
        }
        LayerKind::LinearAttention => format!("{count} of linear attention"),
    });
    format!(
        "{} layers: {}",
        layers.len(),
        named.collect::<Vec<_>>().join(", ")
    )
}
