//! The element types of ggml: how many elements a block has, and how many bytes.
//!
//! Source: ggml-org/llama.cpp, `ggml/include/ggml.h` (numbers) and `ggml/src/ggml-common.h` (blocks).

/// A type of tensor elements that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum GgmlType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Mxfp4,
}

/// How a type is stored: rows are sequences of blocks, each of `elements` neighbours in `bytes` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The type's number in a file.
    pub(crate) number: u32,
    /// The type's name in ggml.
    pub(crate) name: &'static str,
    pub(crate) elements: usize,
    pub(crate) bytes: usize,
}

/// Every type that is read.
pub(crate) const ALL: [GgmlType; 14] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::Bf16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q2K,
    GgmlType::Q3K,
    GgmlType::Q4K,
    GgmlType::Q5K,
    GgmlType::Q6K,
    GgmlType::Mxfp4,
];

/// Types that are not read, for messages.
const OTHERS: [(u32, &str); 21] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

impl GgmlType {
    /// How elements of this type are stored.
    pub(crate) fn block(self) -> Block {
        let (number, name, elements, bytes) = match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q4_1 => (3, "Q4_1", 32, 20),
            Self::Q5_0 => (6, "Q5_0", 32, 22),
            Self::Q5_1 => (7, "Q5_1", 32, 24),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Q2K => (10, "Q2_K", 256, 84),
            Self::Q3K => (11, "Q3_K", 256, 110),
            Self::Q4K => (12, "Q4_K", 256, 144),
            Self::Q5K => (13, "Q5_K", 256, 176),
            Self::Q6K => (14, "Q6_K", 256, 210),
            Self::Bf16 => (30, "BF16", 1, 2),
            Self::Mxfp4 => (39, "MXFP4", 32, 17),
        };
        Block {
            number,
            name,
            elements,
            bytes,
        }
    }

    /// The type's name in ggml.
    pub(crate) fn name(self) -> &'static str {
        self.block().name
    }

    /// The type with this number.
    ///
    /// # Errors
    /// A sentence about the type, with its name if it has one, and the types that are read.
    pub(crate) fn of(number: u32) -> Result<Self, String> {
        if let Some(found) = ALL.iter().find(|one| one.block().number == number) {
            return Ok(*found);
        }
        let named = OTHERS.iter().find(|(other, _)| *other == number);
        let named = named.map_or("unknown", |(_, name)| *name);
        let read: Vec<&str> = ALL.iter().map(|one| one.name()).collect();
        Err(format!(
            "is of type {number} ({named}), which cannot be read; take a file whose tensors are all of these types: {}",
            read.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_and_none_is_listed_twice() {
        for one in ALL {
            let number = one.block().number;
            assert_eq!(GgmlType::of(number), Ok(one));
            assert!(OTHERS.iter().all(|(other, _)| *other != number));
        }
        let error = GgmlType::of(18).expect_err("not read");
        assert!(
            error.contains("type 18 (IQ3_XXS)") && error.contains("Q4_K"),
            "{error}"
        );
        let error = GgmlType::of(77).expect_err("not read");
        assert!(error.contains("type 77 (unknown)"), "{error}");
    }
}
