//! Packed weights: numbers of 2 to 8 bits, of which groups share a scale.
//!
//! Rows of a weight are independent of one another, and hold whole blocks. `rows` describes the layouts
//! and unpacks them on the host; `cube` does so on GPUs.

#[cfg(any(feature = "cuda", feature = "vulkan"))]
pub(crate) mod cube;

use butterfly_ir::Dtype;
use std::fmt;

/// How a packed weight matrix [N, K] is stored.
///
/// Those named as in ggml are GGUF's: one tensor of blocks, each with its scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packed {
    /// 4 bits; 32 elements share a scale.
    Q4_0,
    /// 4 bits; 32 elements share a scale and a least number.
    Q4_1,
    /// 5 bits; 32 elements share a scale.
    Q5_0,
    /// 5 bits; 32 elements share a scale and a least number.
    Q5_1,
    /// 8 bits; 32 elements share a scale.
    Q8_0,
    /// 2 bits; of 256 elements, 16 share a scale and a least number of 4 bits each.
    Q2K,
    /// 3 bits; of 256 elements, 16 share a scale of 6 bits.
    Q3K,
    /// 4 bits; of 256 elements, 32 share a scale and a least number of 6 bits each.
    Q4K,
    /// 5 bits, else as [`Packed::Q4K`].
    Q5K,
    /// 6 bits; of 256 elements, 16 share a scale of 8 bits.
    Q6K,
    /// Floats of 4 bits (e2m1); 32 elements share a power of two, which lies before them.
    Mxfp4,
    /// Floats of 4 bits (e2m1) and, in a second tensor, the powers of two that 32 of them share.
    Microscaled,
    /// MLX: integers in 32-bit words; scales and biases of groups are two more tensors.
    Affine {
        /// Bits of an integer: 2, 4 or 8.
        bits: u32,
        /// Elements of a group: 32, 64 or 128.
        group: u32,
        /// Element type of scales and biases.
        scales: Dtype,
    },
    /// Floats of 8 bits (e4m3) and, in a second tensor, factors of squares of 128 × 128.
    Float8 {
        /// Element type of the factors.
        scales: Dtype,
        /// What rows become before they are multiplied with the weight.
        activations: Activations,
    },
}

/// What rows become before they are multiplied with a weight in FP8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// They stay what they are.
    #[default]
    Kept,
    /// Many rows at once become floats of 8 bits too: every 128 elements share a power of two, the smallest one by which
    /// the largest of them becomes at most 448, and are rounded to e4m3. On Hopper, matrix units multiply floats of 8 bits
    /// twice as fast as those of 16. A few rows, of which products take as long as the weight is read, stay what they are:
    /// up to 8, and up to 64 pairs of a row and its expert.
    Float8,
}

impl Packed {
    /// Elements to which devices unpack rows at once, for products of many rows: they are in the L2
    /// cache of large GPUs when the product reads them.
    pub const PANEL: usize = 1 << 23;

    /// Elements of a block and its bytes in the first tensor; rows hold whole blocks.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
            Self::Mxfp4 => (32, 17),
            Self::Microscaled => (32, 16),
            Self::Affine { bits, group, .. } => (group as usize, (group * bits / 8) as usize),
            Self::Float8 { .. } => (8, 8),
        }
    }

    /// Bytes of a row of `k` elements in the first tensor.
    pub fn row_bytes(self, k: usize) -> usize {
        let (elements, bytes) = self.block();
        k / elements * bytes
    }

    /// Names of the tensors, in order.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Affine { .. } => &["weight", "scales", "biases"],
            Self::Float8 { .. } | Self::Microscaled => &["weight", "scales"],
            Self::Q4_0
            | Self::Q4_1
            | Self::Q5_0
            | Self::Q5_1
            | Self::Q8_0
            | Self::Q2K
            | Self::Q3K
            | Self::Q4K
            | Self::Q5K
            | Self::Q6K
            | Self::Mxfp4 => &["weight"],
        }
    }

    /// Bytes of each tensor of a weight of `rows` rows of `k` elements.
    ///
    /// # Errors
    /// If rows are no whole number of blocks.
    pub fn sizes(self, rows: usize, k: usize) -> Result<Vec<usize>, String> {
        let (elements, _) = self.block();
        if k == 0 || !k.is_multiple_of(elements) {
            return Err(format!(
                "rows of {k} elements are no whole number of blocks of {elements} ({self})"
            ));
        }
        let mut sizes = vec![rows.saturating_mul(self.row_bytes(k))];
        match self {
            Self::Affine { group, scales, .. } => {
                let numbers = rows.saturating_mul(k / group as usize);
                let bytes = numbers.saturating_mul(scales.bytes() as usize);
                sizes.extend([bytes, bytes]);
            }
            Self::Float8 { scales, .. } => {
                let squares = rows.div_ceil(SQUARE) * k.div_ceil(SQUARE);
                sizes.push(squares * scales.bytes() as usize);
            }
            Self::Microscaled => sizes.push(rows.saturating_mul(k / 32)),
            Self::Q4_0
            | Self::Q4_1
            | Self::Q5_0
            | Self::Q5_1
            | Self::Q8_0
            | Self::Q2K
            | Self::Q3K
            | Self::Q4K
            | Self::Q5K
            | Self::Q6K
            | Self::Mxfp4 => {}
        }
        Ok(sizes)
    }

    /// FP8 with factors of this type, and rows that stay what they are.
    pub const fn float8(scales: Dtype) -> Self {
        Self::Float8 {
            scales,
            activations: Activations::Kept,
        }
    }

    /// The same format, with rows that become `activations` if it is FP8.
    pub fn with(self, activations: Activations) -> Self {
        match self {
            Self::Float8 { scales, .. } => Self::Float8 {
                scales,
                activations,
            },
            _ => self,
        }
    }

    /// Whether many rows are quantised before they are multiplied.
    pub(crate) fn quantises(self) -> bool {
        let activations = Activations::Float8;
        matches!(self, Self::Float8 { activations: given, .. } if given == activations)
    }

    /// Whether a weight of `rows` rows can be continued by another, tensor by tensor.
    pub fn joins_after(self, rows: usize) -> bool {
        match self {
            Self::Float8 { .. } => rows.is_multiple_of(SQUARE),
            _ => true,
        }
    }
}

/// Rows and columns of a square of [`Packed::Float8`].
pub(crate) const SQUARE: usize = 128;

impl fmt::Display for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Q4_0 => write!(f, "Q4_0"),
            Self::Q4_1 => write!(f, "Q4_1"),
            Self::Q5_0 => write!(f, "Q5_0"),
            Self::Q5_1 => write!(f, "Q5_1"),
            Self::Q8_0 => write!(f, "Q8_0"),
            Self::Q2K => write!(f, "Q2_K"),
            Self::Q3K => write!(f, "Q3_K"),
            Self::Q4K => write!(f, "Q4_K"),
            Self::Q5K => write!(f, "Q5_K"),
            Self::Q6K => write!(f, "Q6_K"),
            Self::Mxfp4 => write!(f, "MXFP4"),
            Self::Microscaled => write!(f, "MXFP4 with separate scales"),
            Self::Affine { bits, group, .. } => write!(f, "affine {bits}-bit in groups of {group}"),
            Self::Float8 { .. } => write!(f, "F8_E4M3 with scales of blocks"),
        }
    }
}
