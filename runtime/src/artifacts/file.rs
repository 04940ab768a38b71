//! Writes one file, completely or not at all.
//!
//! In:  a path and bytes.
//! Out: the file. A new one gets default permissions, an existing one keeps its own.
//!
//! Symbolic links to files are followed. Anything that is neither a file nor a folder (a terminal,
//! a pipe, `/dev/null`) is written to directly.

use super::{ArtifactError, failed};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Writes a file atomically: to a temporary file in the same folder, which is then renamed.
///
/// # Errors
/// [`ArtifactError::Io`]; an existing file is then unchanged.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
    write(path, bytes).map_err(failed("write", path))
}

/// Checks, before long work, whether [`write_file`] can create a file at `path`. Leaves no file
/// behind.
///
/// # Errors
/// [`ArtifactError::Io`].
pub fn check_file(path: &Path) -> Result<(), ArtifactError> {
    let check = || match Place::of(path)? {
        Place::Device => Ok(()),
        Place::File(path) => temporary(&path).map(drop),
    };
    check().map_err(failed("write", path))
}

/// What a path refers to.
enum Place {
    /// An existing file, with symbolic links resolved, or a path at which nothing exists yet.
    File(PathBuf),
    /// Anything else, such as a device or a pipe.
    Device,
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(meta) if meta.is_file() => fs::canonicalize(path).map(Self::File),
            Ok(_) => Ok(Self::Device),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::File(path.into())),
            Err(error) => Err(error),
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = match Place::of(path)? {
        Place::File(path) => path,
        Place::Device => return File::options().write(true).open(path)?.write_all(bytes),
    };
    let mut file = temporary(&path)?;
    if let Ok(before) = fs::metadata(&path) {
        file.as_file().set_permissions(before.permissions())?;
    }
    // Written through the inner `File`: errors of `NamedTempFile` name the temporary path.
    file.as_file_mut().write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(())
}

/// An empty file in the folder of `path`, with the default permissions that the umask allows. It is
/// deleted on drop unless it is persisted.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    tempfile::Builder::new().make_in(parent, |path| File::create_new(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("folder");
        let names = entries.map(|e| e.expect("entry").file_name().into_string().expect("utf-8"));
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_whole_and_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a");
        check_file(&path).expect("it can be written");
        assert!(names(folder.path()).is_empty());
        write_file(&path, b"one").expect("written");
        write_file(&path, b"two").expect("replaced");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(names(folder.path()), ["a"]);
        write_file(Path::new("/dev/null"), b"nothing").expect("swallowed");
        assert_eq!(fs::read("/dev/null").expect("read"), b"");
    }

    #[test]
    fn what_cannot_be_written_says_why() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("file");
        write_file(&file, b"").expect("written");
        for (path, why) in [
            (folder.path().to_path_buf(), "is a directory; name a file"),
            (file.join("a"), "a part of the path is a file"),
            (folder.path().join("none/a"), "name a folder that is there"),
        ] {
            for error in [check_file(&path), write_file(&path, b"")] {
                let error = error.expect_err("refused").to_string();
                let name = path.display().to_string();
                assert!(error.starts_with(&name) && error.contains(why), "{error}");
            }
        }
        assert_eq!(names(folder.path()), ["file"]);
    }

    /// A new file gets default permissions; an existing one keeps its own.
    #[cfg(unix)]
    #[test]
    fn permissions_and_links_are_kept() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().expect("folder");
        let [ours, plain, link] = ["ours", "plain", "link"].map(|name| folder.path().join(name));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode();
        write_file(&ours, b"").expect("written");
        File::create_new(&plain).expect("created");
        assert_eq!(mode(&ours), mode(&plain));
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o640)).expect("changed");
        symlink(&ours, &link).expect("linked");
        write_file(&link, b"new").expect("written");
        assert_eq!(fs::read(&ours).expect("read"), b"new");
        assert_eq!(mode(&ours) & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    }
}
