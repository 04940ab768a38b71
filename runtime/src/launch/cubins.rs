//! Puts cubins into CubeCL's cache on disk, the only place from which its CUDA runtime takes
//! compiled code.
//!
//! A server reads the cache once, when it is created. CubeCL's own cache keys contain neither the
//! source nor the architecture, so the keys of our entries contain the digest of the cubin.
//! Launching a cubin that is not in the cache is an error; CUDA C++ is compiled by CubeCL with
//! NVRTC.
//!
//! The folder that a new server reads is part of CubeCL's configuration, which is global to the
//! process. [`seed`] changes it permanently, [`with_cache`] only while it creates a server of ours;
//! both hold the lock [`TURN`] meanwhile. CubeCL does not take this lock: a process that launches
//! from host memory and also creates other CUDA servers must not do both at the same time.

use super::bind::Map;
use super::ready::{Code, Image};
use super::shared::Launches;
use super::{
    Device, LaunchError, Ready, ReadyDeltaRule, ReadyGrouped, ReadyProduct, ReadyScorer, driver,
    run, tensor_maps,
};
use butterfly_ir::Geometry;
use butterfly_ir::geometry::Fitted;
use cubecl_common::backtrace::BackTrace;
use cubecl_common::cache::CacheOption;
use cubecl_common::compilation_cache::CompilationCache;
use cubecl_common::hash::StableHash;
use cubecl_core::Compiler;
use cubecl_core::ir::{AddressType, DeviceProperties, StorageType};
use cubecl_cpp::shared::{Body, ComputeKernel, Elem, Flags, Item, SharedMemory};
use cubecl_cuda::{CudaCompiler, CudaComputeKernel, CudaRuntime};
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::compiler::{CompilationError, CubeTask};
use cubecl_runtime::config::cache::CacheConfig;
use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};
use cubecl_runtime::id::KernelId;
use cubecl_runtime::kernel::{CompiledKernel, KernelMetadata};
use cubecl_runtime::server::{CubeDim, ExecutionMode, Handle, TensorMapBinding};
use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Version of CubeCL that the entries are made for.
const CUBECL: &str = "0.10.0";

/// Puts the cubins of kernels, products, scorers, delta rules and products with experts where CubeCL's CUDA runtime finds them.
///
/// Only servers that are created later in this process find them: call this before the device is
/// first used. Other kernels that such a server compiles are kept in the same folder, for the next
/// start of the program. Threads may call this concurrently, each with its own kernels; all of
/// these are found afterwards.
///
/// # Errors
/// [`LaunchError::Missing`] without an NVIDIA driver, or if the folder cannot be written.
pub fn seed(
    kernels: &[Ready],
    products: &[ReadyProduct],
    scorers: &[ReadyScorer],
    rules: &[ReadyDeltaRule],
    grouped: &[ReadyGrouped],
) -> Result<(), LaunchError> {
    let device = Device::Cuda;
    let missing = |reason| LaunchError::Missing { device, reason };
    let folder = seed_folder()?;
    std::fs::create_dir_all(&folder).map_err(|error| {
        missing(format!(
            "cannot create {}: {error}; set BUTTERFLY_CACHE to a folder that can be written",
            folder.display()
        ))
    })?;
    let images = kernels.iter().flat_map(Ready::images);
    let images = images.chain(products.iter().map(ReadyProduct::image));
    let images = images.chain(scorers.iter().map(ReadyScorer::image));
    let images = images.chain(rules.iter().flat_map(ReadyDeltaRule::images));
    let images = images.chain(grouped.iter().flat_map(ReadyGrouped::images));
    seed_at(&folder, images).map_err(missing)
}

/// [`seed`] into `folder`.
fn seed_at<'a>(folder: &Path, images: impl Iterator<Item = &'a Arc<Image>>) -> Result<(), String> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    store(folder, images)?;
    configure(folder);
    Ok(())
}

/// The folder in which [`seed`] keeps compiled kernels, below `$BUTTERFLY_CACHE` or the user's
/// cache folder.
///
/// Its name contains the version of CubeCL, the architecture of the device, and a digest of the
/// program's size and time of change, since CubeCL's cache keys contain none of these.
///
/// # Errors
/// [`LaunchError::Missing`] without an NVIDIA driver.
pub fn seed_folder() -> Result<PathBuf, LaunchError> {
    let device = Device::Cuda;
    let found = driver::probe().map_err(|reason| LaunchError::Missing { device, reason })?;
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let root = set("BUTTERFLY_CACHE").map(PathBuf::from);
    let root = root
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("butterfly")))
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache/butterfly")))
        .unwrap_or_else(|| std::env::temp_dir().join("butterfly"));
    let program = std::env::current_exe().and_then(std::fs::metadata);
    let program = program.map(|meta| {
        let changed = meta.modified().ok();
        let since = changed.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        (meta.len(), since.map(|since| since.as_nanos()))
    });
    let digest = blake3::hash(format!("{:?}", program.ok()).as_bytes());
    let sm = found.sm.map(|sm| sm.to_string()).unwrap_or_default();
    Ok(root.join(format!("cubecl-{CUBECL}-{sm}-{}", &digest.to_hex()[..12])))
}

/// Has the same fields as the entries of CubeCL's cache.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct CacheEntry {
    entrypoint_name: String,
    shared_mem_bytes: usize,
    ptx: Vec<c_char>,
}

/// Writes the cubins among `images` into the cache below `folder`.
pub(super) fn store<'a>(
    folder: &Path,
    images: impl Iterator<Item = &'a Arc<Image>>,
) -> Result<(), String> {
    // The cache panics if it cannot be written.
    run::caught(|| write_cache(folder, images))
}

fn write_cache<'a>(
    folder: &Path,
    images: impl Iterator<Item = &'a Arc<Image>>,
) -> Result<(), String> {
    let options = CacheOption::default().name("cuda").root(folder);
    let mut cache = CompilationCache::<StableHash, CacheEntry>::new("ptx", options);
    for image in images {
        let Code::Module(module) = &*image.code else {
            continue;
        };
        let bytes = module.iter().chain(&[0]);
        let entry = CacheEntry {
            entrypoint_name: image.identity.entry.clone(),
            shared_mem_bytes: image.identity.shared_bytes as usize,
            ptx: bytes.map(|byte| *byte as c_char).collect(),
        };
        for mode in [
            ExecutionMode::Checked,
            ExecutionMode::Validate,
            ExecutionMode::Unchecked,
        ] {
            let mut id = Task(image.clone()).id();
            id.mode(mode);
            cache
                .insert(id.stable_hash(), entry.clone())
                .map_err(|error| format!("{error:?}"))?;
        }
    }
    Ok(())
}

/// Held while CubeCL's configuration is changed, and until a temporary change is undone.
static TURN: Mutex<()> = Mutex::new(());

/// Makes servers that are created from now on read their cache from `folder`; returns the
/// configuration before. The caller holds [`TURN`].
fn configure(folder: &Path) -> Arc<CubeClRuntimeConfig> {
    let before = CubeClRuntimeConfig::get();
    let mut config = (*before).clone();
    config.compilation.cache = Some(CacheConfig::File(folder.into()));
    *CubeClRuntimeConfig::storage().lock() = Some(Arc::new(config));
    before
}

/// Calls `make`, and lets servers that are created meanwhile read their cache from `folder`.
/// Afterwards the configuration is as before.
pub(super) fn with_cache<T>(folder: &Path, make: impl FnOnce() -> T) -> T {
    /// Restores the configuration on drop, so also if `make` panics.
    struct Restore(Arc<CubeClRuntimeConfig>);
    impl Drop for Restore {
        fn drop(&mut self) {
            *CubeClRuntimeConfig::storage().lock() = Some(self.0.clone());
        }
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let _restore = Restore(configure(folder));
    make()
}

impl Launches for CudaRuntime {
    fn device(_: &ComputeClient<Self>) -> Device {
        Device::Cuda
    }

    fn task(image: &Arc<Image>) -> Box<dyn CubeTask<CudaCompiler>> {
        Box::new(Task(image.clone()))
    }

    fn tensor_maps(maps: &[Map], inputs: &[Handle]) -> Vec<TensorMapBinding> {
        tensor_maps::bind(maps, inputs)
    }

    fn fitted(
        geometry: &Geometry,
        grid: [u32; 3],
        keys: u32,
        properties: &DeviceProperties,
    ) -> Fitted {
        let processors = properties.hardware.num_streaming_multiprocessors;
        geometry.fitted(grid, processors.unwrap_or(1), keys)
    }
}

/// A finished kernel, as CubeCL's CUDA runtime takes it.
#[derive(Clone, Debug)]
pub(super) struct Task(Arc<Image>);

impl PartialEq for Task {
    fn eq(&self, other: &Self) -> bool {
        self.0.identity == other.0.identity
    }
}

impl Task {
    pub(super) fn new(kernel: &Ready) -> Self {
        Self(kernel.image().clone())
    }

    fn threads(&self) -> CubeDim {
        let [x, y, z] = self.0.threads;
        CubeDim::new_3d(x, y, z)
    }
}

impl KernelMetadata for Task {
    fn name(&self) -> &'static str {
        "butterfly"
    }

    fn id(&self) -> KernelId {
        KernelId::new::<Self>()
            .cube_dim(self.threads())
            .info(self.0.identity.clone())
    }

    fn address_type(&self) -> StorageType {
        AddressType::U32.unsigned_type()
    }
}

impl CubeTask<CudaCompiler> for Task {
    fn compile(
        &self,
        _: &mut CudaCompiler,
        _: &<CudaCompiler as Compiler>::CompilationOptions,
        _: ExecutionMode,
        _: StorageType,
    ) -> Result<CompiledKernel<CudaCompiler>, CompilationError> {
        let Code::Cuda(text) = &*self.0.code else {
            return Err(CompilationError::Generic {
                reason: format!(
                    "the cubin of kernel {} is not in the cache of this device, which was opened before its artifacts: open these first",
                    self.0.identity.key
                ),
                backtrace: BackTrace::capture(),
            });
        };
        let shared_bytes = self.0.identity.shared_bytes as usize;
        Ok(CompiledKernel {
            entrypoint_name: self.0.identity.entry.clone(),
            debug_name: None,
            source: text.clone(),
            repr: Some(representation(shared_bytes, self.threads())),
            cube_dim: self.threads(),
            debug_info: None,
        })
    }
}

/// A kernel representation without code, which only tells CubeCL the size of the shared memory.
fn representation(shared_bytes: usize, cube_dim: CubeDim) -> CudaComputeKernel {
    let word = Item::scalar(Elem::U32, true);
    let memory = SharedMemory::Array {
        index: 0,
        item: Item::scalar(Elem::U8, true),
        length: shared_bytes,
        align: 1024,
        offset: 0,
    };
    ComputeKernel {
        tensor_maps: vec![],
        buffers: vec![],
        scalars: vec![],
        info: Default::default(),
        meta_static_len: 0,
        body: Body {
            instructions: vec![],
            shared_memories: match shared_bytes {
                0 => vec![],
                _ => vec![memory],
            },
            pipelines: vec![],
            barriers: vec![],
            const_arrays: vec![],
            local_arrays: vec![],
            info_by_ptr: false,
            has_dynamic_meta: false,
            address_type: word,
        },
        cube_dim,
        cluster_dim: None,
        extensions: vec![],
        flags: Flags {
            elem_fp4: false,
            elem_fp6: false,
            elem_fp8: false,
            elem_bf16: false,
            elem_f16: false,
            elem_tf32: false,
            indexes: Default::default(),
            op_barrier: false,
            op_pipeline: false,
            inst_tma: false,
            inst_tma_im2col: false,
            inst_wmma: false,
            inst_ptx_wrappers: false,
            inst_async_copy: false,
            use_grid_constants: true,
            static_meta_length: 0,
            has_dynamic_meta: false,
            has_info: false,
            cube_dim,
            cluster_dim: None,
            address_type: word,
        },
        items: Default::default(),
        kernel_name: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Loaded;
    use super::*;
    use butterfly_ir::{Dtype, KernelSpec, Role, Rows};

    fn kernel(key: &str) -> Ready {
        let spec = KernelSpec {
            role: Role::Decode,
            head_dim: 64,
            v_head_dim: 64,
            group: 1,
            dtype: Dtype::Bf16,
            block: 64,
            rows: Rows::Table,
            score: Default::default(),
        };
        let loaded = Loaded {
            key,
            entry: "kernel",
            spec: &spec,
            geometry: Geometry::new([128, 1, 1], [1, 16], 0),
            image: &[b"\x7fELF", key.as_bytes()].concat(),
        };
        Ready::new(Device::Cuda, &loaded).expect("begins as a cubin")
    }

    fn read_from() -> Option<PathBuf> {
        let config = CubeClRuntimeConfig::get();
        config.compilation.cache.as_ref().map(CacheConfig::root)
    }

    /// Some threads seed kernels while others create servers of their own. The latter see their own
    /// folder, and in the end all cubins are where later servers look for them.
    #[test]
    fn many_threads_open_artifacts_at_once() {
        let seeded = tempfile::tempdir().expect("a folder");
        let kernels: Vec<Ready> = (0..24).map(|i| kernel(&format!("kernel-{i}"))).collect();
        std::thread::scope(|scope| {
            for kernel in &kernels {
                let seeded = seeded.path();
                scope.spawn(move || seed_at(seeded, kernel.images()).expect("written"));
                scope.spawn(|| {
                    let own = tempfile::tempdir().expect("a folder");
                    with_cache(own.path(), || {
                        for _ in 0..50 {
                            assert_eq!(read_from().as_deref(), Some(own.path()));
                            std::thread::yield_now();
                        }
                    });
                });
            }
        });
        assert_eq!(read_from().as_deref(), Some(seeded.path()));
        let options = CacheOption::default().name("cuda").root(seeded.path());
        let cache = CompilationCache::<StableHash, CacheEntry>::new("ptx", options);
        for kernel in &kernels {
            let mut id = Task::new(kernel).id();
            id.mode(ExecutionMode::Unchecked);
            let entry = cache.get(&id.stable_hash()).expect("every kernel is there");
            assert_eq!(entry.entrypoint_name, "kernel");
        }

        let failed = std::panic::catch_unwind(|| with_cache(Path::new("elsewhere"), || panic!()));
        assert!(failed.is_err());
        assert_eq!(read_from().as_deref(), Some(seeded.path()));
        // A folder below a file cannot be written.
        let file = tempfile::NamedTempFile::new().expect("a file");
        seed_at(file.path(), kernels[0].images()).expect_err("not written");
        assert_eq!(read_from().as_deref(), Some(seeded.path()));
    }
}
