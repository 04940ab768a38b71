//! The text form of a layer graph: one line for each node, with shapes and memory traffic.

use super::{Axis, LayerGraph, Node, Norm, Op, Rotation, Shape, Tokens, ValueId};
use crate::model::RopeScaling;
use std::fmt;

impl fmt::Display for LayerGraph {
    /// One line for each node: `results = op(operands)  shapes  bytes`. A free node has `-`
    /// in place of bytes. q_len and kv_len are in tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernels = self.kernels();
        writeln!(
            f,
            "{} layer {}, {}, {}: {kernels} kernel{}, {} bytes",
            self.family.name(),
            self.layer,
            self.phase.name(),
            self.dtype.name(),
            if kernels == 1 { "" } else { "s" },
            self.traffic(),
        )?;
        let lines: Vec<[String; 3]> = self.nodes.iter().map(|node| self.line(node)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let [steps, shapes] = [0, 1].map(|column| width(column).unwrap_or_default());
        for [step, shape, bytes] in &lines {
            writeln!(f, "  {step:steps$}  {shape:shapes$}  {bytes}")?;
        }
        Ok(())
    }
}

impl LayerGraph {
    fn line(&self, node: &Node) -> [String; 3] {
        let names = |ids: &[ValueId]| {
            let names = ids.iter().map(|id| match self.values.get(id.0 as usize) {
                Some(value) => format!("%{} {}", id.0, value.name),
                None => format!("%{}", id.0),
            });
            names.collect::<Vec<_>>().join(", ")
        };
        let operands = |ids: &[ValueId]| {
            let ids = ids.iter().map(|id| format!("%{}", id.0));
            ids.collect::<Vec<_>>().join(", ")
        };
        let results = match node.outputs.is_empty() {
            true => String::new(),
            false => format!("{} = ", names(&node.outputs)),
        };
        let inputs = match node.inputs.is_empty() {
            true => String::new(),
            false => format!("({})", operands(&node.inputs)),
        };
        let shapes = node.outputs.iter();
        let shapes = shapes.filter_map(|id| self.values.get(id.0 as usize));
        let shapes: Vec<String> = shapes.map(|value| value.shape.to_string()).collect();
        let bytes = match node.op.is_free() {
            true => "-".to_string(),
            false => self.node_traffic(node).to_string(),
        };
        let step = format!("{results}{}{inputs}", node.op);
        [step, shapes.join(", "), bytes]
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}, {}]", self.tokens, self.heads, self.width)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "q_len",
            Self::Cached => "kv_len",
        })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Projection => f.write_str("projection"),
            Self::Split(Axis::Heads) => f.write_str("split heads"),
            Self::Split(Axis::Width) => f.write_str("split width"),
            Self::Norm(norm) => norm.fmt(f),
            Self::Rope(rotation) => rotation.fmt(f),
            Self::Scale { factor } => write!(f, "scale {factor:.6}"),
            Self::Append => f.write_str("append"),
            Self::Prologue { norm, rope, append } => {
                let norm = norm.map(|norm| norm.to_string());
                let rope = rope.as_ref().map(|rope| rope.to_string());
                let append = append.then(|| "append".to_string());
                let parts: Vec<String> = [norm, rope, append].into_iter().flatten().collect();
                write!(f, "prologue{{{}}}", parts.join("; "))
            }
            Self::Heads { norm, rope } => {
                let norm = norm.map(|norm| norm.to_string());
                let rope = rope.as_ref().map(|rope| rope.to_string());
                let append = Some("append".to_string());
                let parts: Vec<String> = [norm, rope, append].into_iter().flatten().collect();
                write!(f, "heads{{{}}}", parts.join("; "))
            }
            Self::Latents { q, kv, rope } => {
                write!(f, "latents{{{q}; {kv}")?;
                if let Some(rope) = rope {
                    write!(f, "; {rope}")?;
                }
                f.write_str("; append}")
            }
            Self::Up => f.write_str("up"),
            Self::Absorb { nope, rope: None } => write!(f, "absorb 0..{nope}"),
            Self::Absorb {
                nope,
                rope: Some(rope),
            } => write!(f, "absorb{{0..{nope}; {rope}}}"),
            Self::Expand { nope } => write!(f, "expand 0..{nope}"),
            Self::Attend(attend) => {
                write!(f, "attend{{scale {:.6}", attend.scale)?;
                if attend.v_in_k {
                    f.write_str("; v in k")?;
                }
                f.write_str("}")
            }
            Self::Gate => f.write_str("gate"),
            Self::Unabsorb => f.write_str("unabsorb"),
            Self::Output => f.write_str("output"),
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = u64::from(self.span.first) + u64::from(self.span.len);
        let weight = if self.zero_centred { " 1+w" } else { "" };
        write!(
            f,
            "norm {}..{end} eps {:e}{weight}",
            self.span.first, self.eps
        )
    }
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = u64::from(self.first) + u64::from(self.rope.dims);
        let layout = if self.rope.interleaved {
            " interleaved"
        } else {
            ""
        };
        write!(
            f,
            "rope {}..{end} theta {}{layout}",
            self.first, self.rope.theta
        )?;
        match &self.rope.scaling {
            RopeScaling::Default => Ok(()),
            RopeScaling::Linear { factor } => write!(f, " linear {factor}"),
            RopeScaling::Llama3 { factor, .. } => write!(f, " llama3 {factor}"),
            RopeScaling::Yarn { factor, .. } => write!(f, " yarn {factor}"),
            RopeScaling::LongRope { amplitude, .. } => write!(f, " longrope {amplitude:.4}"),
        }
    }
}
