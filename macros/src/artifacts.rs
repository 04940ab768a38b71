//! The path of an artifact folder → an expression that embeds its files.
//!
//! In:  a path, absolute or relative to the folder of the package. Out: a reference to a
//! `butterfly::Embedded`. Its digests are checked when it is opened, not here.

use butterfly_ir::manifest::Manifest;
use proc_macro2::{Literal, TokenStream};
use quote::quote;
use std::path::{Path, PathBuf};

/// Makes the expression; the error says why the folder cannot be embedded.
pub(crate) fn embed(dir: &str, package: &Path) -> Result<TokenStream, String> {
    let folder: PathBuf = package.join(dir);
    let path = folder.join("manifest.json");
    let text = std::fs::read_to_string(&path).map_err(|error| {
        format!(
            "{}: cannot read: {error}; make the folder with `butterfly compile` or butterfly-build",
            path.display()
        )
    })?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| {
        format!(
            "{}: is no manifest of this version: {error}; compile again",
            path.display()
        )
    })?;
    let literal = |path: &Path| Literal::string(&path.display().to_string());
    let files = manifest.files().map(|file| {
        let (name, path) = (&file.path, literal(&folder.join(&file.path)));
        quote!((#name, include_bytes!(#path).as_slice()))
    });
    let (manifest, folder) = (literal(&path), literal(&folder));
    Ok(quote! {{
        static EMBEDDED: ::butterfly::Embedded = ::butterfly::Embedded {
            dir: #folder,
            manifest: include_str!(#manifest),
            files: &[#(#files),*],
        };
        &EMBEDDED
    }})
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::manifest::{ConfigRef, FileEntry, ProductEntry, SCHEMA};
    use butterfly_ir::plan::Proof;
    use butterfly_ir::{Dtype, Product, Target};

    /// Every file that opening the folder reads must be embedded, those of matrix products too.
    #[test]
    fn every_file_of_the_manifest_is_embedded() {
        let product = ProductEntry {
            target: Target::Metal,
            product: Product {
                entry: "product".into(),
                dtype: Dtype::Bf16,
                threads: 1,
                shared_bytes: 0,
                m_tile: 1,
                n_tile: 1,
                k_tile: 1,
            },
            files: vec![FileEntry {
                path: "kernels/product-bf16.metal".into(),
                bytes: 0,
                blake3: String::new(),
            }],
        };
        let manifest = Manifest {
            schema: SCHEMA,
            compiler: "0".into(),
            pattern: "causal".into(),
            sparsity: butterfly_ir::build::causal().into(),
            config: ConfigRef {
                file: "config.json".into(),
                model_type: "llama".into(),
                blake3: String::new(),
            },
            layers: vec![],
            capacity: 1,
            proof: Proof {
                coverage: vec![1.0],
                coverage_at_most: None,
                full_at: Some(1),
                tokens: 1,
                max_degree: 1,
                max_in_degree: 1,
                causal: true,
                empty_queries: 0,
            },
            variants: vec![],
            kept: vec![],
            kernels: vec![],
            products: vec![product],
            scorers: Vec::new(),
            delta_rules: Vec::new(),
            grouped: Vec::new(),
            digest: String::new(),
        };
        let folder = tempfile::tempdir().expect("folder");
        let text = serde_json::to_string(&manifest).expect("text");
        std::fs::write(folder.path().join("manifest.json"), text).expect("written");
        let dir = folder.path().to_str().expect("utf-8");
        let tokens = embed(dir, Path::new("/")).expect("tokens").to_string();
        for file in manifest.files() {
            assert!(tokens.contains(&file.path), "{} in {tokens}", file.path);
        }
    }
}
