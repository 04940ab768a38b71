//! Artifact folders: `manifest.json` and `kernels/`.
//!
//! In:  a manifest and its files, or a folder.
//! Out: a folder that is written completely or not at all, or an [`Artifacts`] whose every byte was
//! checked.

mod add;
mod advice;
mod file;
mod open;
mod select;
mod write;

pub use add::add;
pub use file::{check_file, write_file};
pub use open::{Artifacts, Embedded};
pub use write::write;

use crate::LaunchError;
use butterfly_ir::{Sm, Target};
use std::io;
use std::path::PathBuf;

/// Name of the manifest in an artifact folder.
pub const MANIFEST: &str = "manifest.json";

/// Why artifacts could not be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file system operation failed.
    #[error("{}: cannot {what}: {error}{}", path.display(), way_out(error))]
    Io {
        /// The operation, as it follows "cannot".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// Another writer holds the lock of this folder.
    #[error("{}: another butterfly is writing there; wait for it, or choose another folder", .0.display())]
    Busy(PathBuf),
    /// The output path exists, and is neither empty nor an artifact folder.
    #[error("{}: is not an artifact folder and not empty; choose another folder, or empty this one", .0.display())]
    Foreign(PathBuf),
    /// The manifest has another schema version.
    #[error("{}: made by schema {found}, this version reads {expected}; compile again with `butterfly compile`", path.display())]
    Schema {
        /// The manifest.
        path: PathBuf,
        /// Its schema version.
        found: u64,
        /// The schema version that this version of the crate reads.
        expected: u32,
    },
    /// The manifest or one of its files is invalid, or was changed after it was written.
    #[error("{}: {what}; compile again with `butterfly compile`", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The folder has no kernels that this NVIDIA device can run.
    #[error("{}: no kernels for {own} among {there:?}; {way_out}", dir.display())]
    Architecture {
        /// The artifact folder.
        dir: PathBuf,
        /// Compute capability of the device.
        own: Sm,
        /// Architectures that the folder has kernels for.
        there: Vec<String>,
        /// How to get the missing kernels.
        way_out: String,
    },
    /// The compute capability of an NVIDIA device is not known.
    #[error("the device has no compute capability")]
    NoCapability,
    /// A kernel cannot be launched: its file or its geometry is invalid for the device.
    #[error(transparent)]
    Image(#[from] LaunchError),
    /// The folder has no kernel for this specification and target.
    #[error("no {target} kernel for {wanted} in {}; {way_out}", dir.display())]
    Missing {
        /// The artifact folder.
        dir: PathBuf,
        /// The target.
        target: Target,
        /// The kernel that was asked for.
        wanted: String,
        /// How to get the missing kernel.
        way_out: String,
    },
    /// The folder was compiled for a model with other attention heads.
    #[error("{}: was compiled for {made_for}, not for {wanted}; {way_out}", dir.display())]
    OtherModel {
        /// The artifact folder.
        dir: PathBuf,
        /// The model that it was compiled for, and its heads.
        made_for: String,
        /// The heads that were asked for, and the model where it is known.
        wanted: String,
        /// How to compile a folder for these.
        way_out: String,
    },
    /// Layers keep their own attention, but the folder's pattern replaces all layers like them.
    #[error("{}: holds no kernels for layers that keep their attention, {own}, since its pattern replaces every such layer; {way_out}", dir.display())]
    NotKept {
        /// The artifact folder.
        dir: PathBuf,
        /// The attention, as a pattern.
        own: String,
        /// How to get the missing kernels.
        way_out: String,
    },
    /// A layer has a pattern that none of the layers has for which the folder was compiled.
    #[error("{}: none of the layers for which it was compiled has the pattern {pattern}; compile again with the pattern and the layers that are run", dir.display())]
    NotSwapped {
        /// The artifact folder.
        dir: PathBuf,
        /// The pattern.
        pattern: String,
    },
    /// Kernels cannot be added, because the folder was compiled from other inputs.
    #[error("{}: its kernels are for another {what}: {there}, not {given}; leave --add out to replace them, or choose another folder", dir.display())]
    NotTheSame {
        /// The artifact folder.
        dir: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the folder was made for.
        there: String,
        /// What the new kernels were made for.
        given: String,
    },
}

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; choose a folder that you may write to"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "; free space, or choose another folder"
        }
        io::ErrorKind::NotADirectory => "; a part of the path is a file",
        io::ErrorKind::IsADirectory => "; name a file in it",
        io::ErrorKind::NotFound => "; name a folder that is there",
        _ => "",
    }
}

/// Makes an [`ArtifactError::Io`] of a failed system call on `path`.
fn failed(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ArtifactError {
    let path = path.into();
    move |error| ArtifactError::Io { what, path, error }
}
