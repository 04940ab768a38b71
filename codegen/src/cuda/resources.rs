//! The log of a compilation with `--ptxas-options=-v` → the resources of a kernel.
//!
//! They are read from the log because a cubin gives the size of the stack frame, but not how much
//! of it is spilled registers. `tests/resources.rs` compares the log with the cubin.

use butterfly_ir::Resources;

/// The prefix of the names of our entry points.
const OURS: &str = "butterfly_";

/// The resources of our kernel, for each the maximum over its entry points; `None` if the log has
/// none of our entry points or is in an unknown form.
pub(crate) fn read(log: &str) -> Option<Resources> {
    let functions = log.split("Function properties for ").skip(1);
    let ours = functions.filter(|function| function.starts_with(OURS));
    ours.map(of_function).reduce(|one, other| {
        let (one, other) = (one?, other?);
        Some(Resources {
            registers: one.registers.max(other.registers),
            stack_bytes: one.stack_bytes.max(other.stack_bytes),
            spill_store_bytes: one.spill_store_bytes.max(other.spill_store_bytes),
            spill_load_bytes: one.spill_load_bytes.max(other.spill_load_bytes),
            static_shared_bytes: one.static_shared_bytes.max(other.static_shared_bytes),
        })
    })?
}

fn of_function(log: &str) -> Option<Resources> {
    Some(Resources {
        registers: before(log, " registers")?,
        stack_bytes: before(log, " bytes stack frame")?,
        spill_store_bytes: before(log, " bytes spill stores")?,
        spill_load_bytes: before(log, " bytes spill loads")?,
        // Omitted from the log where it is zero.
        static_shared_bytes: before(log, " bytes smem").unwrap_or(0),
    })
}

/// The number right before `unit`, where that first occurs.
fn before(log: &str, unit: &str) -> Option<u32> {
    let (text, _) = log.split_once(unit)?;
    let number = text.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    text[number..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_with_spills_and_shared_memory() {
        let log = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'butterfly_attention' for 'sm_80'
ptxas info    : Function properties for butterfly_attention
ptxas         .     40 bytes stack frame, 32 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 40 bytes cumulative stack size, 528 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 45.294 ms
";
        let resources = Resources {
            registers: 64,
            stack_bytes: 40,
            spill_store_bytes: 32,
            spill_load_bytes: 36,
            static_shared_bytes: 528,
        };
        assert_eq!(read(log), Some(resources));
    }

    #[test]
    fn the_most_of_two_entry_points_counts() {
        let function = |name: &str, stack: u32, registers: u32| {
            format!(
                "ptxas info    : Function properties for {name}\nptxas         .     {stack} bytes \
                 stack frame, 0 bytes spill stores, 0 bytes spill loads\nptxas info    : Used \
                 {registers} registers, used 1 barriers\n"
            )
        };
        let log = function("butterfly_attention_alone", 8, 96)
            + &function("theirs", 90, 200)
            + &function("butterfly_attention", 0, 104);
        let resources = read(&log).expect("known");
        assert_eq!((resources.registers, resources.stack_bytes), (104, 8));
    }

    #[test]
    fn an_unknown_log_says_nothing() {
        assert_eq!(read(""), None);
        assert_eq!(
            read("Function properties for butterfly_attention\nUsed many registers\n"),
            None
        );
    }
}
