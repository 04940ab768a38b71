//! The graphics cards for which times are predicted, with constants measured by `bench/attention`.
//!
//! In:  a card and a kernel. Out: a [`Machine`], the rates that this kind of kernel reaches on the
//! card. Memory bandwidth was measured for each card; the other rates were measured for each kind
//! of kernel and hold for all cards of an architecture. [`Roof`] is the most that a card can do; the kernels of a model
//! around attention have the rates of `rates.rs`.

mod rates;

pub use rates::Roof;
pub(crate) use rates::{GAP_SECONDS, rates};

use crate::cost::{Machine, Pace};
use butterfly_ir::{Dtype, Geometry, KernelSpec, Launch, Role, Sm, Target};
use std::fmt;
use std::str::FromStr;

/// A card that was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Card {
    /// NVIDIA H100, with HBM3.
    #[default]
    H100,
    /// NVIDIA H200.
    H200,
}

impl Card {
    /// Every card.
    pub const ALL: [Self; 2] = [Self::H100, Self::H200];

    /// The card with this name in the NVIDIA driver. Only exact names count: other cards of the
    /// same family have other clocks and memories.
    pub fn of_device(name: &str) -> Option<Self> {
        match name {
            "NVIDIA H100 80GB HBM3" => Some(Self::H100),
            "NVIDIA H200" => Some(Self::H200),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::H100 => "H100",
            Self::H200 => "H200",
        }
    }

    /// The rates that a kernel of this kind reaches on the card, at the clocks of sustained work;
    /// `None` where this kind of kernel was not measured.
    pub fn machine(
        self,
        spec: &KernelSpec,
        target: Target,
        geometry: &Geometry,
    ) -> Option<Machine> {
        let Target::Cuda(Sm { version: 90, .. }) = target else {
            return None;
        };
        if spec.dtype == Dtype::F32 {
            return None;
        }
        let kind = match (spec.role, geometry.launch) {
            (Role::Prefill, Launch::Resident(_)) if spec.is_wide() => LATENT,
            (Role::Prefill, Launch::Resident(_)) => PREFILL,
            (Role::Prefill, Launch::Grid | Launch::Split(_)) => PORTABLE_PREFILL,
            (Role::Decode, Launch::Split(_)) => DECODE,
            (Role::Decode, Launch::Grid | Launch::Resident(_)) => PORTABLE_DECODE,
        };
        Some(Machine {
            name: format!("NVIDIA {}", self.name()),
            flop_per_second: kind.flop_per_second,
            bytes_per_second: self.bytes_per_second() * kind.of_copy,
            launch_seconds: kind.launch_seconds,
            kernel: Some(Pace {
                pairs_per_second: kind.pairs_per_second,
                row_bytes_per_second: kind.row_bytes_per_second,
                processors: 132,
            }),
        })
    }

    /// Bytes per second of a large copy, reads plus writes.
    fn bytes_per_second(self) -> f64 {
        match self {
            Self::H100 => 3.02e12,
            Self::H200 => 4.26e12,
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().to_lowercase())
    }
}

impl FromStr for Card {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = |card: &Self| card.to_string() == text;
        Self::ALL.into_iter().find(known).ok_or_else(|| {
            let all = Self::ALL.map(|card| card.to_string()).join(", ");
            format!(
                "the cards that were measured are {all}; for others give --tflops and --bandwidth"
            )
        })
    }
}

/// The rates of a kind of kernel; the same for all of these cards, which have the same SMs.
struct Kind {
    flop_per_second: f64,
    /// The memory bandwidth that the kernel reaches, as a share of that of a large copy.
    of_copy: f64,
    launch_seconds: f64,
    pairs_per_second: f64,
    row_bytes_per_second: f64,
}

const PREFILL: Kind = Kind {
    flop_per_second: 915e12,
    of_copy: 1.0,
    launch_seconds: 5e-6,
    pairs_per_second: 11.8e12,
    row_bytes_per_second: 7.2e12,
};

/// Prefill with wide heads (MLA), where two warpgroups share a unit of rows; bound by shared
/// memory and by L2.
const LATENT: Kind = Kind {
    flop_per_second: 370e12,
    of_copy: 1.0,
    launch_seconds: 5e-6,
    pairs_per_second: f64::INFINITY,
    row_bytes_per_second: f64::INFINITY,
};

const PORTABLE_PREFILL: Kind = Kind {
    flop_per_second: 228e12,
    of_copy: 1.0,
    launch_seconds: 5e-6,
    pairs_per_second: 4.3e12,
    row_bytes_per_second: 6.2e12,
};

/// Bound by memory reads. It exceeds the bandwidth of a copy, which also writes and is slower
/// for that.
const DECODE: Kind = Kind {
    flop_per_second: 895e12,
    of_copy: 1.12,
    launch_seconds: 3.9e-6,
    pairs_per_second: 5.8e12,
    row_bytes_per_second: 6.7e12,
};

/// Multiplies without matrix units.
const PORTABLE_DECODE: Kind = Kind {
    flop_per_second: 9.2e12,
    of_copy: 1.0,
    launch_seconds: 8e-6,
    pairs_per_second: 5.4e12,
    row_bytes_per_second: 6.2e12,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_known_by_their_drivers_names_and_by_flags() {
        for (name, card) in [
            ("NVIDIA H100 80GB HBM3", Some(Card::H100)),
            ("NVIDIA H200", Some(Card::H200)),
            ("NVIDIA A100-SXM4-80GB", None),
            ("NVIDIA H100 PCIe", None),
            ("NVIDIA GH200 480GB", None),
        ] {
            assert_eq!(Card::of_device(name), card, "{name}");
        }
        for card in Card::ALL {
            assert_eq!(card.to_string().parse(), Ok(card));
        }
        assert!("a100".parse::<Card>().unwrap_err().contains("h100, h200"));
    }
}
