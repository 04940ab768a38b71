//! `butterfly doctor`: devices and libraries, and what each missing one costs.

use crate::failure::Failure;
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    cores: usize,
    instruction_set: String,
    devices: Vec<Device>,
    emitters: bool,
    /// Whether this build runs whole models.
    models: bool,
    nvrtc: Option<String>,
    nvrtc_looked: Vec<String>,
}

#[derive(Serialize)]
struct Device {
    device: &'static str,
    name: Option<String>,
    /// Whether it is a software implementation that runs on the CPU.
    software: bool,
    /// Its CUDA target.
    sm: Option<String>,
    missing: Option<String>,
}

impl From<butterfly_runtime::Adapter> for Device {
    fn from(adapter: butterfly_runtime::Adapter) -> Self {
        let (found, missing) = match adapter.found {
            Ok(found) => (Some(found), None),
            Err(reason) => (None, Some(reason)),
        };
        Self {
            device: adapter.device.name(),
            software: found.as_ref().is_some_and(|found| found.software),
            sm: found
                .as_ref()
                .and_then(|found| found.sm)
                .map(|sm| sm.to_string()),
            name: found.map(|found| found.name),
            missing,
        }
    }
}

pub(crate) fn run(json: bool) -> Result<(), Failure> {
    let (nvrtc, nvrtc_looked) = nvrtc();
    let report = Report {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        instruction_set: format!("{:?}", butterfly_cpu::Isa::best()),
        devices: butterfly_runtime::adapters()
            .into_iter()
            .map(Device::from)
            .collect(),
        emitters: cfg!(feature = "emitters"),
        models: cfg!(feature = "models"),
        nvrtc,
        nvrtc_looked,
    };
    crate::print(json, &report, || text(&report))
}

/// The NVRTC that was found, and the places that were searched.
#[cfg(feature = "emitters")]
fn nvrtc() -> (Option<String>, Vec<String>) {
    let search = butterfly_codegen::nvrtc::find();
    let found = search.nvrtc.as_ref();
    let looked = search.looked.iter();
    (
        found.map(|n| format!("{}.{} at {}", n.version.0, n.version.1, n.path)),
        looked.map(|l| format!("{}: {}", l.at, l.result)).collect(),
    )
}

#[cfg(not(feature = "emitters"))]
fn nvrtc() -> (Option<String>, Vec<String>) {
    (None, Vec::new())
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "cpu      {} cores, {}\n",
        report.cores, report.instruction_set
    );
    for device in &report.devices {
        let state = match (&device.name, &device.missing) {
            (Some(name), _) => {
                let sm = device.sm.as_ref().map(|sm| format!(", {sm}"));
                let software = match device.software {
                    true => ", a program on the CPU: `auto` does not take it",
                    false => "",
                };
                format!("{name}{}{software}", sm.unwrap_or_default())
            }
            (None, reason) => format!(
                "missing: {}; kernels are still compiled for it, but cannot run here",
                reason.as_deref().unwrap_or("not found")
            ),
        };
        text += &format!("{:<8} {state}\n", device.device);
    }
    if !report.models {
        text +=
            "models   missing: this build runs attention only; build with `--features models`\n";
    }
    text + &match (report.emitters, &report.nvrtc) {
        (false, _) => "emitters missing: this build makes kernels for the CPU only; build with `--features emitters`\n".into(),
        (true, Some(nvrtc)) => format!("nvrtc    {nvrtc}\n"),
        (true, None) => format!(
            "nvrtc    missing: CUDA kernels stay text, without ptx and cubin; looked at\n           {}\n",
            report.nvrtc_looked.join("\n           ")
        ),
    }
}
