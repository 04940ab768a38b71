//! NVIDIA's architectures: the features by which kernels are chosen, and which code runs where.

use super::Sm;

/// The features of an architecture, and of all later ones up to the next row of
/// [`ARCHITECTURES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Compute capability times ten: 80 for 8.0.
    pub version: u32,
    /// Most shared memory that a workgroup can ask for, in bytes.
    pub shared_bytes: u32,
    /// Whether it has `mma.sync` for 16-bit floats with shape 16x8x16.
    pub matrix_units: bool,
    /// Whether it has architecture-specific instructions, such as those of `sm_90a`.
    pub has_own: bool,
}

/// All rows, sorted by version. Source: CUDA C++ Programming Guide, "Technical Specifications per
/// Compute Capability".
pub const ARCHITECTURES: &[Architecture] = &[
    row(75, 64, false, false), // Turing
    row(80, 163, true, false), // Ampere, A100
    row(86, 99, true, false),  // Ampere
    row(87, 163, true, false), // Orin
    row(89, 99, true, false),  // Ada
    row(90, 227, true, true),  // Hopper
    row(100, 227, true, true), // Blackwell, B200
    row(120, 99, true, true),  // Blackwell
];

const fn row(version: u32, kibibytes: u32, matrix_units: bool, has_own: bool) -> Architecture {
    Architecture {
        version,
        shared_bytes: kibibytes << 10,
        matrix_units,
        has_own,
    }
}

impl Sm {
    /// Its row of [`ARCHITECTURES`]: the last one that is no later, or the first row.
    pub fn architecture(self) -> &'static Architecture {
        let rows = ARCHITECTURES.iter().rev();
        let mut at_most = rows.filter(|row| row.version <= self.version);
        at_most.next().unwrap_or(&ARCHITECTURES[0])
    }

    /// Whether a device of this capability runs machine code (a cubin) made for `made`.
    ///
    /// The major version must be the same and the minor one no later; code with the suffix `a`
    /// runs only on exactly its own version.
    pub fn executes(self, made: Self) -> bool {
        match made.arch_specific {
            true => made.version == self.version,
            false => made.version / 10 == self.version / 10 && made.version <= self.version,
        }
    }

    /// Whether the driver of a device of this capability compiles PTX made for `made`: that of no
    /// later version, and without the suffix `a`.
    pub fn compiles(self, made: Self) -> bool {
        !made.arch_specific && made.version <= self.version
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;

    fn sm(text: &str) -> Sm {
        match format!("cuda:{text}").parse() {
            Ok(Target::Cuda(sm)) => sm,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn machine_code_runs_on_its_generation_and_ptx_on_all_later_ones() {
        for (own, made, executes, compiles) in [
            ("sm_90a", "sm_90a", true, false),
            ("sm_90a", "sm_90", true, true),
            ("sm_90a", "sm_80", false, true),
            ("sm_86", "sm_80", true, true),
            ("sm_80", "sm_86", false, false),
            ("sm_100a", "sm_90a", false, false),
            ("sm_100a", "sm_89", false, true),
        ] {
            let (own, made) = (sm(own), sm(made));
            let found = (own.executes(made), own.compiles(made));
            assert_eq!(found, (executes, compiles), "{made} on {own}");
        }
    }

    #[test]
    fn rows_hold_up_to_the_next() {
        for (own, version) in [
            ("sm_75", 75),
            ("sm_88", 87),
            ("sm_90a", 90),
            ("sm_110a", 100),
            ("sm_121", 120),
        ] {
            assert_eq!(sm(own).architecture().version, version);
        }
    }
}
