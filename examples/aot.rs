//! Runs attention with kernels that are embedded in the program: `build.rs` compiled them, and the
//! program neither compiles kernels nor reads files.

use burn::tensor::{Distribution, Tensor};
use burn_flex::Flex;
use butterfly::{Call, attention};

mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let plan = kernels::plan()?;
    println!("{}", kernels::PATTERN);
    let device = Default::default();
    let random =
        |heads| Tensor::<Flex, 4>::random([1, heads, 2048, 128], Distribution::Default, &device);
    let (q, k, v) = (random(32), random(8), random(8));
    let call = Call {
        index: kernels::LAYERS[5].1,
        capacity: Some(kernels::CAPACITY),
        ..Call::default()
    };
    let o = attention(q, k, v, &plan, &call)?;
    let kernels: Vec<_> = call.counts.get().into_keys().collect();
    println!("{:?} by {}", o.dims(), kernels.join(", "));
    assert!(kernels[0].starts_with("native prefill"));
    Ok(())
}
