//! NVIDIA's architectures: what each has that kernels are chosen by, and whose code it runs.

use super::Sm;

/// What an architecture has, and all later ones up to the next row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// 80 for 8.0.
    pub version: u32,
    /// Bytes of shared memory that a workgroup may ask for.
    pub shared_bytes: u32,
    /// Whether 16-bit floats are multiplied by `mma.sync`, 16x8x16.
    pub matrix_units: bool,
    /// Whether it has instructions that no other has (`sm_90a`).
    pub has_own: bool,
}

/// By version. CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
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
    /// What it has.
    pub fn architecture(self) -> &'static Architecture {
        let rows = ARCHITECTURES.iter().rev();
        let mut at_most = rows.filter(|row| row.version <= self.version);
        at_most.next().unwrap_or(&ARCHITECTURES[0])
    }

    /// Whether a device of this capability executes machine code for `made`: of the same major version,
    /// and no later minor one; with the suffix, of exactly this architecture.
    pub fn executes(self, made: Self) -> bool {
        match made.arch_specific {
            true => made.version == self.version,
            false => made.version / 10 == self.version / 10 && made.version <= self.version,
        }
    }

    /// Whether its driver compiles PTX for `made`: of no later architecture, and without the suffix.
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
