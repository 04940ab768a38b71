//! Opens an artifact folder and checks it.

use super::{ArtifactError, MANIFEST, failed};
use butterfly_ir::manifest::{FileEntry, KernelEntry, Manifest, SCHEMA};
use butterfly_ir::{KernelSpec, Target};
use std::fs;
use std::path::{Path, PathBuf};

/// Largest manifest or kernel file that is read, in bytes.
const MOST_BYTES: u64 = 256 << 20;

/// An artifact folder whose manifest and files were checked when it was opened.
#[derive(Clone, Debug)]
pub struct Artifacts {
    dir: PathBuf,
    embedded: Option<&'static Embedded>,
    /// What the folder holds.
    pub manifest: Manifest,
}

/// An artifact folder that is embedded in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embedded {
    /// Path of the folder when the program was built, for messages.
    pub dir: &'static str,
    /// The text of its manifest.
    pub manifest: &'static str,
    /// The path of each file relative to the folder, and its content.
    pub files: &'static [(&'static str, &'static [u8])],
}

impl Artifacts {
    /// Opens a folder and checks it.
    ///
    /// Checks the schema version and the digest of the manifest, that the manifest says what this
    /// version would write, the length and digest of each file, and that the text of each kernel
    /// begins with the geometry that the manifest has for it.
    ///
    /// # Errors
    /// [`ArtifactError::Schema`], [`ArtifactError::Malformed`], or [`ArtifactError::Io`].
    pub fn open(dir: &Path) -> Result<Self, ArtifactError> {
        let path = dir.join(MANIFEST);
        let text = String::from_utf8(read(&path)?).map_err(|_| malformed(&path, "is not UTF-8"))?;
        Self::checked(Self {
            dir: dir.to_path_buf(),
            embedded: None,
            manifest: parse(&path, &text)?,
        })
    }

    /// Opens a folder that is embedded in this program, with the checks of [`Artifacts::open`].
    ///
    /// # Errors
    /// As [`Artifacts::open`].
    pub fn embedded(embedded: &'static Embedded) -> Result<Self, ArtifactError> {
        let dir = Path::new(embedded.dir);
        Self::checked(Self {
            dir: dir.to_path_buf(),
            embedded: Some(embedded),
            manifest: parse(&dir.join(MANIFEST), embedded.manifest)?,
        })
    }

    fn checked(artifacts: Self) -> Result<Self, ArtifactError> {
        let path = artifacts.dir.join(MANIFEST);
        for file in artifacts.manifest.files() {
            let name = file.path.strip_prefix("kernels/").unwrap_or_default();
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-' || c == '_';
            if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
                return Err(malformed(
                    &path,
                    &format!("names the file `{}` outside kernels/", file.path),
                ));
            }
            artifacts.content(file)?;
        }
        let checked = artifacts.manifest.check();
        checked.map_err(|error| malformed(&path, &error.to_string()))?;
        let kernels = artifacts.manifest.kernels.iter();
        let kernels = kernels.filter(|kernel| kernel.target != Target::Cpu);
        let kernels = kernels.map(|kernel| (&kernel.files, kernel.geometry.heading()));
        let products = artifacts.manifest.products.iter();
        let products = products.map(|entry| (&entry.files, entry.product.heading()));
        let scorers = artifacts.manifest.scorers.iter();
        let scorers = scorers.map(|entry| (&entry.files, entry.scorer.heading()));
        let rules = artifacts.manifest.delta_rules.iter();
        let rules = rules.map(|entry| (&entry.files, entry.rule.heading()));
        let grouped = artifacts.manifest.grouped.iter();
        let grouped = grouped.map(|entry| (&entry.files, entry.grouped.heading()));
        let beside = products.chain(scorers).chain(rules).chain(grouped);
        let all = kernels.chain(beside);
        for (files, heading) in all {
            let text = artifacts.read(files.first(), "the text of a kernel")?;
            if !text.starts_with(heading.as_bytes()) {
                return Err(malformed(
                    &path,
                    "says of a kernel that it is launched otherwise than its text does",
                ));
            }
        }
        Ok(artifacts)
    }

    /// Whether the folder is embedded in this program.
    pub(super) fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Path of the folder; of an embedded one, the path when the program was built.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The kernel for `spec` on `target`.
    ///
    /// # Errors
    /// [`ArtifactError::OtherModel`] if the folder's kernels have other heads, else
    /// [`ArtifactError::Missing`], which names the command that adds the kernel.
    pub fn select(&self, spec: &KernelSpec, target: Target) -> Result<&KernelEntry, ArtifactError> {
        let fits = |kernel: &&KernelEntry| kernel.target == target && kernel.spec == *spec;
        let kernel = self.manifest.kernels.iter().find(fits);
        kernel.ok_or_else(|| self.missing(spec, target))
    }

    /// Reads the form of a kernel that is launched (SPIR-V, WGSL, a cubin and so on), and checks it
    /// again.
    ///
    /// # Errors
    /// As [`Artifacts::open`].
    pub fn image(&self, kernel: &KernelEntry) -> Result<Vec<u8>, ArtifactError> {
        self.last(&kernel.key, &kernel.files)
    }

    /// Reads the last of `files`, the form that is launched, and checks it again. `name` is for
    /// messages.
    pub(super) fn last(&self, name: &str, files: &[FileEntry]) -> Result<Vec<u8>, ArtifactError> {
        self.read(files.last(), &format!("kernel {name}"))
    }

    /// The content of `file`; if it is `None`, an error that `what` has no file.
    fn read(&self, file: Option<&FileEntry>, what: &str) -> Result<Vec<u8>, ArtifactError> {
        let path = self.dir.join(MANIFEST);
        let missing = || malformed(&path, &format!("{what} has no file"));
        self.content(file.ok_or_else(missing)?)
    }

    /// Reads one of the folder's files, and checks its length and digest again.
    pub(super) fn content(&self, file: &FileEntry) -> Result<Vec<u8>, ArtifactError> {
        self.read_checked(&file.path, file.bytes, &file.blake3)
    }

    fn read_checked(&self, path: &str, bytes: u64, digest: &str) -> Result<Vec<u8>, ArtifactError> {
        let content = match self.embedded {
            None => read(&self.dir.join(path))?,
            Some(embedded) => {
                let file = embedded.files.iter().find(|(name, _)| *name == path);
                let missing = || malformed(&self.dir.join(path), "is not in the program");
                file.ok_or_else(missing)?.1.to_vec()
            }
        };
        let path = self.dir.join(path);
        if content.len() as u64 != bytes {
            return Err(malformed(
                &path,
                &format!("has {} bytes, the manifest says {bytes}", content.len()),
            ));
        }
        match blake3::hash(&content).to_hex().as_str() == digest {
            true => Ok(content),
            false => Err(malformed(
                &path,
                "does not have the digest that the manifest says: it was changed",
            )),
        }
    }
}

fn malformed(path: &Path, what: &str) -> ArtifactError {
    ArtifactError::Malformed {
        path: path.to_path_buf(),
        what: what.to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ArtifactError> {
    let meta = fs::symlink_metadata(path).map_err(failed("read", path))?;
    if !meta.is_file() {
        return Err(malformed(path, "is not a plain file"));
    }
    if meta.len() > MOST_BYTES {
        return Err(malformed(
            path,
            &format!(
                "has {} bytes, more than the {MOST_BYTES} that are read",
                meta.len()
            ),
        ));
    }
    fs::read(path).map_err(failed("read", path))
}

fn parse(path: &Path, text: &str) -> Result<Manifest, ArtifactError> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema: u64,
    }
    let json = |error: serde_json::Error| malformed(path, &format!("is no manifest ({error})"));
    let Version { schema } = serde_json::from_str(text).map_err(json)?;
    if schema != u64::from(SCHEMA) {
        return Err(ArtifactError::Schema {
            path: path.to_path_buf(),
            found: schema,
            expected: SCHEMA,
        });
    }
    let manifest: Manifest = serde_json::from_str(text).map_err(json)?;
    match seal(&unsealed(text, &manifest.digest)) == manifest.digest {
        true => Ok(manifest),
        false => Err(malformed(
            path,
            "does not have the digest it says: it was changed",
        )),
    }
}

/// The text of a manifest with its digest filled in.
pub(super) fn sealed(manifest: &Manifest) -> Result<String, serde_json::Error> {
    let empty = Manifest {
        digest: String::new(),
        ..manifest.clone()
    };
    let text = serde_json::to_string_pretty(&empty)? + "\n";
    let whole = Manifest {
        digest: seal(&text),
        ..empty
    };
    Ok(serde_json::to_string_pretty(&whole)? + "\n")
}

fn seal(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// The text of a manifest with its last member, the digest, empty: the text that was hashed.
fn unsealed(text: &str, digest: &str) -> String {
    match text.rsplit_once(&format!("\"digest\": \"{digest}\"")) {
        Some((before, after)) => format!("{before}\"digest\": \"\"{after}"),
        None => String::new(),
    }
}
