//! Embeds artifacts of the default targets and element types in a program, in both ways: by the
//! module that a build script makes, and by `include_artifacts!` of a folder.

use burn::tensor::{DType, Distribution, Tensor};
use burn_flex::Flex;
use butterfly::{Call, Embedded, Plan, attention};

mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// The same folder, by its path.
fn folder() -> &'static Embedded {
    include!(concat!(env!("OUT_DIR"), "/folder.rs"))
}

#[test]
fn default_artifacts_open_and_run() {
    let targets = [
        "cuda:sm_80",
        "cuda:sm_90a",
        "vulkan",
        "webgpu",
        "metal",
        "cpu",
    ];
    for embedded in [kernels::ARTIFACTS, folder()] {
        let plan = Plan::embedded(embedded).expect("whole");
        let manifest = &plan.artifacts().expect("artifacts").manifest;
        for target in targets {
            let mut kernels = manifest.kernels.iter();
            let has = kernels.any(|kernel| kernel.target.to_string() == target);
            assert!(has, "no kernels for {target}");
        }
        // The files of matrix products are embedded too.
        assert_eq!(manifest.products.len(), 1);
        assert_eq!(manifest.files().count(), embedded.files.len());
        for dtype in [DType::F32, DType::BF16] {
            runs(&plan, dtype);
        }
    }
}

/// Runs one layer of the shape that the kernels are made for, in element type `dtype` on the CPU.
fn runs(plan: &Plan, dtype: DType) {
    let device = Default::default();
    let random = |heads| {
        let shape = [1, heads, 300, 128];
        Tensor::<Flex, 4>::random(shape, Distribution::Default, &device).cast(dtype)
    };
    let call = Call::default();
    let o = attention(random(32), random(8), random(8), plan, &call).expect("attention");
    assert_eq!((o.dims(), o.dtype()), ([1, 32, 300, 128], dtype));
    let numbers = o.into_data().convert::<f32>().into_vec::<f32>();
    assert!(numbers.expect("numbers").iter().all(|x| x.is_finite()));
    let ran: Vec<String> = call.counts.get().into_keys().collect();
    assert!(ran[0].starts_with("native prefill"), "{ran:?}");
}
