//! Writes an artifact folder, completely or not at all.
//!
//! Under a lock file, everything is written to a temporary folder beside the final one, which is
//! then renamed into place. A writer that is killed leaves its temporary folder behind; the next
//! writer removes it.

use super::{ArtifactError, MANIFEST, failed};
use butterfly_ir::manifest::Manifest;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes an artifact folder. On Linux, an existing one is replaced atomically if the file system
/// can exchange two names; otherwise by two renames.
///
/// `files` are pairs of a path relative to `dir` and its content. The digest in the manifest's file
/// is computed here.
///
/// # Errors
/// [`ArtifactError::Busy`] while another writer holds the lock, [`ArtifactError::Foreign`] if `dir`
/// is neither empty nor an artifact folder, [`ArtifactError::Malformed`] if `dir` has no name, and
/// [`ArtifactError::Io`]. `dir` is then unchanged, unless the error came from one of the two
/// renames or from deleting the replaced folder.
pub fn write(
    dir: &Path,
    manifest: &Manifest,
    files: &[(String, Vec<u8>)],
) -> Result<(), ArtifactError> {
    write_from(dir, || Ok((manifest.clone(), files.to_vec()))).map(|_| ())
}

/// A manifest, and the files that it names.
type Content = (Manifest, Vec<(String, Vec<u8>)>);

/// As [`write`], but calls `make` for the content once the folder is locked, and returns its
/// manifest.
pub(super) fn write_from(
    dir: &Path,
    make: impl FnOnce() -> Result<Content, ArtifactError>,
) -> Result<Manifest, ArtifactError> {
    let place = Place::of(dir)?;
    fs::create_dir_all(&place.parent).map_err(failed("create the folder", &place.parent))?;
    let _lock = Lock::take(&place, dir)?;
    place.remove_leftovers()?;
    let exists = check_replaceable(dir)?;
    let (manifest, files) = make()?;

    let prefix = place.sibling("tmp-");
    let temporary = tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(&place.parent)
        .map_err(failed("create a temporary folder in", &place.parent))?;
    fill(temporary.path(), dir, &manifest, &files)?;
    swap(temporary.path(), dir, &place, exists)?;
    // After an exchange, this deletes the old artifacts; after a rename, there is nothing to
    // delete.
    match temporary.close() {
        Ok(()) => Ok(manifest),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(manifest),
        Err(error) => Err(failed("remove the replaced artifacts of", dir)(error)),
    }
}

/// The parent and the name of a folder.
struct Place {
    parent: PathBuf,
    name: OsString,
}

impl Place {
    fn of(dir: &Path) -> Result<Self, ArtifactError> {
        let name = dir.file_name().ok_or_else(|| ArtifactError::Malformed {
            path: dir.to_path_buf(),
            what: "is no folder name to write artifacts to".into(),
        })?;
        let parent = dir
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        Ok(Self {
            parent: parent.to_path_buf(),
            name: name.to_os_string(),
        })
    }

    /// The hidden name `.NAME.suffix`, for a file or folder beside this one.
    fn sibling(&self, suffix: &str) -> OsString {
        let mut name = OsString::from(".");
        name.push(&self.name);
        name.push(".");
        name.push(suffix);
        name
    }

    /// Removes the temporary folders of writers that were killed, and puts back a folder that one of
    /// them had moved aside; the caller holds the lock.
    fn remove_leftovers(&self) -> Result<(), ArtifactError> {
        let (aside, dir) = (
            self.parent.join(self.sibling("old")),
            self.parent.join(&self.name),
        );
        match (aside.exists(), dir.exists()) {
            (true, false) => fs::rename(&aside, &dir).map_err(failed("put back", &dir))?,
            (true, true) => fs::remove_dir_all(&aside).map_err(failed("remove", &aside))?,
            (false, _) => {}
        }
        let prefix = self.sibling("tmp-");
        let entries = fs::read_dir(&self.parent).map_err(failed("list", &self.parent))?;
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.parent))?;
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_encoded_bytes())
            {
                fs::remove_dir_all(entry.path())
                    .map_err(failed("remove the leftover", entry.path()))?;
            }
        }
        Ok(())
    }
}

/// A lock file beside the folder, deleted on drop.
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(place: &Place, dir: &Path) -> Result<Self, ArtifactError> {
        let path = place.parent.join(place.sibling("lock"));
        loop {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(failed("create the lock", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(ArtifactError::Busy(dir.to_path_buf()));
                }
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path)(error)),
            }
            // The previous writer may have deleted the file between our open and our lock.
            if is_same(&file, &path) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(unix)]
fn is_same(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Whether `dir` exists; an error if it exists but may not be replaced, because it is neither empty
/// nor has a manifest.
pub(super) fn check_replaceable(dir: &Path) -> Result<bool, ArtifactError> {
    match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("look at", dir)(error)),
        Ok(meta) if !meta.is_dir() => return Err(ArtifactError::Foreign(dir.to_path_buf())),
        Ok(_) => {}
    }
    let is_empty = fs::read_dir(dir)
        .map_err(failed("list", dir))?
        .next()
        .is_none();
    match is_empty || dir.join(MANIFEST).is_file() {
        true => Ok(true),
        false => Err(ArtifactError::Foreign(dir.to_path_buf())),
    }
}

fn fill(
    temporary: &Path,
    dir: &Path,
    manifest: &Manifest,
    files: &[(String, Vec<u8>)],
) -> Result<(), ArtifactError> {
    let kernels = temporary.join("kernels");
    fs::create_dir(&kernels).map_err(failed("create", dir.join("kernels")))?;
    for (path, bytes) in files {
        write_synced(&temporary.join(path), bytes).map_err(failed("write", dir.join(path)))?;
    }
    let text = super::open::sealed(manifest).map_err(|error| ArtifactError::Malformed {
        path: dir.join(MANIFEST),
        what: error.to_string(),
    })?;
    write_synced(&temporary.join(MANIFEST), text.as_bytes())
        .map_err(failed("write", dir.join(MANIFEST)))?;
    for folder in [&kernels, temporary] {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("sync", dir))?;
    }
    // Temporary folders are private to the user; artifacts get the permissions of any new folder.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(&kernels)
            .map_err(failed("look at", &kernels))?
            .permissions()
            .mode();
        fs::set_permissions(temporary, fs::Permissions::from_mode(mode))
            .map_err(failed("open up", dir))?;
    }
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Puts `temporary` in the place of `dir`.
fn swap(temporary: &Path, dir: &Path, place: &Place, exists: bool) -> Result<(), ArtifactError> {
    #[cfg(target_os = "linux")]
    if exists {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, temporary, CWD, dir, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            // Not every file system can exchange two names.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(failed("replace", dir)(error.into())),
        }
    }
    if exists {
        let aside = place.parent.join(place.sibling("old"));
        fs::rename(dir, &aside).map_err(failed("move aside", dir))?;
        fs::rename(temporary, dir).map_err(failed("move into place", dir))?;
        return fs::remove_dir_all(&aside).map_err(failed("remove", aside));
    }
    fs::rename(temporary, dir).map_err(failed("move into place", dir))
}
