//! Heads of the state → the workgroup of the kernel for a single token.

use super::walk::{LANES, Shape};
use ::cubecl::ir::HardwareProperties;

/// Units of a workgroup, unless heads have more elements.
const UNITS: u32 = 512;
/// Most elements of the state that a unit holds in registers.
const HELD: u32 = 128;
/// Most elements of the state that a workgroup holds: half of the registers of an NVIDIA multiprocessor.
const STATE: u32 = 32_768;

/// Buffers of the kernel: its tensors, and the one with its parameters.
const BUFFERS: u32 = 11;

/// The compile-time parameters of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    pub(super) shape: Shape,
    /// Columns of the state in a vector.
    pub(super) lanes: u32,
    /// Teams that share the rows of the state, a power of two.
    pub(super) teams: u32,
    /// Units of a workgroup. Those beyond the teams take part in the convolution alone.
    pub(super) units: u32,
}

impl Layout {
    /// The layout with the most teams that a device takes; `None` for heads that are too large for the kernel, and
    /// for devices that bind too few buffers.
    pub(super) fn of(shape: Shape, hardware: &HardwareProperties) -> Option<Self> {
        let lanes = match shape.v_dim.is_multiple_of(LANES) {
            true => LANES,
            false => 1,
        };
        let of_teams = |teams: u32| {
            let units = (teams * (shape.v_dim / lanes)).max(shape.k_dim.max(shape.v_dim));
            Self {
                shape,
                lanes,
                teams,
                // Planes sum over all of their units.
                units: units.next_multiple_of(shape.plane.max(1)),
            }
        };
        let device = hardware.max_cube_dim.0.min(hardware.max_units_per_cube);
        let most = UNITS.max(of_teams(1).units).min(device);
        let fits = |layout: &Self| {
            layout.units <= most
                && layout.held() <= HELD
                && layout.shared_bytes() <= hardware.max_shared_memory_size
        };
        let small = shape.k_dim.saturating_mul(shape.v_dim) <= STATE;
        let bound = hardware.max_bindings >= BUFFERS;
        let bits = 0..=of_teams(1).classes().ilog2();
        let mut layouts = bits.rev().map(|bits| of_teams(1 << bits));
        layouts.find(fits).filter(|_| small && bound)
    }

    /// Elements of the longer of the heads of k and v: so many units compute a head's convolution.
    pub(super) fn head(&self) -> u32 {
        self.shape.k_dim.max(self.shape.v_dim)
    }

    /// Heads whose convolutions are computed at once.
    pub(super) fn heads(&self) -> u32 {
        self.units / self.head()
    }

    /// Vectors in a row of the state.
    pub(super) fn vectors(&self) -> u32 {
        self.shape.v_dim / self.lanes
    }

    /// Classes of rows, a power of two.
    pub(super) fn classes(&self) -> u32 {
        LANES * self.shape.parts
    }

    /// Classes that a unit owns.
    pub(super) fn own(&self) -> u32 {
        self.classes() / self.teams
    }

    /// Rows of a class.
    pub(super) fn steps(&self) -> u32 {
        self.shape.k_dim / self.classes()
    }

    /// Elements of the state that a unit holds.
    fn held(&self) -> u32 {
        self.own() * self.steps() * self.lanes
    }

    /// Bytes of shared memory of a workgroup.
    fn shared_bytes(&self) -> usize {
        let (head, v_dim) = (self.head() as usize, self.shape.v_dim as usize);
        let (units, teams) = (self.units as usize, self.teams as usize);
        4 * (3 * head + (units + head) + teams * (2 * v_dim + 1) + 2 * v_dim)
    }
}

#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use super::*;
    use burn_wgpu::{WgpuDevice, WgpuRuntime};
    use cubecl::Runtime;

    /// The teams and units for heads of `k_dim` and `v_dim` elements, on a device with planes of `plane` units.
    fn layout(
        [k_dim, v_dim]: [u32; 2],
        plane: u32,
        units: u32,
        shared: usize,
    ) -> Option<(u32, u32)> {
        let mut hardware = WgpuRuntime::client(&WgpuDevice::Cpu)
            .properties()
            .hardware
            .clone();
        hardware.max_cube_dim = (units, units, 64);
        hardware.max_units_per_cube = units;
        hardware.max_shared_memory_size = shared;
        hardware.max_bindings = BUFFERS;
        let together = plane >= 8 && k_dim.is_multiple_of(32);
        let shape = Shape {
            k_heads: 1,
            v_heads: 1,
            k_dim,
            v_dim,
            taps: 4,
            tiled: false,
            parts: if together { 8 } else { 1 },
            each: if together { 2 } else { 1 },
            columns: 32,
            plane,
        };
        let layout = Layout::of(shape, &hardware)?;
        assert!(layout.units <= units && layout.shared_bytes() <= shared);
        assert!(layout.units >= layout.teams * layout.vectors());
        assert_eq!(
            layout.held() * layout.teams * layout.vectors(),
            k_dim * v_dim
        );
        Some((layout.teams, layout.units))
    }

    #[test]
    fn layouts_fit_their_device() {
        assert_eq!(layout([128, 128], 32, 1024, 48 << 10), Some((16, 512)));
        assert_eq!(layout([128, 256], 32, 1024, 48 << 10), Some((8, 512)));
        assert_eq!(layout([128, 128], 32, 256, 32 << 10), Some((8, 256)));
        assert_eq!(layout([128, 128], 0, 1024, 32 << 10), Some((4, 128)));
        assert_eq!(layout([128, 128], 32, 1024, 16 << 10), Some((8, 256)));
        assert_eq!(layout([8, 12], 32, 1024, 48 << 10), Some((4, 32)));
        assert_eq!(layout([20, 7], 0, 1024, 48 << 10), Some((4, 28)));
        assert_eq!(layout([32, 8], 32, 1024, 48 << 10), Some((32, 64)));
    }

    #[test]
    fn large_heads_take_the_other_kernels() {
        assert_eq!(layout([256, 256], 32, 1024, 48 << 10), None);
        assert_eq!(layout([256, 128], 0, 1024, 48 << 10), None);
        assert_eq!(layout([128, 128], 32, 64, 48 << 10), None);
        assert_eq!(layout([128, 128], 32, 1024, 4 << 10), None);
    }
}
