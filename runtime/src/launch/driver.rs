//! Asks NVIDIA's driver about its first device, without the CUDA runtime.

use super::Found;
use butterfly_ir::Sm;
use std::ffi::{CStr, c_char, c_int};

/// Values of `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*` in the driver's header, `cuda.h`.
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// Asks the driver about its first device.
pub(super) fn probe() -> Result<Found, String> {
    let name = if cfg!(windows) {
        "nvcuda.dll"
    } else {
        "libcuda.so.1"
    };
    // SAFETY: loading the driver's library runs none of our code, and the function types below are
    // those of its header.
    unsafe {
        let Ok(driver) = libloading::Library::new(name) else {
            return Err(format!(
                "{name} is not installed; it comes with the NVIDIA driver"
            ));
        };
        // Once initialised, the driver must not be unloaded.
        let driver = std::mem::ManuallyDrop::new(driver);
        let lacks = |error: libloading::Error| error.to_string();
        type Init = unsafe extern "C" fn(u32) -> c_int;
        type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type Total = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
        type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        let init = driver.get::<Init>(b"cuInit\0").map_err(lacks)?;
        let get = driver.get::<Get>(b"cuDeviceGet\0").map_err(lacks)?;
        let get_name = driver.get::<Name>(b"cuDeviceGetName\0").map_err(lacks)?;
        let attribute = driver
            .get::<Attribute>(b"cuDeviceGetAttribute\0")
            .map_err(lacks)?;
        let total = driver
            .get::<Total>(b"cuDeviceTotalMem_v2\0")
            .map_err(lacks)?;
        let said = |what: &str, code: c_int| match code {
            0 => Ok(()),
            _ => Err(format!("{what} returned error {code}")),
        };
        said("cuInit", init(0))?;
        let mut device = 0;
        said("cuDeviceGet", get(&mut device, 0))?;
        const MOST: c_int = 255;
        let mut text = [0; MOST as usize + 1];
        said("cuDeviceGetName", get_name(text.as_mut_ptr(), MOST, device))?;
        let capability = |which| {
            let mut value = 0;
            said("cuDeviceGetAttribute", attribute(&mut value, which, device))?;
            u32::try_from(value).map_err(|_| "a negative compute capability".to_string())
        };
        let version = 10 * capability(CAPABILITY_MAJOR)? + capability(CAPABILITY_MINOR)?;
        let plain = Sm {
            version,
            arch_specific: false,
        };
        let sm = Sm {
            arch_specific: plain.architecture().has_own,
            ..plain
        };
        let mut memory = 0;
        said("cuDeviceTotalMem", total(&mut memory, device))?;
        Ok(Found {
            memory: Some(memory as u64),
            name: CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned(),
            software: false,
            sm: Some(sm),
        })
    }
}
