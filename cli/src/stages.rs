//! Turns `--stage`, `--layer` and `--layers` into the patterns of layers, and the indices that pick
//! their stages.

use crate::args::StageArg;
use crate::failure::Failure;
use butterfly_ir::{Pattern, Sparsity};

impl StageArg {
    /// The layer for which a pattern is resolved. A pattern that differs by layer needs one.
    pub(crate) fn layer(&self, sparsity: &Sparsity) -> Result<u32, Failure> {
        match self.layer {
            None if sparsity.pattern.is_by_layer() => Err(Failure::Bad(
                "the pattern differs by layer; say which layer is meant: --layer I --layers L"
                    .into(),
            )),
            layer => Ok(layer.unwrap_or_default()),
        }
    }

    /// The index that picks the stage: that of `--layer` if it is given, else `--stage`, else the
    /// stage that the pattern fixes, else 0. A pattern that fixes the stage does so for every
    /// layer.
    pub(crate) fn index(&self, sparsity: &Sparsity) -> Result<u32, Failure> {
        let Some(layer) = self.layer else {
            if self.layers.is_some() {
                return Err(Failure::Bad("--layers needs --layer I beside it".into()));
            }
            return Ok(self.stage.or(sparsity.stage).unwrap_or(0));
        };
        let layers = swapped(sparsity, self.layers.as_deref())?;
        match layers.iter().position(|l| *l == layer) {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "layers are counted in 32 bits"
            )]
            Some(position) => Ok(sparsity.index(position as u32, layer)),
            None => Err(Failure::Bad(format!(
                "layer {layer} is not among the swapped layers {layers:?}; name one of them, or change --layers"
            ))),
        }
    }
}

/// The pattern of each swapped layer, and the index that picks its stage, in the order of the layers.
pub(crate) fn stack(
    sparsity: &Sparsity,
    layers: Option<&str>,
) -> Result<Vec<(Pattern, u32)>, Failure> {
    let layers = (0..).zip(swapped(sparsity, layers)?);
    let of = |(position, layer)| {
        let pattern = sparsity.pattern.of_layer(layer);
        (pattern, sparsity.index(position, layer))
    };
    Ok(layers.map(of).collect())
}

/// The swapped layers: those that `layers` lists or counts, and of these only those that the
/// pattern names, if it names any. Without `layers`, those that the pattern names.
fn swapped(sparsity: &Sparsity, layers: Option<&str>) -> Result<Vec<u32>, Failure> {
    let given = layers.map(parse).transpose()?;
    match (given, &sparsity.swapped_layers) {
        (Some(given), Some(own)) => Ok(own.iter().copied().filter(|l| given.contains(l)).collect()),
        (Some(given), None) => Ok(given),
        (None, Some(own)) => Ok(own.clone()),
        (None, None) => Err(Failure::Bad(
            "which layers are swapped? give --layers 8, or --layers 3,7,11".into(),
        )),
    }
}

fn parse(text: &str) -> Result<Vec<u32>, Failure> {
    let number = |part: &str| {
        part.trim()
            .parse::<u32>()
            .ok()
            .filter(|n| *n <= 1 << 16)
            .ok_or_else(|| {
                Failure::Bad(format!(
                    "--layers {text}: `{part}` is no layer; give a count, or indices such as 3,7,11"
                ))
            })
    };
    let numbers = text.split(',').map(number).collect::<Result<Vec<_>, _>>()?;
    match numbers[..] {
        [0] => Err(Failure::Bad(
            "--layers 0: at least one layer must be swapped".into(),
        )),
        [count] => Ok((0..count).collect()),
        _ if numbers.windows(2).all(|pair| pair[0] < pair[1]) => Ok(numbers),
        _ => Err(Failure::Bad(format!(
            "--layers {text}: the layers must increase"
        ))),
    }
}
