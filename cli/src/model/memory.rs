//! What a device holds.

/// Asks a device what is taken, and knows the most it can hold.
pub(crate) struct Memory {
    taken: Box<dyn Fn() -> Option<u64>>,
    release: Box<dyn Fn()>,
    /// Bytes in all, where the driver says so.
    pub(crate) total: Option<u64>,
}

impl Memory {
    /// The memory of this process.
    pub(crate) fn host() -> Self {
        Self {
            taken: Box::new(|| kibibytes("/proc/self/status", "VmHWM:")),
            release: Box::new(|| ()),
            total: kibibytes("/proc/meminfo", "MemAvailable:"),
        }
    }

    /// The memory that the server of a CubeCL runtime has reserved.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn of<R: burn_cubecl::CubeRuntime>(device: &R::Device, total: Option<u64>) -> Self {
        let client = R::client(device);
        Self {
            taken: Box::new({
                let client = client.clone();
                move || client.memory_usage().ok().map(|usage| usage.bytes_reserved)
            }),
            release: Box::new(move || client.memory_cleanup()),
            total,
        }
    }

    /// Gives back what a device has reserved and nobody uses.
    pub(crate) fn release(&self) {
        (self.release)();
    }

    /// Bytes that are taken: the most so far of this process, or what a device has reserved,
    /// which it does not give back by itself.
    pub(crate) fn taken(&self) -> Option<u64> {
        (self.taken)()
    }
}

/// A number of a file of the system's, in bytes.
fn kibibytes(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let number: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(number * 1024)
}
