//! A kernel prepared for launching: checked once, then shared by any number of launches.

use super::{Device, LaunchError, Loaded};
use butterfly_ir::geometry::{
    Entry, Fitted, cluster_entry, merge_entry, second_entry, spread_entry,
};
use butterfly_ir::kernel::signature::{self, Binding, Operand, Way};
use butterfly_ir::rows::RowExpressions;
use butterfly_ir::{ContractError, Geometry, KernelSpec, Launch, Rows, Sm, Spread, Target};
use std::sync::Arc;

/// A kernel prepared for launching; clones share it.
#[derive(Clone, Debug)]
pub struct Ready {
    image: Arc<Image>,
    /// The same code with its second entry point, if it has one.
    alone: Option<Arc<Image>>,
    /// The same code with its entry points for long rows, if it has them: for parts, and for merging.
    long: Option<[Arc<Image>; 2]>,
    /// The same code with its entry point for a cluster that has a job by itself, if it has one.
    cluster: Option<Arc<Image>>,
    made_for: Arc<MadeFor>,
}

/// What a kernel was compiled for, and its arguments.
#[derive(Debug)]
struct MadeFor {
    spec: KernelSpec,
    geometry: Geometry,
    signature: Vec<Binding>,
    long: Option<Long>,
}

/// What launches for long rows need.
#[derive(Debug)]
struct Long {
    spread: Spread,
    /// By which long rows are told.
    rows: RowExpressions,
    /// The arguments of both entry points, in binding order.
    signatures: [Vec<Binding>; 2],
}

/// One of the launches that a call takes.
pub(super) struct Step<'a> {
    pub(super) image: &'a Arc<Image>,
    /// Its arguments, in binding order.
    pub(super) signature: &'a [Binding],
    pub(super) grid: [u32; 3],
}

impl Step<'_> {
    /// The geometry of `kernel` with the shared memory of this launch.
    pub(super) fn geometry(&self, kernel: &Ready) -> Geometry {
        Geometry {
            shared_bytes: self.image.identity.shared_bytes,
            ..*kernel.geometry()
        }
    }
}

/// A kernel with one of its entry points, as a CubeCL server needs it.
#[derive(Debug)]
pub struct Image {
    pub(super) device: Device,
    pub(super) identity: Identity,
    pub(super) threads: [u32; 3],
    pub(super) code: Arc<Code>,
}

impl Image {
    /// A kernel beside attention for an NVIDIA device: a cubin, PTX, or CUDA C++, which CubeCL compiles at the
    /// first launch.
    ///
    /// # Errors
    /// [`LaunchError::Unfit`] if `fits` is an error, [`LaunchError::Image`] if `image` is none of these.
    pub(super) fn beside_attention(
        fits: Result<(), ContractError>,
        entry: &str,
        [threads, shared_bytes]: [u32; 2],
        image: &[u8],
    ) -> Result<Self, LaunchError> {
        fits.map_err(|reason| LaunchError::Unfit {
            key: entry.into(),
            reason,
        })?;
        let code = Code::of_cuda(image).ok_or_else(|| LaunchError::Image {
            key: entry.into(),
            expected: "a cubin",
        })?;
        Ok(Self {
            device: Device::Cuda,
            identity: Identity {
                key: entry.into(),
                entry: entry.into(),
                digest: *blake3::hash(image).as_bytes(),
                shared_bytes,
            },
            threads: [threads, 1, 1],
            code: Arc::new(code),
        })
    }
}

/// Identifies a kernel in caches, so that different images are never mixed up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) key: String,
    pub(super) entry: String,
    pub(super) digest: [u8; 32],
    pub(super) shared_bytes: u32,
}

/// The code of a kernel, in the form that a CubeCL server takes.
#[derive(Debug)]
pub(super) enum Code {
    /// Machine code of an NVIDIA device, or PTX, which its driver compiles.
    Module(Vec<u8>),
    /// CUDA C++, which CubeCL compiles with NVRTC at the first launch.
    Cuda(String),
    Wgsl(String),
    SpirV {
        words: Vec<u32>,
        bindings: usize,
    },
}

impl Code {
    /// Tells the kinds of image apart: a cubin starts with the magic number of ELF, PTX has a
    /// `.version` directive, and any other text is CUDA C++. `None` for other bytes.
    pub(super) fn of_cuda(image: &[u8]) -> Option<Self> {
        if image.starts_with(b"\x7fELF") {
            return Some(Self::Module(image.to_vec()));
        }
        let text = std::str::from_utf8(image).ok()?;
        Some(
            match text.lines().any(|line| line.starts_with(".version ")) {
                true => Self::Module(image.to_vec()),
                false => Self::Cuda(text.to_string()),
            },
        )
    }
}

const SPIRV_MAGIC: u32 = 0x0723_0203;

impl Ready {
    /// Checks a kernel, and prepares it for launches on `device`.
    ///
    /// # Errors
    /// [`LaunchError::Unfit`] if its specification or geometry is invalid, [`LaunchError::Image`]
    /// if its image is not a kernel for `device`.
    pub fn new(device: Device, kernel: &Loaded<'_>) -> Result<Self, LaunchError> {
        let image = |expected| LaunchError::Image {
            key: kernel.key.into(),
            expected,
        };
        let target = target(device, &kernel.geometry);
        let fits = kernel.spec.check(target);
        let fits = fits.and_then(|()| kernel.geometry.check(kernel.spec, target));
        fits.map_err(|reason| LaunchError::Unfit {
            key: kernel.key.into(),
            reason,
        })?;
        let signature = signature::of(kernel.spec, &kernel.geometry);
        let text = |expected| match std::str::from_utf8(kernel.image) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => Err(image(expected)),
        };
        let code = match device {
            Device::Cuda => Code::of_cuda(kernel.image).ok_or_else(|| image("a cubin"))?,
            Device::Webgpu => Code::Wgsl(text("WGSL text")?),
            Device::Vulkan => {
                let words = kernel.image.chunks_exact(4);
                let whole = words.remainder().is_empty();
                let words: Vec<u32> = words
                    .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect();
                if !whole || words.len() < 5 || words[0] != SPIRV_MAGIC {
                    return Err(image("a SPIR-V module"));
                }
                Code::SpirV {
                    words,
                    bindings: signature.len(),
                }
            }
        };
        let digest = *blake3::hash(kernel.image).as_bytes();
        let code = Arc::new(code);
        let image = |entry: String, shared_bytes: u32| {
            Arc::new(Image {
                device,
                identity: Identity {
                    key: kernel.key.into(),
                    entry,
                    digest,
                    shared_bytes,
                },
                threads: kernel.geometry.threads,
                code: code.clone(),
            })
        };
        let (entry, shared_bytes) = (kernel.entry, kernel.geometry.shared_bytes);
        let (second, spread) = match kernel.geometry.launch {
            Launch::Split(split) => (Some(second_entry(entry)), split.spread),
            Launch::Grid | Launch::Resident(_) => (None, None),
        };
        let long = spread.and_then(|spread| Long::of(kernel, spread));
        Ok(Self {
            alone: second.map(|entry| image(entry, shared_bytes)),
            long: long.as_ref().map(|long| {
                let parts = image(spread_entry(entry), long.spread.shared_bytes);
                [parts, image(merge_entry(entry), 0)]
            }),
            cluster: spread
                .filter(|spread| spread.within > 0)
                .map(|spread| image(cluster_entry(entry), spread.shared_bytes)),
            image: image(entry.into(), shared_bytes),
            made_for: Arc::new(MadeFor {
                spec: kernel.spec.clone(),
                geometry: kernel.geometry,
                signature,
                long,
            }),
        })
    }

    /// The device that it was prepared for.
    pub fn device(&self) -> Device {
        self.image.device
    }

    /// Its content key.
    pub fn key(&self) -> &str {
        &self.image.identity.key
    }

    /// The specification that it was compiled for.
    pub fn spec(&self) -> &KernelSpec {
        &self.made_for.spec
    }

    /// Its tile sizes, and how it is launched.
    pub fn geometry(&self) -> &Geometry {
        &self.made_for.geometry
    }

    /// Its arguments, in binding order.
    pub(super) fn signature(&self) -> &[Binding] {
        &self.made_for.signature
    }

    /// Those of its arguments that are buffers, in binding order.
    pub(super) fn buffers(&self) -> impl Iterator<Item = Operand> {
        let bindings = self.signature().iter();
        let buffers = bindings.filter(|b| matches!(b.way, Way::Mapped | Way::Buffer));
        buffers.map(|binding| binding.operand)
    }

    pub(super) fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// How long rows are spread, and by what they are told; `None` if they never are.
    pub(super) fn spread(&self) -> Option<(Spread, &RowExpressions)> {
        let long = self.made_for.long.as_ref()?;
        Some((long.spread, &long.rows))
    }

    /// The launches of a call, one after the other; `grid` is that of [`Geometry::grid`], of which
    /// `fitted` was made.
    pub(super) fn steps(&self, fitted: Fitted, grid: [u32; 3]) -> Vec<Step<'_>> {
        let step = |image, signature, grid| Step {
            image,
            signature,
            grid,
        };
        let long = self.long.as_ref().zip(self.made_for.long.as_ref());
        match (fitted.entry, long) {
            (Entry::Spread(_), Some(([parts, merge], long))) => {
                let [of_parts, of_merge] = &long.signatures;
                let merged = Spread::merge_grid(self.spec(), grid);
                vec![
                    step(parts, of_parts, fitted.grid),
                    step(merge, of_merge, merged),
                ]
            }
            (Entry::Alone, _) => {
                let image = self.alone.as_ref().unwrap_or(&self.image);
                vec![step(image, self.signature(), fitted.grid)]
            }
            (Entry::Cluster, _) => {
                let image = self.cluster.as_ref().unwrap_or(&self.image);
                vec![step(image, self.signature(), fitted.grid)]
            }
            (Entry::First | Entry::Spread(_), _) => {
                vec![step(&self.image, self.signature(), fitted.grid)]
            }
        }
    }

    /// The images of all entry points.
    pub(super) fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        let long = self.long.iter().flatten();
        let others = self.alone.iter().chain(&self.cluster);
        std::iter::once(&self.image).chain(others).chain(long)
    }
}

impl Long {
    fn of(kernel: &Loaded<'_>, spread: Spread) -> Option<Self> {
        let Rows::ClosedForm(program) = &kernel.spec.rows else {
            return None;
        };
        Some(Self {
            spread,
            rows: program.lower(kernel.spec.block),
            signatures: [
                signature::spread(kernel.spec, &kernel.geometry),
                signature::merge(kernel.spec),
            ],
        })
    }
}

/// The target whose rules apply to a geometry on `device`: on CUDA, those of sm_90a if the kernel
/// copies by tensor maps, else those of sm_90.
fn target(device: Device, geometry: &Geometry) -> Target {
    match device {
        Device::Vulkan => Target::Vulkan,
        Device::Webgpu => Target::Webgpu,
        Device::Cuda => Target::Cuda(Sm {
            version: 90,
            arch_specific: geometry.boxes.is_some(),
        }),
    }
}
