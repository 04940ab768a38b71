//! `butterfly doctor`: devices and libraries, and what each missing one costs.

use crate::failure::Failure;
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    cores: usize,
    instruction_set: String,
    devices: Vec<Found>,
    nvrtc: Option<String>,
    nvrtc_looked: Vec<String>,
}

#[derive(Serialize)]
struct Found {
    device: &'static str,
    name: Option<String>,
    missing: Option<String>,
}

pub(crate) fn run(json: bool) -> Result<(), Failure> {
    let search = butterfly_codegen::nvrtc::find();
    let found = |adapter: butterfly_runtime::Adapter| {
        let (name, missing) = match adapter.found {
            Ok(name) => (Some(name), None),
            Err(reason) => (None, Some(reason)),
        };
        Found {
            device: adapter.device.name(),
            name,
            missing,
        }
    };
    let report = Report {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        instruction_set: format!("{:?}", butterfly_cpu::Isa::best()),
        devices: butterfly_runtime::adapters()
            .into_iter()
            .map(found)
            .collect(),
        nvrtc: search
            .nvrtc
            .as_ref()
            .map(|n| format!("{}.{} at {}", n.version.0, n.version.1, n.path)),
        nvrtc_looked: search
            .looked
            .iter()
            .map(|looked| format!("{}: {}", looked.at, looked.result))
            .collect(),
    };
    crate::print(json, &report, || text(&report))
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "cpu      {} cores, {}\n",
        report.cores, report.instruction_set
    );
    for found in &report.devices {
        let state = match (&found.name, &found.missing) {
            (Some(name), _) => name.clone(),
            (None, reason) => format!(
                "missing: {}; kernels are still compiled for it, but cannot run here",
                reason.as_deref().unwrap_or("not found")
            ),
        };
        text += &format!("{:<8} {state}\n", found.device);
    }
    text + &match &report.nvrtc {
        Some(nvrtc) => format!("nvrtc    {nvrtc}\n"),
        None => format!(
            "nvrtc    missing: CUDA kernels stay text, without ptx and cubin; looked at\n           {}\n",
            report.nvrtc_looked.join("\n           ")
        ),
    }
}
