//! Definition → Metal Shading Language.

use crate::portable::Definition;
use cubecl_core::{Compiler, ExecutionMode, ir::AddressType};
use cubecl_cpp::MslCompiler;

/// Prints a definition as Metal text.
pub(crate) fn print(definition: Definition) -> Result<String, String> {
    let address = AddressType::U32.unsigned_type();
    let mut kernel = MslCompiler::default()
        .compile(
            definition.kernel,
            &Default::default(),
            ExecutionMode::Unchecked,
            address,
        )
        .map_err(|error| error.to_string())?;
    // Drop CubeCL's buffer of lengths, which no kernel reads.
    kernel.flags.has_info = false;
    kernel.info = Default::default();
    Ok(kernel.to_string())
}
