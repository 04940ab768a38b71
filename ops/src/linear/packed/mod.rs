//! Packed weights: numbers of 2 to 8 bits with scales.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;

use butterfly_ir::Dtype;

/// How a packed weight matrix [N, K] is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Packed {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Mxfp4,
    Affine {
        bits: u32,
        group: u32,
        scales: Dtype,
    },
    Fp8 {
        scales: Dtype,
    },
    Mxfp4Split,
}

impl Packed {
    /// Elements of a block.
    pub fn block(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Mxfp4 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
            Self::Affine { group, .. } => group as usize,
            Self::Fp8 { .. } => 8,
            Self::Mxfp4Split => 32,
        }
    }
    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Mxfp4 => 17,
            Self::Affine { bits, group, .. } => (bits * group / 8) as usize,
            Self::Fp8 { .. } => 8,
            Self::Mxfp4Split => 16,
        }
    }
    /// Bytes of a row of `k` elements.
    pub fn row_bytes(self, k: usize) -> usize {
        k / self.block() * self.block_bytes()
    }
    /// Names.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Affine { .. } => &["weight", "scales", "biases"],
            Self::Fp8 { .. } | Self::Mxfp4Split => &["weight", "scales"],
            _ => &["weight"],
        }
    }
    /// Bytes of each tensor.
    pub fn sizes(self, rows: usize, k: usize) -> Result<Vec<usize>, String> {
        if !k.is_multiple_of(self.block()) {
            return Err(format!(
                "rows of {k} elements are no whole number of blocks"
            ));
        }
        let mut sizes = vec![rows * self.row_bytes(k)];
        match self {
            Self::Affine { group, scales, .. } => {
                let each = rows * (k / group as usize) * scales.bytes() as usize;
                sizes.extend([each, each]);
            }
            Self::Fp8 { scales } => {
                sizes.push(rows.div_ceil(128) * k.div_ceil(128) * scales.bytes() as usize)
            }
            Self::Mxfp4Split => sizes.push(rows * k / 32),
            _ => {}
        }
        Ok(sizes)
    }
    /// Whether joins.
    pub fn joins_after(self, rows: usize) -> bool {
        !matches!(self, Self::Fp8 { .. }) || rows.is_multiple_of(128)
    }
    pub(crate) fn scales(self) -> Dtype {
        match self {
            Self::Affine { scales, .. } | Self::Fp8 { scales } => scales,
            _ => Dtype::F32,
        }
    }
    pub(crate) fn is_fp8(self) -> bool {
        matches!(self, Self::Fp8 { .. })
    }
    pub(crate) fn affine_bits(self) -> u32 {
        if let Self::Affine { bits, .. } = self {
            bits
        } else {
            8
        }
    }
    pub(crate) fn affine_group(self) -> u32 {
        if let Self::Affine { group, .. } = self {
            group
        } else {
            8
        }
    }
}

impl std::fmt::Display for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}
