//! Stages of the butterfly network: the partner of a block at each stage.

use serde::{Deserialize, Serialize};

/// How a block finds its long-range partner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartnerRule {
    /// Flip one bit.
    Xor,
    /// Flip one bit; stages visit the bits upwards, then downwards, as in a Beneš network.
    Benes,
    /// Flip one bit of the bit-reversed block number.
    BitReversal,
    /// Step back by a power of the radix.
    CausalShift,
    /// Step back by one.
    FixedStride,
    /// An earlier block, chosen by a hash of block and bit.
    Random,
}

impl PartnerRule {
    /// Every rule, in the order of the documentation.
    pub const ALL: [Self; 6] = [
        Self::Xor,
        Self::Benes,
        Self::BitReversal,
        Self::CausalShift,
        Self::FixedStride,
        Self::Random,
    ];

    /// The name in text and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xor => "xor",
            Self::Benes => "benes",
            Self::BitReversal => "bit_reversal",
            Self::CausalShift => "causal_shift",
            Self::FixedStride => "fixed_stride",
            Self::Random => "random",
        }
    }
}

/// The smallest `w >= 1` with `radix^w >= blocks`: the number of digits of block numbers.
pub fn width(blocks: u32, radix: u32) -> u32 {
    let mut width = 0;
    let mut reach = 1u64;
    while reach < u64::from(blocks) {
        reach *= u64::from(radix);
        width += 1;
    }
    width.max(1)
}

/// Number of stages of the network of `rule` over `blocks` blocks.
pub fn stage_count(rule: PartnerRule, blocks: u32, radix: u32) -> u32 {
    let width = width(blocks, radix);
    match rule {
        PartnerRule::Benes => (2 * width).saturating_sub(2).max(1),
        PartnerRule::Xor
        | PartnerRule::BitReversal
        | PartnerRule::CausalShift
        | PartnerRule::FixedStride
        | PartnerRule::Random => width,
    }
}

/// The digit (for radix 2: bit) that partner number `offset` changes at `stage`.
///
/// `stage` is already reduced modulo [`stage_count`].
pub fn digit(rule: PartnerRule, stage: u32, offset: u32, width: u32) -> u32 {
    match rule {
        PartnerRule::Benes => {
            let count = (2 * width).saturating_sub(2).max(1);
            let position = (stage + offset) % count;
            if position < width {
                position
            } else {
                2 * width - 2 - position
            }
        }
        PartnerRule::Xor
        | PartnerRule::BitReversal
        | PartnerRule::CausalShift
        | PartnerRule::FixedStride
        | PartnerRule::Random => (stage + offset) % width,
    }
}

/// Partner number `step` of block `block` for `digit`; `None` if there is none, or if it lies
/// outside `0..blocks` or after `block`.
///
/// `step` is in `1..radix`, and always 1 for rules without a radix. The rules are those of
/// design.md, section 3.
pub fn partner(
    rule: PartnerRule,
    block: u32,
    digit: u32,
    step: u32,
    radix: u32,
    width: u32,
    blocks: u32,
) -> Option<u32> {
    let b = i64::from(block);
    let candidate = match rule {
        PartnerRule::Xor | PartnerRule::Benes => b ^ (1i64 << digit),
        PartnerRule::BitReversal => {
            let reverse =
                |x: i64| (0..width).fold(0i64, |r, i| r | (((x >> i) & 1) << (width - 1 - i)));
            reverse(reverse(b) ^ (1i64 << digit))
        }
        PartnerRule::CausalShift => b - i64::from(step) * i64::from(radix).pow(digit),
        PartnerRule::FixedStride => b - 1,
        PartnerRule::Random if block == 0 => return None,
        PartnerRule::Random => {
            let mixed = block
                .wrapping_mul(2_654_435_761)
                .wrapping_add(digit.wrapping_mul(374_761_393));
            i64::from(mixed % block)
        }
    };
    (candidate >= 0 && candidate < i64::from(blocks) && candidate <= b).then_some(candidate as u32)
}
