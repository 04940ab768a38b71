//! The path of an artifact folder → an expression that holds its files.
//!
//! In:  a string literal, absolute or from the package's folder. Out: a reference to
//! `butterfly::Embedded`, whose digests are checked when it is opened.

use butterfly_ir::manifest::Manifest;
use proc_macro2::{Literal, TokenStream};
use quote::quote;
use std::path::{Path, PathBuf};

/// Why a folder cannot be embedded.
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
    let files = manifest.kernels.iter().flat_map(|kernel| &kernel.files);
    let files = files.map(|file| {
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
