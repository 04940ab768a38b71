//! What all formats have in common: rows are read in pieces of 32 elements.
//!
//! An element is `scale * code`, or `scale * code + min`, computed in f32 and rounded after each
//! operation. One scale counts for a piece or half of it.

use super::simd::Simd;

/// Elements of a piece.
pub(super) const PIECE: usize = 32;

/// A matrix whose rows are read in pieces.
pub(super) trait Weight: Copy + Sync {
    /// One of its rows.
    type Row: Row;

    fn row(self, row: usize) -> Self::Row;
}

/// A row that is read in pieces.
pub(super) trait Row: Copy {
    /// What stands for the elements of a piece.
    type Codes: Codes;
    /// By which codes are multiplied, and what is added.
    type Factors: Factors;
    /// Pieces of a block, whose factors are read together.
    const BLOCK: usize;
    /// Scales of a piece: 1, or 2, or 0 if codes are the elements themselves.
    const SCALES: usize;
    /// Whether something is added to `scale * code`.
    const MIN: bool;

    /// Bytes of the codes of a block.
    const BYTES: usize;

    /// Where the codes of a block begin.
    fn place(self, block: usize) -> *const u8;

    /// The factors of a block.
    fn factors<S: Simd>(self, block: usize) -> Self::Factors;

    /// The codes of a piece of a block. Beyond the end of the row they are zero.
    fn codes(self, block: usize, piece: u32) -> Self::Codes;
}

/// What stands for the elements of a piece.
pub(super) trait Codes {
    /// All codes as numbers, in the first 32 / N vectors.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    unsafe fn load<S: Simd>(&self) -> Loaded<S>;
}

/// Vectors of 32 elements: as many as there are with the smallest vectors, of which some are not used
/// with larger ones.
pub(super) type Loaded<S> = [<S as Simd>::Vector; 4];

/// Vectors to be filled.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn unset<S: Simd>() -> Loaded<S> {
    // SAFETY: the caller's promise.
    unsafe { [S::splat(0.0); 4] }
}

/// By which codes of a block are multiplied, and what is added. The scales of a block are counted
/// from 0 on; so is what is added.
pub(super) trait Factors: Copy {
    /// # Safety
    /// The CPU has the instructions of `S`.
    unsafe fn scale<S: Simd>(&self, index: usize) -> S::Vector;

    /// # Safety
    /// As for [`Factors::scale`].
    unsafe fn min<S: Simd>(&self, index: usize) -> S::Vector;
}

/// Those of codes that are the elements.
impl Factors for () {
    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, _index: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::splat(1.0) }
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(&self, _index: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::splat(0.0) }
    }
}

/// A number as it is stored.
pub(super) trait Number: Copy {
    /// # Safety
    /// The CPU has the instructions of `S`.
    unsafe fn splat<S: Simd>(self) -> S::Vector;
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn splat<S: Simd>(self) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::splat(self) }
    }
}

/// The bits of an f16.
#[derive(Clone, Copy)]
pub(super) struct F16(u16);

impl F16 {
    /// That which begins at a byte.
    #[inline(always)]
    pub(super) fn at(bytes: &[u8], at: usize) -> Self {
        Self(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
    }

    #[inline(always)]
    pub(super) fn f32<S: Simd>(self) -> f32 {
        let mut out = [0.0; 16];
        // SAFETY: code with `S` is entered only if the CPU has its instructions, see `simd`; `out` has
        // as many elements as any vector.
        unsafe { S::store(out.as_mut_ptr(), self.splat::<S>()) };
        out[0]
    }
}

impl Number for F16 {
    #[inline(always)]
    unsafe fn splat<S: Simd>(self) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::splat_f16(self.0) }
    }
}

/// One scale, and nothing to add.
#[derive(Clone, Copy)]
pub(super) struct Scale<N>(pub(super) N);

impl<N: Number> Factors for Scale<N> {
    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, _index: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { self.0.splat::<S>() }
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(&self, _index: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::splat(0.0) }
    }
}

/// One scale, and what is added.
#[derive(Clone, Copy)]
pub(super) struct ScaleMin<N>(pub(super) N, pub(super) N);

impl<N: Number> Factors for ScaleMin<N> {
    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, _index: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { self.0.splat::<S>() }
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(&self, _index: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { self.1.splat::<S>() }
    }
}

/// `COUNT` scales, and as many numbers to add.
#[derive(Clone, Copy)]
pub(super) struct Scales<const COUNT: usize> {
    pub(super) scale: [f32; COUNT],
    pub(super) min: [f32; COUNT],
}

impl<const COUNT: usize> Factors for Scales<COUNT> {
    #[inline(always)]
    unsafe fn scale<S: Simd>(&self, index: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::splat(self.scale[index]) }
    }

    #[inline(always)]
    unsafe fn min<S: Simd>(&self, index: usize) -> S::Vector {
        // SAFETY: the caller's promise.
        unsafe { S::splat(self.min[index]) }
    }
}

/// Fields of bytes: the `bits` ones from `from` on, moved to begin at bit `to`.
///
/// # Safety
/// The CPU has the instructions of `S`; there are N bytes.
#[inline(always)]
pub(super) unsafe fn fields<S: Simd>(bytes: *const u8, from: u32, bits: u32, to: u32) -> S::Ints {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = S::load_u8(bytes);
        let moved = match from >= to {
            true if from == to => bytes,
            true => S::right(bytes, from - to),
            false => S::left(bytes, to - from),
        };
        // The highest bits of bytes have none above them, nor the lowest any below.
        match from + bits == 8 && to == 0 {
            true => moved,
            false => S::and(moved, ((1 << bits) - 1) << to),
        }
    }
}

/// Signed codes of a byte each.
pub(super) struct Signed<'a>(pub(super) &'a [u8; PIECE]);

impl Codes for Signed<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise.
        unsafe {
            let mut all = unset::<S>();
            for i in 0..PIECE / S::N {
                all[i] = S::float(S::load_i8(self.0.as_ptr().add(i * S::N)));
            }
            all
        }
    }
}

/// Codes of which some bits lie in one byte each, and the others above them in another.
pub(super) struct TwoParts<'a> {
    pub(super) low: &'a [u8; PIECE],
    /// Where the lower bits begin in their bytes.
    pub(super) low_at: u32,
    pub(super) low_bits: u32,
    pub(super) high: &'a [u8; PIECE],
    /// Where the upper bits begin in theirs.
    pub(super) high_at: u32,
    pub(super) high_bits: u32,
    /// What is added to codes.
    pub(super) plus: i32,
}

impl Codes for TwoParts<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise.
        unsafe {
            let mut all = unset::<S>();
            for i in 0..PIECE / S::N {
                let low = self.low.as_ptr().add(i * S::N);
                let low = fields::<S>(low, self.low_at, self.low_bits, 0);
                let high = self.high.as_ptr().add(i * S::N);
                let high = fields::<S>(high, self.high_at, self.high_bits, self.low_bits);
                all[i] = S::float(S::plus(S::or(low, high), self.plus));
            }
            all
        }
    }
}

/// Codes that are fields of a byte each.
pub(super) struct OnePart<'a> {
    pub(super) bytes: &'a [u8; PIECE],
    /// Where the bits begin in their bytes.
    pub(super) at: u32,
    pub(super) bits: u32,
}

impl Codes for OnePart<'_> {
    #[inline(always)]
    unsafe fn load<S: Simd>(&self) -> Loaded<S> {
        // SAFETY: the caller's promise.
        unsafe {
            let mut all = unset::<S>();
            for i in 0..PIECE / S::N {
                let bytes = self.bytes.as_ptr().add(i * S::N);
                all[i] = S::float(fields::<S>(bytes, self.at, self.bits, 0));
            }
            all
        }
    }
}

/// The 32 bytes with a number.
#[inline(always)]
pub(super) fn bytes(all: &[u8], number: u32) -> &[u8; PIECE] {
    all[number as usize * PIECE..]
        .first_chunk()
        .expect("32 bytes")
}

/// The first 32 codes of what is left of a row; if they are fewer, those in `last` and zeros.
#[inline(always)]
pub(super) fn whole<'a, C: Copy>(codes: &'a [C], last: &'a mut [C; PIECE]) -> &'a [C; PIECE] {
    codes.first_chunk().unwrap_or_else(|| {
        last[..codes.len()].copy_from_slice(codes);
        last
    })
}

/// A format whose rows are sequences of blocks of `BYTES` bytes.
pub(super) trait Block<const BYTES: usize>: Sync + 'static {
    /// As in [`Row`].
    type Codes<'a>: Codes;
    /// As in [`Row`].
    type Factors: Factors;
    /// As in [`Row`].
    const BLOCK: usize;
    /// As in [`Row`].
    const SCALES: usize;
    /// As in [`Row`].
    const MIN: bool;

    fn factors<S: Simd>(block: &[u8; BYTES]) -> Self::Factors;
    fn codes(block: &[u8; BYTES], piece: u32) -> Self::Codes<'_>;
}

/// Rows of blocks, or one of them.
pub(super) struct Blocks<'a, B, const BYTES: usize> {
    blocks: &'a [[u8; BYTES]],
    /// Blocks of a row.
    columns: usize,
    format: std::marker::PhantomData<B>,
}

impl<B, const BYTES: usize> Clone for Blocks<'_, B, BYTES> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B, const BYTES: usize> Copy for Blocks<'_, B, BYTES> {}

impl<'a, B: Block<BYTES>, const BYTES: usize> Blocks<'a, B, BYTES> {
    /// Rows of `k` elements.
    pub(super) fn new(bytes: &'a [u8], k: usize) -> Self {
        Self {
            blocks: bytes.as_chunks().0,
            columns: k / (B::BLOCK * PIECE),
            format: std::marker::PhantomData,
        }
    }
}

impl<B: Block<BYTES>, const BYTES: usize> Weight for Blocks<'_, B, BYTES> {
    type Row = Self;

    #[inline(always)]
    fn row(self, row: usize) -> Self {
        let blocks = &self.blocks[row * self.columns..][..self.columns];
        Self { blocks, ..self }
    }
}

impl<'a, B: Block<BYTES>, const BYTES: usize> Row for Blocks<'a, B, BYTES> {
    type Codes = B::Codes<'a>;
    type Factors = B::Factors;
    const BLOCK: usize = B::BLOCK;
    const SCALES: usize = B::SCALES;
    const MIN: bool = B::MIN;
    const BYTES: usize = BYTES;

    #[inline(always)]
    fn place(self, block: usize) -> *const u8 {
        self.blocks[block].as_ptr()
    }

    #[inline(always)]
    fn factors<S: Simd>(self, block: usize) -> B::Factors {
        B::factors::<S>(&self.blocks[block])
    }

    #[inline(always)]
    fn codes(self, block: usize, piece: u32) -> B::Codes<'a> {
        B::codes(&self.blocks[block], piece)
    }
}
