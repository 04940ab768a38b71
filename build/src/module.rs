//! A manifest → a Rust module that embeds the artifact folder.

use crate::BuildError;
use butterfly_ir::manifest::Manifest;
use proc_macro2::TokenStream;
use quote::quote;
use std::path::Path;

/// The text of the module, which is checked to parse as Rust.
pub(crate) fn text(name: &str, dir: &Path, manifest: &Manifest) -> Result<String, BuildError> {
    let wrong = || BuildError::Name(name.to_string());
    syn::parse_str::<syn::Ident>(name).map_err(|_| wrong())?;
    let tokens = tokens(dir, manifest);
    syn::parse2::<syn::File>(tokens.clone()).map_err(|_| wrong())?;
    Ok(format!("// Made by butterfly-build.\n{tokens}\n"))
}

fn tokens(dir: &Path, manifest: &Manifest) -> TokenStream {
    let dir = dir.display().to_string();
    let pattern = &manifest.pattern;
    let capacity = manifest.capacity as usize;
    let layers = manifest.layers.iter().map(|layer| {
        let (layer, index) = (layer.layer as usize, layer.index);
        quote!((#layer, #index))
    });
    let count = manifest.layers.len();
    quote! {
        /// The artifact folder, inside the program.
        #[allow(dead_code, unreachable_pub)]
        pub static ARTIFACTS: &::butterfly::Embedded = ::butterfly::include_artifacts!(#dir);
        /// The pattern that the kernels were made for.
        #[allow(dead_code, unreachable_pub)]
        pub const PATTERN: &str = #pattern;
        /// Longest sequence, in tokens, for which the pattern was checked.
        #[allow(dead_code, unreachable_pub)]
        pub const CAPACITY: usize = #capacity;
        /// Layers that follow the pattern, and the index that picks each one's stage.
        #[allow(dead_code, unreachable_pub)]
        pub const LAYERS: [(usize, u32); #count] = [#(#layers),*];
        /// The pattern with its kernels, every byte of which is checked.
        #[allow(dead_code, unreachable_pub)]
        pub fn plan() -> ::core::result::Result<::butterfly::Plan, ::butterfly::OperationError> {
            ::butterfly::Plan::embedded(ARTIFACTS)
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Build, BuildError};

    const CONFIG: &str = r#"{"model_type": "llama", "dtype": "float32", "num_hidden_layers": 2,
        "max_position_embeddings": 512, "hidden_size": 64, "intermediate_size": 64,
        "vocab_size": 64, "rms_norm_eps": 1e-6, "num_attention_heads": 4, "head_dim": 16}"#;

    #[test]
    fn a_module_names_what_it_holds() {
        let folder = tempfile::tempdir().expect("folder");
        let config = folder.path().join("config.json");
        std::fs::write(&config, CONFIG).expect("written");
        let build = Build::new(&config)
            .targets("cpu")
            .pattern("block 32 causal & local(1)");
        let dir = folder.path().join("attention");
        let manifest = build.artifacts(&dir).expect("artifacts");
        let text = super::text("attention", &dir, &manifest).expect("a module");
        let layers = "LAYERS : [(usize , u32) ; 2usize] = [(0usize , 0u32) , (1usize , 1u32)]";
        assert!(text.contains(layers), "{text}");
        // A stage in the header applies to every layer.
        let fixed = build.clone().pattern("block 32 stage 3 causal & local(1)");
        let manifest = fixed.artifacts(&dir).expect("artifacts");
        let text = super::text("attention", &dir, &manifest).expect("a module");
        let layers = "[(0usize , 3u32) , (1usize , 3u32)]";
        assert!(text.contains(layers), "{text}");
        assert!(matches!(
            super::text("no name", &dir, &manifest),
            Err(BuildError::Name(_))
        ));
        let wrong = build.clone().pattern("causal &").artifacts(&dir);
        assert!(matches!(wrong, Err(BuildError::Pattern(_))));
        assert!(matches!(
            build.targets("tpu").artifacts(&dir),
            Err(BuildError::Target(_))
        ));
    }
}
