//! Launches cubins through the CUDA driver.

use crate::support::{Launch, Map};
use butterfly_ir::geometry::{
    Entry, Fitted, Launch as Shared, cluster_entry, merge_entry, second_entry, spread_entry,
};
use butterfly_ir::{Kernel, Sm, Spread, Target, scalar};
use libloading::{Library, Symbol};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::time::{Duration, Instant};

type Status = c_int;
type Pointer = u64;
type Handle = *mut c_void;

pub(crate) struct Gpu {
    driver: Library,
    /// The device's architecture, for kernels without instructions of that generation only.
    pub(crate) target: Target,
    /// The number of SMs for which launches are sized.
    pub(crate) processors: u32,
}

/// `CUtensorMap`.
#[repr(C, align(64))]
struct TensorMap([u64; 16]);

/// The first CUDA device.
pub(crate) fn device() -> Gpu {
    let search = butterfly_codegen::nvrtc::find();
    assert!(search.nvrtc.is_some(), "no NVRTC in {:?}", search.looked);
    // SAFETY: loading the driver has no preconditions; signatures are those of cuda.h.
    unsafe {
        let driver = Library::new("libcuda.so.1").expect("a CUDA driver");
        let gpu = Gpu {
            driver,
            target: Target::Metal,
            processors: 0,
        };
        let init: Symbol<'_, unsafe extern "C" fn(c_uint) -> Status> = gpu.symbol("cuInit");
        assert_eq!(init(0), 0, "no CUDA device");
        let attribute: Symbol<'_, unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status> =
            gpu.symbol("cuDeviceGetAttribute");
        let (mut major, mut minor, mut processors) = (0, 0, 0);
        ok(attribute(&mut major, 75, 0));
        ok(attribute(&mut minor, 76, 0));
        ok(attribute(&mut processors, 16, 0));
        let retain: Symbol<'_, unsafe extern "C" fn(*mut Handle, c_int) -> Status> =
            gpu.symbol("cuDevicePrimaryCtxRetain");
        let current: Symbol<'_, unsafe extern "C" fn(Handle) -> Status> =
            gpu.symbol("cuCtxSetCurrent");
        let mut context = ptr::null_mut();
        ok(retain(&mut context, 0));
        ok(current(context));
        let version = (10 * major + minor) as u32;
        let target = Target::Cuda(Sm {
            version,
            arch_specific: false,
        });
        Gpu {
            target,
            processors: processors as u32,
            ..gpu
        }
    }
}

impl Gpu {
    /// The target of kernels with instructions of the device's own generation, if there are any.
    pub(crate) fn own_target(&self) -> Option<Target> {
        match self.target {
            Target::Cuda(Sm { version: 90, .. }) => Some(Target::Cuda(Sm {
                version: 90,
                arch_specific: true,
            })),
            _ => None,
        }
    }

    /// The tensor map of a buffer at `pointer`.
    unsafe fn tensor_map(&self, map: &Map, pointer: Pointer) -> TensorMap {
        type Encode = unsafe extern "C" fn(
            *mut TensorMap,
            c_uint,
            c_uint,
            Pointer,
            *const u64,
            *const u64,
            *const u32,
            *const u32,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
        ) -> Status;
        let mut made = TensorMap([0; 16]);
        let reversed = |x: [u32; 4]| [x[3], x[2], x[1], x[0]];
        let sizes = reversed(map.shape).map(u64::from);
        let [batch, head, token] = map.strides.map(|elements| elements * 2);
        // Element type; below: no interleave, swizzle and L2 promotion of 128 bytes, zeros outside.
        let kind = if map.bf16 { 9 } else { 6 };
        // SAFETY: the signature is that of cuda.h.
        unsafe {
            let encode: Symbol<'_, Encode> = self.symbol("cuTensorMapEncodeTiled");
            ok(encode(
                &mut made,
                kind,
                4,
                pointer,
                sizes.as_ptr(),
                [token, head, batch].as_ptr(),
                reversed(map.tile).as_ptr(),
                [1; 4].as_ptr(),
                0,
                3,
                2,
                0,
            ));
        }
        made
    }

    unsafe fn symbol<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: passed on to the callers.
        unsafe { self.driver.get(name.as_bytes()) }.expect(name)
    }

    /// Launches a kernel once, and returns the bytes of o and lse.
    pub(crate) fn launch(&self, kernel: &Kernel, launch: &Launch) -> (Vec<u8>, Vec<u8>) {
        let (o, lse, _) = self.launch_often(kernel, launch, 1);
        (o, lse)
    }

    /// Launches a kernel repeatedly, and returns the bytes of o and lse and the mean time of `runs`
    /// launches after the first.
    #[allow(clippy::type_complexity)]
    pub(crate) fn launch_often(
        &self,
        kernel: &Kernel,
        launch: &Launch,
        runs: u32,
    ) -> (Vec<u8>, Vec<u8>, Duration) {
        let (_, cubin) = kernel.files.last().expect("files");
        let geometry = &kernel.geometry;
        let Fitted { grid, entry } = geometry.fitted(launch.grid, self.processors, launch.keys);
        // Name, grid and shared memory of each launch.
        let mut steps = vec![match entry {
            Entry::First => (kernel.entry.clone(), grid, geometry.shared_bytes),
            Entry::Alone => (second_entry(&kernel.entry), grid, geometry.shared_bytes),
            Entry::Spread(_) | Entry::Cluster => {
                let Shared::Split(split) = geometry.launch else {
                    panic!("only decode is spread");
                };
                let shared = split.spread.map_or(0, |spread| spread.shared_bytes);
                let name = match entry {
                    Entry::Cluster => cluster_entry(&kernel.entry),
                    _ => spread_entry(&kernel.entry),
                };
                (name, grid, shared)
            }
        }];
        let mut by_value = launch.by_value.clone();
        let mut partial_bytes = None;
        if let Entry::Spread(parts) = entry {
            let merged = Spread::merge_grid(&kernel.spec, launch.grid);
            steps.push((merge_entry(&kernel.entry), merged, 0));
            let bytes = Spread::partial_bytes(&kernel.spec, launch.grid, parts);
            partial_bytes = Some(bytes as usize);
            if let Some(words) = &mut by_value {
                words[scalar::PARTS] = parts;
            }
        }
        // SAFETY: signatures are those of cuda.h; every pointer outlives its call.
        unsafe {
            let load: Symbol<'_, unsafe extern "C" fn(*mut Handle, *const c_void) -> Status> =
                self.symbol("cuModuleLoadData");
            let unload: Symbol<'_, unsafe extern "C" fn(Handle) -> Status> =
                self.symbol("cuModuleUnload");
            let get: Symbol<
                '_,
                unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> Status,
            > = self.symbol("cuModuleGetFunction");
            let set: Symbol<'_, unsafe extern "C" fn(Handle, c_int, c_int) -> Status> =
                self.symbol("cuFuncSetAttribute");
            let allocate: Symbol<'_, unsafe extern "C" fn(*mut Pointer, usize) -> Status> =
                self.symbol("cuMemAlloc_v2");
            let free: Symbol<'_, unsafe extern "C" fn(Pointer) -> Status> =
                self.symbol("cuMemFree_v2");
            let upload: Symbol<'_, unsafe extern "C" fn(Pointer, *const c_void, usize) -> Status> =
                self.symbol("cuMemcpyHtoD_v2");
            let download: Symbol<'_, unsafe extern "C" fn(*mut c_void, Pointer, usize) -> Status> =
                self.symbol("cuMemcpyDtoH_v2");
            let start: Symbol<
                '_,
                unsafe extern "C" fn(
                    Handle,
                    c_uint,
                    c_uint,
                    c_uint,
                    c_uint,
                    c_uint,
                    c_uint,
                    c_uint,
                    Handle,
                    *mut *mut c_void,
                    *mut *mut c_void,
                ) -> Status,
            > = self.symbol("cuLaunchKernel");
            let finish: Symbol<'_, unsafe extern "C" fn() -> Status> =
                self.symbol("cuCtxSynchronize");

            let mut module = ptr::null_mut();
            ok(load(&mut module, cubin.as_ptr().cast()));
            let functions: Vec<Handle> = (steps.iter())
                .map(|(entry, _, shared)| {
                    let mut function = ptr::null_mut();
                    let entry = CString::new(entry.as_str()).expect("a name");
                    ok(get(&mut function, module, entry.as_ptr()));
                    ok(set(function, 8, *shared as c_int));
                    function
                })
                .collect();

            let lse = vec![0u8; launch.lse_bytes];
            let mut pointers: Vec<Pointer> = Vec::new();
            // The tensors behind tensor maps come first.
            let mut in_order: Vec<&Vec<u8>> = launch.inputs.iter().chain([&lse]).collect();
            let o_at = match launch.maps.is_empty() {
                true => launch.inputs.len(),
                false => 3,
            };
            in_order.insert(o_at, &launch.o);
            for contents in in_order {
                let mut pointer = 0;
                ok(allocate(&mut pointer, contents.len().max(4)));
                if !contents.is_empty() {
                    ok(upload(pointer, contents.as_ptr().cast(), contents.len()));
                }
                pointers.push(pointer);
            }
            let maps = launch.maps.iter().zip(&pointers);
            let mut maps: Vec<TensorMap> = maps
                .map(|(map, pointer)| self.tensor_map(map, *pointer))
                .collect();
            let maps = maps.iter_mut().map(|map| ptr::from_mut(map).cast());
            let buffers = pointers
                .iter_mut()
                .map(|pointer| ptr::from_mut(pointer).cast());
            // Results of parts, in which nothing is a number before the first launch.
            let mut partials = 0;
            if let Some(bytes) = partial_bytes {
                ok(allocate(&mut partials, bytes));
                let nothing = vec![0xffu8; bytes];
                ok(upload(partials, nothing.as_ptr().cast(), bytes));
            }
            let between = partial_bytes.map(|_| ptr::from_mut(&mut partials).cast());
            let scalars = by_value.iter_mut().map(|words| ptr::from_mut(words).cast());
            let arguments: Vec<*mut c_void> =
                maps.chain(buffers).chain(between).chain(scalars).collect();
            // Merging takes no maps, and of the buffers o and those after it.
            let merging = arguments[(launch.maps.len() + o_at).min(arguments.len())..].to_vec();
            let mut arguments = [arguments, merging];
            let [tx, ty, tz] = kernel.geometry.threads;
            let mut run = || {
                for (i, (_, [x, y, z], shared)) in steps.iter().enumerate() {
                    ok(start(
                        functions[i],
                        *x,
                        *y,
                        *z,
                        tx,
                        ty,
                        tz,
                        *shared,
                        ptr::null_mut(),
                        arguments[i].as_mut_ptr(),
                        ptr::null_mut(),
                    ));
                }
            };
            run();
            ok(finish());
            let clock = Instant::now();
            (1..runs).for_each(|_| run());
            ok(finish());
            let mean = clock.elapsed() / runs.saturating_sub(1).max(1);
            let outputs = [pointers[o_at], pointers[pointers.len() - 1]];
            let (mut o, mut lse) = (launch.o.clone(), lse);
            ok(download(o.as_mut_ptr().cast(), outputs[0], o.len()));
            ok(download(lse.as_mut_ptr().cast(), outputs[1], lse.len()));
            for pointer in pointers {
                ok(free(pointer));
            }
            if partial_bytes.is_some() {
                ok(free(partials));
            }
            ok(unload(module));
            (o, lse, mean)
        }
    }
}

fn ok(status: Status) {
    assert_eq!(status, 0, "a CUDA call failed");
}
