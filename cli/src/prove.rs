//! `butterfly prove`: what a stack of layers reaches.

use crate::args::Prove as Command;
use crate::failure::Failure;
use crate::{source, stages};
use butterfly_compiler::prove::{self, ProveError};

pub(crate) fn run(command: &Command, json: bool) -> Result<(), Failure> {
    let parsed = command.pattern.read()?;
    let sparsity = &parsed.sparsity;
    let layers = stages::stack(sparsity, command.layers.as_deref())?;
    let context = command.pattern.context(&parsed, command.seq_len, 0)?;
    source::check_tables(&parsed, &context)?;
    let heads = sparsity.pattern.sample_heads();
    let proof = prove::stack(&layers, &context, heads).map_err(|error| {
        let ProveError::TooLong { longest, .. } = error;
        Failure::Bad(format!("{error}; give --seq-len {longest}"))
    })?;
    crate::print(json, &proof, || {
        let mut text = format!(
            "{}\n{} tokens, {} swapped layers\n",
            sparsity.pattern,
            command.seq_len,
            layers.len()
        );
        for (depth, coverage) in proof.coverage.iter().enumerate() {
            text += &format!(
                "  after {:>3} layers: {:.4} of the causal block pairs\n",
                depth + 1,
                coverage
            );
        }
        if let Some(most) = proof.coverage_at_most.as_ref().and_then(|all| all.last()) {
            text += &format!(
                "rows choose blocks by content: the above holds for any choice; the best one reaches {most:.4}\n"
            );
        }
        text += &match proof.full_at {
            Some(depth) => format!("every earlier block is reached after {depth} layers\n"),
            None => "not every earlier block is reached\n".to_string(),
        };
        text + &format!(
            "at most {} blocks a row, {} rows a block; causal: {}; queries without a key: {}\n",
            proof.max_degree, proof.max_in_degree, proof.causal, proof.empty_queries
        )
    })?;
    match proof.holds() {
        true => Ok(()),
        false if proof.causal => Err(Failure::Check(format!(
            "{} queries attend to no key",
            proof.empty_queries
        ))),
        false => Err(Failure::Check(
            "a query attends to a later key; combine the pattern with `causal &`".into(),
        )),
    }
}
