//! What a device holds, and whether a run fits in.

use crate::failure::Failure;
use butterfly_models::Footprint;
use std::path::Path;

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
            total: available(),
        }
    }

    /// The memory that the server of a CubeCL runtime has reserved.
    #[cfg(any(feature = "cuda", feature = "vulkan"))]
    pub(crate) fn of<R: butterfly::backends::CubeRuntime>(
        device: &R::Device,
        total: Option<u64>,
    ) -> Self {
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

/// Whether what a run needs, and `on_host` bytes more, are to be had of `total`; if not, what to
/// give instead, by the largest part.
pub(super) fn fits(
    place: &str,
    total: Option<u64>,
    config: &Path,
    needs: &Footprint,
    on_host: u64,
) -> Result<(), Failure> {
    let needed = needs.total().saturating_add(on_host);
    let Some(total) = total.filter(|total| needed > *total) else {
        return Ok(());
    };
    let gigabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e9);
    let config = config.display();
    let parts = [
        (
            needs.weights,
            "for weights",
            format!(
                "give --dtype bf16 or f16 where it is f32, or a smaller model: layers, `vocab_size`, `n_positions`, `hidden_size` and the like in {config} set this"
            ),
        ),
        (
            needs.caches,
            "for keys, values and states",
            "give a smaller --capacity, or fewer or shorter texts".into(),
        ),
        (
            needs.activations,
            "for the tensors of a chunk",
            "give a smaller --chunk, or fewer texts".into(),
        ),
        (
            needs.logits,
            "for logits of a chunk",
            format!("give a smaller --chunk, or fewer texts: `vocab_size` in {config} sets this"),
        ),
        (
            on_host,
            "for all logits",
            "give fewer or shorter texts".into(),
        ),
    ];
    let listed: Vec<String> = parts
        .iter()
        .filter(|(bytes, ..)| *bytes >= 50_000_000)
        .map(|(bytes, what, _)| format!("{} {what}", gigabytes(*bytes)))
        .collect();
    let most = parts.iter().max_by_key(|(bytes, ..)| *bytes);
    let advice = most.map_or("", |(.., advice)| advice);
    Err(Failure::Bad(format!(
        "{place} has {} GB, but {} are needed: {}; {advice}",
        gigabytes(total),
        gigabytes(needed),
        listed.join(", "),
    )))
}

/// Bytes that this process may still take: of the machine, of its control group, and of the
/// addresses it is allowed.
pub(super) fn available() -> Option<u64> {
    let machine = kibibytes("/proc/meminfo", "MemAvailable:");
    let group = || {
        let most = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
        // Pages of files are given back where they are needed.
        let taken = number("/sys/fs/cgroup/memory.stat", "anon")?;
        Some(most.trim().parse::<u64>().ok()?.saturating_sub(taken))
    };
    let addresses = || {
        let most = number("/proc/self/limits", "Max address space")?;
        Some(most.saturating_sub(kibibytes("/proc/self/status", "VmSize:")?))
    };
    [machine, group(), addresses()].into_iter().flatten().min()
}

/// A number of a file of the system's, in bytes.
fn kibibytes(file: &str, field: &str) -> Option<u64> {
    number(file, field)?.checked_mul(1024)
}

/// The number after the name of a field.
fn number(file: &str, field: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut lines = text.lines();
    let rest = lines.find_map(|line| {
        line.strip_prefix(field)
            .filter(|rest| rest.starts_with(' ') || rest.starts_with('\t'))
    })?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_part_says_what_to_give() {
        let part = 1_000_000_000;
        let needs = |large: usize| {
            let mut parts = [part; 4];
            parts[large] *= 9;
            let [weights, caches, activations, logits] = parts;
            Footprint {
                weights,
                caches,
                activations,
                logits,
            }
        };
        for (large, flag) in ["vocab_size", "--capacity", "--chunk", "--chunk"]
            .into_iter()
            .enumerate()
        {
            let needs = needs(large);
            let total = needs.total();
            let fits = |total| fits("cpu", Some(total), Path::new("config.json"), &needs, 0);
            assert!(fits(total).is_ok());
            let Err(Failure::Bad(said)) = fits(total - 1) else {
                panic!("it does not fit");
            };
            assert!(
                said.contains("12.0 are needed") && said.contains("9.0 for"),
                "{said}"
            );
            assert!(said.contains(flag), "{said}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_says_what_is_left() {
        let left = available().expect("Linux says so");
        assert!(left > 1 << 20 && left <= kibibytes("/proc/meminfo", "MemTotal:").expect("there"));
    }
}
