//! What the integration tests share: where fixtures are, and the flat patterns in them.

use butterfly_ir::{Leaf, PartnerRule, Pattern};
use std::path::PathBuf;

/// A file below `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}

/// `causal & (local(local) | partner(rule, radix, count) | sink(sink))`.
pub fn butterfly(local: u32, rule: PartnerRule, radix: u32, count: u32, sink: u32) -> Pattern {
    let far = Pattern::from(Leaf::Partner { rule, radix, count });
    let near = Pattern::from(Leaf::Local {
        before: local,
        after: 0,
    });
    Pattern::from(Leaf::Causal) & (near | far | Leaf::Sink { blocks: sink }.into())
}
