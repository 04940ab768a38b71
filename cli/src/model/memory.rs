//! The memory of a device, and whether a run fits into it.

use crate::failure::Failure;
use butterfly_models::Footprint;
use serde::Serialize;
use std::path::Path;

/// The memory of a device: in use, and in total.
pub(crate) struct Memory {
    taken: Box<dyn Fn() -> Option<u64>>,
    release: Box<dyn Fn()>,
    /// Bytes in total, if the driver reports them; on the host, bytes that are available.
    pub(crate) total: Option<u64>,
}

/// The memory of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Use {
    /// Bytes in use, see [`Memory::taken`].
    pub(super) memory_bytes: Option<u64>,
    /// Bytes that were planned for before the run, mapped files included: weights, caches, the tensors
    /// of a chunk and its logits. The program itself and its tokenizer come on top on the host.
    pub(super) planned_bytes: u64,
}

impl Use {
    /// The end of a sentence.
    pub(super) fn text(&self) -> String {
        let taken = self.memory_bytes.map_or(String::new(), |bytes| {
            format!("; {:.2} GB", bytes as f64 / 1e9)
        });
        format!("{taken}; {:.2} GB planned", self.planned_bytes as f64 / 1e9)
    }
}

impl Memory {
    /// The memory of the host, as this process uses it.
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

    /// Frees memory that a device's server has reserved but does not use.
    pub(crate) fn release(&self) {
        (self.release)();
    }

    /// What is in use, and what was planned.
    pub(super) fn beside(&self, needs: &Footprint) -> Use {
        Use {
            memory_bytes: self.taken(),
            planned_bytes: needs.total().saturating_add(needs.mapped),
        }
    }

    /// Bytes in use: on the host, the peak of this process; on a device, what its server has
    /// reserved and does not free by itself.
    pub(crate) fn taken(&self) -> Option<u64> {
        (self.taken)()
    }
}

/// Checks that what a run needs, and `on_host` bytes more, fit into `total` bytes. The error
/// advises how to reduce the largest part.
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

/// Bytes that this process can still allocate: the least that the machine, its control group and
/// its limit on address space leave.
pub(super) fn available() -> Option<u64> {
    let machine = kibibytes("/proc/meminfo", "MemAvailable:");
    let group = || {
        let most = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
        // Only anonymous memory counts: the page cache is reclaimed when memory is needed.
        let taken = number("/sys/fs/cgroup/memory.stat", "anon")?;
        Some(most.trim().parse::<u64>().ok()?.saturating_sub(taken))
    };
    let addresses = || {
        let most = number("/proc/self/limits", "Max address space")?;
        Some(most.saturating_sub(kibibytes("/proc/self/status", "VmSize:")?))
    };
    [machine, group(), addresses()].into_iter().flatten().min()
}

/// The number of kibibytes after `field` in a file of the system, converted to bytes.
fn kibibytes(file: &str, field: &str) -> Option<u64> {
    number(file, field)?.checked_mul(1024)
}

/// The number after `field` in a file.
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
                mapped: 0,
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
