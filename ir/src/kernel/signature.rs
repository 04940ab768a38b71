//! The arguments of a kernel, in binding order.
//!
//! In:  the specification and the geometry of a kernel. Out: one [`Binding`] for each argument.
//!
//! Invariant: this is the only place that defines the order. Emitters declare these arguments,
//! manifests list them, launches bind them.

use super::{Boxes, Geometry, KernelSpec, Rows};

/// The meaning of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operand {
    /// Queries, `[B, Hq, q_len, D]`.
    Q,
    /// Keys, `[B, Hkv, kv_len, D]`.
    K,
    /// Values, `[B, Hkv, kv_len, Dv]`.
    V,
    /// Outputs, `[B, Hq, q_len, Dv]`.
    O,
    /// Log-sum-exp with natural log, f32, `[B, Hq, q_len]`.
    Lse,
    /// Where each row's bands begin, if rows come from a table: u32, one more than rows.
    Offsets,
    /// Bands, if rows come from a table: i32, `[bands, 4]`.
    Bands,
    /// The words that [`scalar`](super::scalar) names.
    Scalars,
    /// Logits of sinks, f32, `[Hq]`, if they do not follow the scalars.
    Sinks,
    /// Results of the parts of each job, between the two launches of a
    /// [`Spread`](super::geometry::Spread) kernel: f32, `[B, Hkv, q_len, parts, group, Dv + 4]`.
    Partials,
}

impl Operand {
    /// The name in manifests, messages and the text of kernels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::O => "o",
            Self::Lse => "lse",
            Self::Offsets => "offsets",
            Self::Bands => "bands",
            Self::Scalars => "scalars",
            Self::Sinks => "sinks",
            Self::Partials => "partials",
        }
    }

    /// Whether the kernel writes it.
    pub fn is_output(self) -> bool {
        match self {
            Self::O | Self::Lse => true,
            Self::Q
            | Self::K
            | Self::V
            | Self::Offsets
            | Self::Bands
            | Self::Scalars
            | Self::Sinks
            | Self::Partials => false,
        }
    }
}

/// How an argument reaches a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a tensor map with boxes of this many sequences, heads, tokens and elements.
    Map([u32; 4]),
    /// As the buffer behind a tensor map, which is bound in addition to the map.
    Mapped,
    /// As a buffer.
    Buffer,
    /// By value.
    Value,
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its meaning.
    pub operand: Operand,
    /// How it reaches the kernel.
    pub way: Way,
}

/// The arguments of the kernel of `spec` with `geometry`, in binding order.
///
/// A kernel with tensor maps takes the maps first, then the buffers behind them, then the other
/// buffers, then the scalars by value. This is the order in which CubeCL 0.10 binds them.
pub fn of(spec: &KernelSpec, geometry: &Geometry) -> Vec<Binding> {
    let with = |way: Way| move |operand: Operand| Binding { operand, way };
    let table: &[Operand] = match spec.rows {
        Rows::ClosedForm(_) => &[],
        Rows::Table => &[Operand::Offsets, Operand::Bands],
    };
    let table = table.iter().copied();
    let Some(boxes) = geometry.boxes else {
        let roles = [Operand::Q, Operand::K, Operand::V, Operand::Scalars].into_iter();
        let roles = roles.chain(table).chain([Operand::O, Operand::Lse]);
        return roles.map(with(Way::Buffer)).collect();
    };
    let tensors = [Operand::Q, Operand::K, Operand::V, Operand::O];
    let maps = tensors.map(|operand| Binding {
        operand,
        way: Way::Map(boxes.of(operand)),
    });
    let sinks = spec.score.sinks.then_some(Operand::Sinks);
    let buffers = table.chain(sinks).chain([Operand::Lse]);
    let mut all = maps.to_vec();
    all.extend(tensors.map(with(Way::Mapped)));
    all.extend(buffers.map(with(Way::Buffer)));
    all.push(with(Way::Value)(Operand::Scalars));
    all
}

/// The arguments of the entry point of a [`Spread`](super::geometry::Spread) kernel that computes
/// parts: those of the first one, and the results of parts, before the scalars by value.
pub fn spread(spec: &KernelSpec, geometry: &Geometry) -> Vec<Binding> {
    let mut all = of(spec, geometry);
    all.insert(all.len().saturating_sub(1), PARTIALS);
    all
}

/// The arguments of the entry point that merges parts.
pub fn merge(spec: &KernelSpec) -> Vec<Binding> {
    let with = |way: Way| move |operand: Operand| Binding { operand, way };
    let sinks = spec.score.sinks.then_some(Operand::Sinks);
    let buffers = [Operand::O].into_iter().chain(sinks).chain([Operand::Lse]);
    let mut all: Vec<Binding> = buffers.map(with(Way::Buffer)).collect();
    all.push(PARTIALS);
    all.push(with(Way::Value)(Operand::Scalars));
    all
}

const PARTIALS: Binding = Binding {
    operand: Operand::Partials,
    way: Way::Buffer,
};

impl Boxes {
    /// The box of a tensor, as sequences, heads, tokens and elements.
    fn of(&self, operand: Operand) -> [u32; 4] {
        let [heads, tokens] = self.q;
        match operand {
            Operand::Q => [1, heads, tokens, 64],
            Operand::O => [1, 1, tokens, 64],
            _ => [1, 1, self.k, 64],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, Role, Score};

    /// After the maps come the buffers behind them; the scalars come by value at the end.
    #[test]
    fn arguments_stand_in_binding_order() {
        let spec = |sinks| KernelSpec {
            role: Role::Prefill,
            head_dim: 128,
            v_head_dim: 128,
            group: 4,
            dtype: Dtype::Bf16,
            block: 128,
            rows: Rows::Table,
            score: Score {
                sinks,
                ..Score::default()
            },
        };
        let geometry = |boxes| Geometry {
            boxes,
            ..Geometry::new([1; 3], [1, 1], 0)
        };
        let named = |bindings: Vec<Binding>| {
            let named = bindings.into_iter().map(|binding| {
                let name = binding.operand.name();
                match binding.way {
                    Way::Map(_) => format!("{name}_map"),
                    Way::Mapped => format!("({name})"),
                    Way::Buffer => name.to_string(),
                    Way::Value => format!("={name}"),
                }
            });
            named.collect::<Vec<_>>().join(" ")
        };
        let text = |spec: &KernelSpec, geometry: &Geometry| named(of(spec, geometry));
        for sinks in [false, true] {
            let plain = text(&spec(sinks), &geometry(None));
            assert_eq!(plain, "q k v scalars offsets bands o lse");
        }
        let boxes = geometry(Some(Boxes { q: [1, 64], k: 128 }));
        assert_eq!(
            text(&spec(true), &boxes),
            "q_map k_map v_map o_map (q) (k) (v) (o) offsets bands sinks lse =scalars"
        );
        let closed = KernelSpec {
            rows: Rows::ClosedForm(Default::default()),
            ..spec(false)
        };
        assert_eq!(
            text(&closed, &boxes),
            "q_map k_map v_map o_map (q) (k) (v) (o) lse =scalars"
        );
        assert_eq!(
            named(super::spread(&closed, &boxes)),
            "q_map k_map v_map o_map (q) (k) (v) (o) lse partials =scalars"
        );
        assert_eq!(
            named(super::merge(&spec(true))),
            "o sinks lse partials =scalars"
        );
    }
}
