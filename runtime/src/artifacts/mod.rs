//! Artifact folders: `manifest.json` and `kernels/`.
//!
//! In:  a manifest and its files, or a folder. Out: a folder that appears whole or not
//! at all, or an [`Artifacts`] of which every byte was checked.

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
    /// The system refused an operation.
    #[error("{}: cannot {what}: {error}{}", path.display(), way_out(error))]
    Io {
        /// What was to be done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody else writes to the same folder.
    #[error("{}: another butterfly is writing there; wait for it, or choose another folder", .0.display())]
    Busy(PathBuf),
    /// The output folder holds something else.
    #[error("{}: is not an artifact folder and not empty; choose another folder, or empty this one", .0.display())]
    Foreign(PathBuf),
    /// The folder was made for another version.
    #[error("{}: made by schema {found}, this version reads {expected}; compile again with `butterfly compile`", path.display())]
    Schema {
        /// The manifest.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// What is read.
        expected: u32,
    },
    /// The manifest is not what was written.
    #[error("{}: {what}; compile again with `butterfly compile`", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// No kernel runs on the device that is here.
    #[error("{}: no kernels for {own} among {there:?}; {way_out}", dir.display())]
    Architecture {
        /// The artifact folder.
        dir: PathBuf,
        /// Compute capability of the device.
        own: Sm,
        /// Those that there are kernels for.
        there: Vec<String>,
        /// What makes them.
        way_out: String,
    },
    /// The device does not say what it runs.
    #[error("the device has no compute capability")]
    NoCapability,
    /// A kernel's file is none.
    #[error(transparent)]
    Image(#[from] LaunchError),
    /// No kernel fits.
    #[error("no {target} kernel for {wanted} in {}; {way_out}", dir.display())]
    Missing {
        /// The artifact folder.
        dir: PathBuf,
        /// The target.
        target: Target,
        /// What was asked for.
        wanted: String,
        /// What makes it.
        way_out: String,
    },
    /// No kernel has such heads: the folder was made for another model.
    #[error("{}: was compiled for {made_for}, not for {wanted}; {way_out}", dir.display())]
    OtherModel {
        /// The artifact folder.
        dir: PathBuf,
        /// Its model.
        made_for: String,
        /// The model or the heads that were asked for.
        wanted: String,
        /// What makes a folder for these.
        way_out: String,
    },
    /// Layers that keep their attention, where the folder was made for a model that replaces all.
    #[error("{}: holds no kernels for layers that keep their attention, since its pattern replaces every layer; {way_out}", dir.display())]
    NoDense {
        /// The artifact folder.
        dir: PathBuf,
        /// What makes them.
        way_out: String,
    },
    /// Kernels cannot be added to those of something else.
    #[error("{}: its kernels are for another {what}: {there}, not {given}; leave --add out to replace them, or choose another folder", dir.display())]
    NotTheSame {
        /// The artifact folder.
        dir: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the folder was made for.
        there: String,
        /// What was to be added.
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

/// Names the operation and the file of a failed system call.
fn failed(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> ArtifactError {
    let path = path.into();
    move |error| ArtifactError::Io { what, path, error }
}
