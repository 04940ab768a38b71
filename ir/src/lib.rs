//! The types that Butterfly's crates share.
//!
//! Owns: the sparsity IR ([`Pattern`], [`Sparsity`]) and its meaning ([`sees()`]), the
//! form of a pattern that every kernel executes ([`Band`], [`RowProgram`]), and the
//! other intermediate representations between pattern text and kernel launch.
//!
//! In: text, JSON or values built by hand. Out: plain data; nothing here uses a GPU,
//! threads or the disk.
//!
//! Invariants: each value is complete in itself (no ids into hidden tables), and
//! `compiler`, `codegen` and `runtime` know each other only through this crate.

#![forbid(unsafe_code)]

pub mod contract;
pub mod delta_rule;
pub mod grouped;
mod indices;
pub mod kernel;
pub mod key;
pub mod layer_graph;
pub mod manifest;
pub mod model;
pub mod pattern;
pub mod plan;
pub mod product;
pub mod rows;
pub mod scorer;
pub mod sees;
pub mod topology;

pub use contract::ContractError;
pub use delta_rule::{DeltaRule, DeltaStage};
pub use grouped::{FewLayout, Grouped, GroupedFormat, GroupedStage};
pub use indices::{Indices, Run};
pub use kernel::{
    BandTable, Boxes, Dtype, Geometry, Kernel, KernelSpec, Launch, LaunchScalars, Resident,
    Resources, Role, Rows, Score, ScoreValues, Sm, Split, Spread, TableLayout, Target, geometry,
    scalar,
};
pub use model::Phase;
pub use pattern::build;
pub use pattern::{Case, Diagnostic, Leaf, LimitError, Parsed, Pattern, Source, Sparsity, StageBy};
pub use product::Product;
pub use rows::band::{self, Band};
pub use rows::program::{Atom, Bound, RowProgram, SymbolicBand};
pub use rows::stage::{self, PartnerRule};
pub use scorer::{Scorer, ScorerPass, ScorerShape};
pub use sees::{Context, sees};
pub use topology::{Class, Row, RowBlock, Topology};
