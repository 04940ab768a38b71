//! Rows: which keys the queries of one block see, from patterns to the bands that kernels execute.
//!
//! | file | owns |
//! |---|---|
//! | `band` | [`Band`](crate::Band), the region that every kernel executes, with known limits |
//! | `stage` | the rules by which a block finds its partner |
//! | `program` | [`RowProgram`](crate::RowProgram), the closed form of a pattern as artifacts hold it: named ranges |
//! | `expr` | [`RowExpressions`], the closed form as integer expressions; their evaluator |
//! | `lower` | from `program` to `expr`: the only place that knows how a range is computed |
//! | `transpose` | the closed form by columns: which queries see the keys of a block |
//! | `seen` | how many keys a query sees, by `expr` |
//! | `stream` | [`Stream`], keys that stand for several tokens |
//! | `table` | the bands of one row directly from a pattern, for patterns without a closed form |
//! | `chosen` | the bands of a row that chooses blocks by content |
//!
//! Code generators know the few operations of `expr`, but no leaf of the pattern algebra: a new
//! leaf needs a new range in `lower`, and no change in a kernel.

pub mod band;
pub mod chosen;
mod expr;
mod lower;
pub mod program;
mod seen;
pub mod stage;
mod stream;
mod table;
mod transpose;

pub use expr::{BandLimits, Expr, ExprId, Function, Input, Inputs, RowExpressions};
pub use stream::Stream;
pub use table::{row, table, table_of};
pub use transpose::{Column, transpose};
