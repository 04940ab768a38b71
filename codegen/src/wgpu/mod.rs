//! Definition → WGSL → SPIR-V.
//!
//! SPIR-V is made from the WGSL text by naga, whose output depends on nothing else. naga validates
//! the module before it is written.

use crate::EmitError;
use crate::portable::{Definition, ENTRY};
use butterfly_ir::Target;
use cubecl_core::{Compiler, ExecutionMode, WgpuCompilationOptions, ir::AddressType};
use cubecl_wgpu::WgslCompiler;
use naga::back::spv;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

/// Prints a definition as WGSL for `target`.
pub(crate) fn print(definition: Definition, target: Target) -> Result<String, String> {
    let outputs = 2;
    let address = AddressType::U32.unsigned_type();
    let mut shader = WgslCompiler::default()
        .compile(
            definition.kernel,
            &WgpuCompilationOptions::default(),
            ExecutionMode::Unchecked,
            address,
        )
        .map_err(|error| error.to_string())?;
    // Drop CubeCL's buffer of lengths, which no kernel reads.
    shader.info = Default::default();
    let inputs = shader.buffers.len() - outputs;
    let text = shader.to_string();
    let text = match target {
        // Several arguments may be parts of one wgpu buffer, which allows only one kind of access
        // to the whole buffer in a launch.
        Target::Webgpu => text,
        // In SPIR-V, inputs are declared read-only.
        Target::Vulkan | Target::Cuda(_) | Target::Metal | Target::Cpu => {
            text.replacen("storage, read_write>", "storage, read>", inputs)
        }
    };
    Ok(text.replacen("enable f16;", "enable f16;\n", 1))
}

/// The files of a kernel for `target`, from its WGSL text.
pub(crate) fn files(text: String, target: Target) -> Result<Vec<(String, Vec<u8>)>, EmitError> {
    let internal = |message| EmitError::Internal { target, message };
    let module = naga::front::wgsl::parse_str(&text)
        .map_err(|error| internal(error.emit_to_string(&text)))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16)
        .validate(&module)
        .map_err(|error| internal(error.emit_to_string(&text)))?;
    let wgsl = ("wgsl".to_string(), text.into_bytes());
    match target {
        Target::Vulkan => {
            let words = spirv(&module, &info).map_err(internal)?;
            let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            Ok(vec![wgsl, ("spv".to_string(), bytes)])
        }
        Target::Webgpu | Target::Cuda(_) | Target::Metal | Target::Cpu => Ok(vec![wgsl]),
    }
}

fn spirv(module: &naga::Module, info: &ModuleInfo) -> Result<Vec<u32>, String> {
    let options = spv::Options {
        lang_version: (1, 3),
        flags: spv::WriterFlags::empty(),
        bounds_check_policies: naga::proc::BoundsCheckPolicies::default(),
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        // Many devices lack this capability, and no entry point passes 16-bit values.
        use_storage_input_output_16: false,
        ..Default::default()
    };
    let entry = spv::PipelineOptions {
        shader_stage: naga::ShaderStage::Compute,
        entry_point: ENTRY.to_string(),
    };
    spv::write_vec(module, info, &options, Some(&entry)).map_err(|error| error.to_string())
}
