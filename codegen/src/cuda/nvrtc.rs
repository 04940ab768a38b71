//! The NVRTC library: CUDA C++ → PTX and cubin, without a GPU.
//!
//! Owns: the search for the library and its headers ([`find`] records every place it looked, for
//! diagnosis), and the few functions of it that are used. NVRTC is loaded at run time and may be
//! missing: CUDA kernels are then emitted as text only.

use super::resources;
use butterfly_ir::Resources;
use libloading::Library;
use std::env;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;

/// Names of the library, best first.
const NAMES: [&str; 4] = [
    "libnvrtc.so.13",
    "libnvrtc.so.12",
    "libnvrtc.so",
    "nvrtc64_130_0.dll",
];

/// Environment variables that name CUDA toolkits.
const TOOLKITS: [&str; 3] = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT"];

/// Environment variables that name Python environments.
const PYTHONS: [&str; 2] = ["VIRTUAL_ENV", "CONDA_PREFIX"];

/// Python environments in the current folder.
const VENVS: [&str; 3] = [".venv", "venv", "env"];

/// Usual folders of CUDA toolkits.
const PREFIXES: [&str; 2] = ["/usr/local/cuda", "/opt/cuda"];

/// Folders of the library in NVIDIA's Python wheels, under `site-packages/nvidia`, each with the
/// folders of its headers.
const WHEELS: [(&str, &[&str]); 2] = [
    ("cu13/lib", &["cu13/include"]),
    (
        "cuda_nvrtc/lib",
        &["cuda_runtime/include", "cuda_nvrtc/include"],
    ),
];

/// The header that half-precision kernels include.
const HEADER: &str = "cuda_fp16.h";

/// A place where the library was searched for, and the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// Path of a file, or name of a library for the dynamic linker.
    pub at: String,
    /// `found`, or the reason why not.
    pub result: String,
}

/// The outcome of the search.
pub struct Search {
    /// Every place tried, in order.
    pub looked: Vec<Looked>,
    /// The library, if any.
    pub nvrtc: Option<Nvrtc>,
}

/// A loaded NVRTC.
pub struct Nvrtc {
    library: Library,
    /// The builtins library. NVRTC opens it by name at its first compilation; in the folder of a
    /// wheel it is found only if it is already loaded.
    _builtins: Vec<Library>,
    /// Where it was found.
    pub path: String,
    /// Major and minor version.
    pub version: (u32, u32),
    /// Folders with the CUDA headers. If empty, only kernels that include no header can be
    /// compiled.
    pub includes: Vec<PathBuf>,
}

/// The result of a compilation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// PTX, with a final NUL byte.
    pub ptx: Vec<u8>,
    /// Machine code for one architecture.
    pub cubin: Vec<u8>,
    /// Registers, stack, spills and static shared memory; `None` if the log is in an unknown form.
    pub resources: Option<Resources>,
}

/// Finds NVRTC, once for the whole process.
///
/// Tried in order: the file named by the environment variable `BUTTERFLY_NVRTC`; the search path of
/// the dynamic linker; toolkits named by the environment; Python environments named by the
/// environment or in the current folder; the usual folders of toolkits.
pub fn find() -> &'static Search {
    static SEARCH: OnceLock<Search> = OnceLock::new();
    SEARCH.get_or_init(search)
}

fn search() -> Search {
    let mut looked = Vec::new();
    for (path, includes) in candidates() {
        let at = path.display().to_string();
        // A bare name is searched for by the dynamic linker; a path must exist.
        if path.components().count() > 1 && !path.exists() {
            let result = "no such file".to_string();
            looked.push(Looked { at, result });
            continue;
        }
        match Nvrtc::open(&path, includes) {
            Ok(nvrtc) => {
                let result = "found".to_string();
                looked.push(Looked { at, result });
                return Search {
                    looked,
                    nvrtc: Some(nvrtc),
                };
            }
            Err(result) => looked.push(Looked { at, result }),
        }
    }
    Search {
        looked,
        nvrtc: None,
    }
}

/// Library files to try, each with folders that may hold its headers.
fn candidates() -> Vec<(PathBuf, Vec<PathBuf>)> {
    let mut found = Vec::new();
    let toolkits: Vec<PathBuf> = TOOLKITS
        .iter()
        .filter_map(env::var_os)
        .map(PathBuf::from)
        .chain(PREFIXES.iter().map(PathBuf::from))
        .collect();
    let system: Vec<PathBuf> = toolkits.iter().map(|root| root.join("include")).collect();
    if let Some(path) = env::var_os("BUTTERFLY_NVRTC") {
        let path = PathBuf::from(path);
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let mut includes = vec![folder.join("../include"), folder.join("include")];
        includes.push(folder.join("../../cuda_runtime/include"));
        includes.extend(system.iter().cloned());
        found.push((path, includes));
    }
    for name in NAMES {
        found.push((PathBuf::from(name), system.clone()));
    }
    let (named, usual) = toolkits.split_at(toolkits.len() - PREFIXES.len());
    let in_toolkit = |root: &PathBuf| {
        let include = root.join("include");
        NAMES.map(|name| (root.join("lib64").join(name), vec![include.clone()]))
    };
    found.extend(named.iter().flat_map(in_toolkit));
    for site in site_packages() {
        for (lib, includes) in WHEELS {
            let nvidia = site.join("nvidia");
            let includes: Vec<PathBuf> = includes.iter().map(|i| nvidia.join(i)).collect();
            let folder = nvidia.join(lib);
            found.extend(NAMES.map(|name| (folder.join(name), includes.clone())));
        }
    }
    found.extend(usual.iter().flat_map(in_toolkit));
    found
}

/// Folders that hold Python packages, sorted.
fn site_packages() -> Vec<PathBuf> {
    let mut sites: Vec<PathBuf> = env::var_os("PYTHONPATH")
        .map(|paths| env::split_paths(&paths).collect())
        .unwrap_or_default();
    let roots = PYTHONS.iter().filter_map(env::var_os).map(PathBuf::from);
    for root in roots.chain(VENVS.iter().map(PathBuf::from)) {
        let Ok(entries) = std::fs::read_dir(root.join("lib")) else {
            continue;
        };
        let mut versions: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path().join("site-packages"))
            .filter(|site| site.is_dir())
            .collect();
        versions.sort();
        sites.extend(versions);
    }
    sites
}

type Program = *mut c_void;
type Status = c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Bytes = unsafe extern "C" fn(Program, *mut c_char) -> Status;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> Status;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status;
type Destroy = unsafe extern "C" fn(*mut Program) -> Status;

/// Loads the builtins libraries in the folder of `path`.
fn builtins(path: &Path) -> Vec<Library> {
    let folder = path.parent().filter(|folder| folder.is_absolute());
    let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok());
    let files = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let is_builtins = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so")
    };
    // SAFETY: the library is a table of texts; loading it has no preconditions.
    let load = |file: PathBuf| unsafe { Library::new(file) }.ok();
    files.filter(is_builtins).filter_map(load).collect()
}

impl Nvrtc {
    fn open(path: &Path, includes: Vec<PathBuf>) -> Result<Self, String> {
        // SAFETY: loading NVRTC runs no code of ours and has no preconditions.
        let library = unsafe { Library::new(path) }.map_err(|error| error.to_string())?;
        let builtins = builtins(path);
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the signature is that of nvrtc.h; both pointers are valid.
        let status = unsafe {
            let version = library
                .get::<Version>(b"nvrtcVersion\0")
                .map_err(|error| error.to_string())?;
            version(&mut major, &mut minor)
        };
        if status != 0 {
            return Err(format!("nvrtcVersion returned {status}"));
        }
        let includes = includes
            .into_iter()
            .filter(|folder| folder.join(HEADER).exists())
            .collect();
        Ok(Self {
            library,
            _builtins: builtins,
            path: path.display().to_string(),
            version: (major as u32, minor as u32),
            includes,
        })
    }

    /// Whether every header that `text` includes was found beside the library.
    pub fn has_headers(&self, text: &str) -> bool {
        let found = |header: &str| self.includes.iter().any(|dir| dir.join(header).exists());
        text.lines()
            .filter_map(|line| line.strip_prefix("#include <")?.strip_suffix('>'))
            // mma.h only includes crt/mma.h, which is packaged separately.
            .all(|header| found(header) && (header != "mma.h" || found("crt/mma.h")))
    }

    /// Compiles CUDA C++ for an architecture such as `sm_90a`.
    ///
    /// # Errors
    /// The compiler's log, or a message if NVRTC itself fails.
    pub fn compile(&self, text: &str, arch: &str) -> Result<Compiled, String> {
        let mut options = vec![
            format!("--gpu-architecture={arch}"),
            "--std=c++17".to_string(),
            "--disable-warnings".to_string(),
            "--ptxas-options=-v".to_string(),
        ];
        let include = |folder: &PathBuf| format!("--include-path={}", folder.display());
        options.extend(self.includes.iter().map(include));
        let options: Vec<CString> = options
            .into_iter()
            .map(c_string)
            .collect::<Result<_, _>>()?;
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let text = c_string(text)?;
        let mut program: Program = ptr::null_mut();
        // SAFETY: signatures are those of nvrtc.h; strings are NUL-terminated and
        // outlive the calls; the program is destroyed once, below.
        unsafe {
            let create = self.symbol::<Create>(b"nvrtcCreateProgram\0")?;
            let compile = self.symbol::<Compile>(b"nvrtcCompileProgram\0")?;
            let destroy = self.symbol::<Destroy>(b"nvrtcDestroyProgram\0")?;
            let name = c"butterfly.cu".as_ptr();
            let status = create(
                &mut program,
                text.as_ptr(),
                name,
                0,
                ptr::null(),
                ptr::null(),
            );
            if status != 0 {
                return Err(format!("nvrtcCreateProgram returned {status}"));
            }
            let status = compile(program, options.len() as c_int, options.as_ptr());
            let result = match status {
                0 => self.take(program),
                _ => Err(self.log(program)),
            };
            destroy(&mut program);
            result
        }
    }

    unsafe fn take(&self, program: Program) -> Result<Compiled, String> {
        // SAFETY: `program` was compiled and is alive.
        unsafe {
            Ok(Compiled {
                ptx: self.bytes(program, b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0")?,
                cubin: self.bytes(program, b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0")?,
                resources: resources::read(&self.log(program)),
            })
        }
    }

    unsafe fn log(&self, program: Program) -> String {
        let (size, get) = (b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0");
        // SAFETY: `program` is alive.
        let bytes = unsafe { self.bytes(program, size, get) };
        bytes.map_or_else(
            |error| error,
            |bytes| {
                CStr::from_bytes_until_nul(&bytes).map_or_else(
                    |_| String::from_utf8_lossy(&bytes).into_owned(),
                    |log| log.to_string_lossy().into_owned(),
                )
            },
        )
    }

    unsafe fn bytes(&self, program: Program, size: &[u8], get: &[u8]) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: signatures are those of nvrtc.h, and the buffer has the length that
        // the library asked for.
        unsafe {
            let size = self.symbol::<Size>(size)?;
            let get = self.symbol::<Bytes>(get)?;
            let status = size(program, &mut length);
            let mut bytes = vec![0u8; length];
            match status {
                0 => match get(program, bytes.as_mut_ptr().cast()) {
                    0 => Ok(bytes),
                    status => Err(format!("NVRTC returned {status}")),
                },
                _ => Err(format!("NVRTC returned {status}")),
            }
        }
    }

    unsafe fn symbol<T>(&self, name: &[u8]) -> Result<libloading::Symbol<'_, T>, String> {
        // SAFETY: passed on to the callers, who give the type of nvrtc.h.
        unsafe { self.library.get(name) }.map_err(|error| error.to_string())
    }
}

fn c_string(text: impl Into<Vec<u8>>) -> Result<CString, String> {
    CString::new(text).map_err(|error| error.to_string())
}
