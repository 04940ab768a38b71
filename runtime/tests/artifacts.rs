//! Artifact folders: what was written is read back, and anything else is refused.

use butterfly_ir::kernel::ENTRY;
use butterfly_ir::manifest::{self, ConfigRef, FileEntry, KernelEntry, Manifest, SCHEMA};
use butterfly_ir::plan::{Proof, SwappedLayer, Variant};
use butterfly_ir::{
    Dtype, Geometry, KernelSpec, Role, RowProgram, Rows, Sparsity, Target, build, key,
};
use butterfly_runtime::Device;
use butterfly_runtime::artifacts::{ArtifactError, Artifacts, Embedded, add, write};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

fn spec() -> KernelSpec {
    KernelSpec {
        score: Default::default(),
        role: Role::Prefill,
        head_dim: 64,
        v_head_dim: 64,
        group: 4,
        dtype: Dtype::F32,
        block: 128,
        rows: Rows::ClosedForm(RowProgram::default()),
    }
}

/// A kernel's text: its heading, followed by `size` bytes.
fn text(size: usize) -> Vec<u8> {
    let mut text = geometry().heading().into_bytes();
    text.resize(text.len() + size, 7);
    text
}

fn geometry() -> Geometry {
    Geometry::new([256, 1, 1], [64, 32], 0)
}

/// The content of a folder with one kernel, whose text is [`text`].
fn content(size: usize) -> (Manifest, Vec<(String, Vec<u8>)>) {
    let bytes = text(size);
    let path = "kernels/0123.wgsl".to_string();
    let geometry = geometry();
    let entry = KernelEntry {
        key: key::of(&spec(), Target::Webgpu),
        target: Target::Webgpu,
        spec: spec(),
        entry: ENTRY.into(),
        geometry,
        grid: manifest::grid_formulas(&spec(), &geometry),
        alone: manifest::alone("kernel", &geometry),
        spread: manifest::spread("kernel", &spec(), &geometry),
        arguments: manifest::arguments(&spec(), &geometry),
        registers: None,
        spills: None,
        files: vec![FileEntry {
            path: path.clone(),
            bytes: bytes.len() as u64,
            blake3: blake3::hash(&bytes).to_hex().to_string(),
        }],
    };
    let sparsity = Sparsity::from(build::causal() & build::local(1));
    let manifest = Manifest {
        schema: SCHEMA,
        compiler: "0.1.0".into(),
        pattern: sparsity.to_string(),
        sparsity,
        config: ConfigRef {
            file: "config.json".into(),
            model_type: "llama".into(),
            blake3: String::new(),
        },
        layers: vec![SwappedLayer { layer: 3, index: 0 }],
        capacity: 1024,
        proof: Proof {
            tokens: 1024,
            coverage: vec![1.0],
            coverage_at_most: None,
            full_at: Some(1),
            max_degree: 8,
            max_in_degree: 8,
            causal: true,
            empty_queries: 0,
        },
        variants: vec![Variant {
            pattern: build::causal() & build::local(1),
            rows: spec().rows,
        }],
        kept: Vec::new(),
        kernels: vec![entry],
        products: Vec::new(),
        scorers: Vec::new(),
        delta_rules: Vec::new(),
        grouped: Vec::new(),
        digest: String::new(),
    };
    (manifest, vec![(path, bytes)])
}

/// Bytes of [`text`].
fn length(size: usize) -> u64 {
    text(size).len() as u64
}

fn write_content(dir: &Path, size: usize) -> Result<(), ArtifactError> {
    let (manifest, files) = content(size);
    write(dir, &manifest, &files)
}

/// Names in a folder, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("folder");
    let mut names: Vec<_> = entries
        .map(|e| e.expect("entry").file_name().into_string().expect("utf-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_and_replaced() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("a/b/artifacts");
    for size in [100, 200] {
        write_content(&dir, size).expect("written");
        let artifacts = Artifacts::open(&dir).expect("opened");
        let kernel = artifacts.select(&spec(), Target::Webgpu).expect("kernel");
        assert_eq!(artifacts.image(kernel).expect("image"), text(size));
    }
    assert_eq!(names(&root.path().join("a/b")), ["artifacts"]);
    let again = root.path().join("again");
    write_content(&again, 200).expect("written");
    let manifest = |dir: &Path| fs::read_to_string(dir.join("manifest.json")).expect("manifest");
    assert_eq!(manifest(&dir), manifest(&again));
}

#[test]
fn a_missing_kernel_names_the_command_that_makes_it() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    write_content(&dir, 1).expect("written");
    let artifacts = Artifacts::open(&dir).expect("opened");
    let other = KernelSpec {
        head_dim: 80,
        ..spec()
    };
    let says = |artifacts: &Artifacts, spec: &KernelSpec, target, parts: &[&str]| {
        let error = artifacts.select(spec, target).expect_err("missing");
        let message = error.to_string();
        for part in parts {
            assert!(message.contains(part), "no `{part}` in: {message}");
        }
    };
    // The suggested command keeps the kernels that are there.
    let dir = dir.display().to_string();
    let command = format!(
        "butterfly compile CONFIG --pattern 'block 128 stage_by swapped_index causal & local(1)' \
         --capacity 1024 --target vulkan --dtype f32 --add -o {dir}"
    );
    says(&artifacts, &spec(), Target::Vulkan, &[&command]);
    let none = KernelSpec {
        dtype: Dtype::Bf16,
        ..spec()
    };
    says(&artifacts, &none, Target::Vulkan, &["vulkan has no bf16"]);
    // Heads that no kernel of the folder has belong to another model.
    let parts = ["config.json (llama)", "64/64", "80/64", "another folder"];
    says(&artifacts, &other, Target::Webgpu, &parts);

    let manifest = fs::read_to_string(artifacts.dir().join("manifest.json")).expect("manifest");
    let kernel: &[u8] = text(1).leak();
    let embedded = Box::leak(Box::new(Embedded {
        dir: "/build/out",
        manifest: manifest.leak(),
        files: vec![("kernels/0123.wgsl", kernel)].leak(),
    }));
    let embedded = Artifacts::embedded(embedded).expect("opened");
    let parts = ["inside this program", "target vulkan", "element type f32"];
    says(&embedded, &spec(), Target::Vulkan, &parts);
}

/// Kernels that are added one by one, in any order, give the same folder as all of them at once.
#[test]
fn kernels_are_added() {
    let root = tempfile::tempdir().expect("root");
    let (manifest, files) = content(8);
    let kernel = |target, form: &str, size: usize| {
        let (key, bytes) = (key::of(&spec(), target), text(size));
        let path = format!("kernels/{key}.{form}");
        let mut entry = manifest.kernels[0].clone();
        (entry.key, entry.target) = (key, target);
        entry.files[0] = FileEntry {
            path: path.clone(),
            bytes: bytes.len() as u64,
            blake3: blake3::hash(&bytes).to_hex().to_string(),
        };
        (entry, (path, bytes))
    };
    let (a, b) = (
        kernel(Target::Webgpu, "wgsl", 1),
        kernel(Target::Metal, "metal", 2),
    );
    let with = |kernels: &[&(KernelEntry, (String, Vec<u8>))]| {
        let made = Manifest {
            kernels: kernels.iter().map(|(entry, _)| entry.clone()).collect(),
            ..manifest.clone()
        };
        let files = kernels.iter().map(|(_, file)| file.clone());
        (made, files.collect::<Vec<_>>())
    };
    let (both, contents) = with(&[&a, &b]);
    let at_once = root.path().join("at once");
    write(&at_once, &both, &contents).expect("written");
    let listed = |dir: &Path| fs::read_to_string(dir.join("manifest.json")).expect("manifest");
    let mut paths = contents
        .iter()
        .map(|(path, _)| path.replace("kernels/", ""));
    let mut paths = [paths.next(), paths.next()].map(|path| path.expect("two kernels"));
    paths.sort();
    for (name, order) in [("ab", [&a, &b]), ("ba", [&b, &a])] {
        let dir = root.path().join(name);
        for kernel in [order[0], order[1], order[0]] {
            let (made, file) = with(&[kernel]);
            add(&dir, &made, &file).expect("added");
        }
        assert_eq!(listed(&dir), listed(&at_once), "{name}");
        assert_eq!(names(&dir.join("kernels")), paths);
        Artifacts::open(&dir).expect("whole");
    }
    // A kernel that is made again, with other bytes, replaces the old one.
    let dir = root.path().join("ab");
    let (made, file) = with(&[&kernel(Target::Webgpu, "wgsl", 9)]);
    let now = add(&dir, &made, &file).expect("added");
    assert_eq!(now.kernels.len(), 2);
    let artifacts = Artifacts::open(&dir).expect("whole");
    assert_eq!(artifacts.image(&now.kernels[0]).expect("image"), text(9));

    // Kernels that were made from other inputs are refused.
    let before = listed(&dir);
    let other = |what: &str, manifest: Manifest| {
        let error = add(&dir, &manifest, &files).expect_err("refused");
        assert!(matches!(error, ArtifactError::NotTheSame { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(listed(&dir), before);
    };
    let capacity = 2048;
    other(
        "capacity",
        Manifest {
            capacity,
            ..manifest.clone()
        },
    );
    let compiler = "0.0.9".into();
    other(
        "version",
        Manifest {
            compiler,
            ..manifest.clone()
        },
    );
    let mut sparsity = manifest.sparsity.clone();
    sparsity.block = 64;
    other(
        "pattern",
        Manifest {
            sparsity,
            ..manifest.clone()
        },
    );
    let mut config = manifest.config.clone();
    config.blake3 = "0".into();
    other(
        "config",
        Manifest {
            config,
            ..manifest.clone()
        },
    );
    // Nothing is added to a damaged folder.
    fs::write(dir.join(&contents[1].0), "changed").expect("written");
    let error = add(&dir, &manifest, &files).expect_err("damaged");
    assert!(matches!(error, ArtifactError::Malformed { .. }), "{error}");
}

#[test]
fn every_changed_byte_is_noticed() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    write_content(&dir, 64).expect("written");
    for name in ["manifest.json", "kernels/0123.wgsl"] {
        let path = dir.join(name);
        let whole = fs::read(&path).expect("file");
        for i in 0..whole.len() {
            let mut changed = whole.clone();
            changed[i] ^= 1;
            fs::write(&path, &changed).expect("changed");
            let error = Artifacts::open(&dir).expect_err("a changed byte must be noticed");
            assert!(error.to_string().contains("artifacts"), "{error}");
        }
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).expect("truncated");
            Artifacts::open(&dir).expect_err("a truncated file must be noticed");
        }
        fs::remove_file(&path).expect("removed");
        Artifacts::open(&dir).expect_err("a missing file must be noticed");
        fs::write(&path, &whole).expect("restored");
    }
    Artifacts::open(&dir).expect("restored");
}

#[test]
fn another_schema_and_foreign_paths_are_refused() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    let (manifest, files) = content(8);
    write(
        &dir,
        &Manifest {
            schema: SCHEMA + 1,
            ..manifest.clone()
        },
        &files,
    )
    .expect("written");
    let error = Artifacts::open(&dir).expect_err("schema");
    assert!(
        matches!(error, ArtifactError::Schema { found, .. } if found == u64::from(SCHEMA) + 1),
        "{error}"
    );
    for path in [
        "../manifest.json",
        "/etc/passwd",
        "kernels/../manifest.json",
        "kernels/",
        "kernels/.x",
    ] {
        let mut manifest = manifest.clone();
        manifest.kernels[0].files[0].path = path.into();
        write(&dir, &manifest, &files).expect("written");
        let error = Artifacts::open(&dir).expect_err("path");
        assert!(error.to_string().contains("outside kernels/"), "{error}");
    }
}

#[test]
fn other_folders_and_files_are_left_alone() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("mine");
    fs::create_dir(&dir).expect("folder");
    write_content(&dir, 1).expect("an empty folder may be used");
    fs::remove_file(dir.join("manifest.json")).expect("removed");
    assert!(matches!(
        write_content(&dir, 1),
        Err(ArtifactError::Foreign(_))
    ));
    let file = root.path().join("file");
    fs::write(&file, "x").expect("file");
    assert!(matches!(
        write_content(&file, 1),
        Err(ArtifactError::Foreign(_))
    ));
    let below = write_content(&file.join("deeper"), 1).expect_err("below a file");
    assert!(
        below.to_string().contains("a part of the path is a file")
            || below.to_string().contains("exists"),
        "{below}"
    );
    assert_eq!(names(root.path()), ["file", "mine"]);
}

#[test]
fn an_unwritable_folder_is_refused() {
    // Not even root may create folders there.
    let error = write_content(Path::new("/proc/butterfly/artifacts"), 1).expect_err("unwritable");
    assert!(
        error
            .to_string()
            .starts_with("/proc/butterfly: cannot create the folder"),
        "{error}"
    );
}

/// Runs this test binary again as another process that writes `size` bytes to `dir`.
fn writer(dir: &Path, size: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["--exact", "write_when_asked", "--ignored", "--nocapture"]);
    command
        .env("BUTTERFLY_TEST_DIR", dir)
        .env("BUTTERFLY_TEST_SIZE", size.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Not a test of its own: the body of the processes that the tests below start.
#[test]
#[ignore = "the process that the tests below start"]
fn write_when_asked() {
    let variable = |name| std::env::var(name).expect("set by the tests below");
    let (dir, size) = (
        variable("BUTTERFLY_TEST_DIR"),
        variable("BUTTERFLY_TEST_SIZE"),
    );
    match write_content(Path::new(&dir), size.parse().expect("size")) {
        Ok(()) => println!("written"),
        Err(error) => println!("refused: {error}"),
    }
}

/// Where two names cannot be exchanged, a writer moves the old folder aside. If it is killed then, the
/// next one puts it back before anything else, and removes it once it is replaced.
#[test]
fn a_folder_that_was_moved_aside_is_put_back() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    let aside = root.path().join(".artifacts.old");
    write_content(&dir, 10).expect("written");
    fs::rename(&dir, &aside).expect("moved");
    let (manifest, mut files) = content(20);
    files.push(("nowhere/0123.wgsl".into(), Vec::new()));
    assert!(write(&dir, &manifest, &files).is_err());
    assert!(Artifacts::open(&dir).is_ok());
    fs::create_dir(&aside).expect("another");
    write_content(&dir, 20).expect("written");
    assert_eq!(names(root.path()), ["artifacts"]);
}

#[test]
fn a_killed_writer_leaves_the_old_artifacts_and_no_litter() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    write_content(&dir, 10).expect("written");
    let mut interrupted = 0;
    for attempt in 0..40 {
        let mut child = writer(&dir, 96 << 20).spawn().expect("started");
        let started = std::time::Instant::now();
        let began = || names(root.path()).iter().any(|name| name.contains(".tmp-"));
        while !began()
            && started.elapsed().as_secs() < 20
            && child.try_wait().expect("state").is_none()
        {}
        std::thread::sleep(std::time::Duration::from_millis(attempt % 5));
        child.kill().expect("killed");
        child.wait().expect("ended");
        interrupted += usize::from(began());
        let artifacts = Artifacts::open(&dir).expect("whole after a kill");
        let bytes = artifacts.manifest.kernels[0].files[0].bytes;
        assert!(bytes == length(10) || bytes == length(96 << 20), "{bytes}");
        if interrupted >= 3 {
            break;
        }
    }
    assert!(interrupted >= 3, "no writer was interrupted in the middle");
    write_content(&dir, 20).expect("the next writer is not locked out");
    assert_eq!(names(root.path()), ["artifacts"]);
}

#[test]
fn of_two_writers_one_is_told_to_wait() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    let mut child = writer(&dir, 96 << 20).spawn().expect("started");
    while !names(root.path()).iter().any(|name| name.contains(".tmp-")) {
        assert!(
            child.try_wait().expect("state").is_none(),
            "the writer ended too early"
        );
    }
    let error = write_content(&dir, 10).expect_err("busy");
    assert!(
        matches!(&error, ArtifactError::Busy(path) if *path == dir),
        "{error}"
    );
    let output = child.wait_with_output().expect("ended");
    assert!(String::from_utf8_lossy(&output.stdout).contains("written"));
    assert_eq!(
        Artifacts::open(&dir).expect("whole").manifest.kernels[0].files[0].bytes,
        length(96 << 20)
    );
    write_content(&dir, 10).expect("free again");
    assert_eq!(names(root.path()), ["artifacts"]);
}

/// The file system has one megabyte. It is mounted in a private mount namespace where that is
/// allowed; elsewhere, a limit on the size of a file stands in for it.
#[test]
fn a_full_disk_leaves_the_old_artifacts() {
    let root = tempfile::tempdir().expect("root");
    let dir = root.path().join("artifacts");
    write_content(&dir, 10).expect("written");
    let binary = std::env::current_exe().expect("this binary");
    let run = format!(
        "exec '{}' --exact write_when_asked --ignored --nocapture",
        binary.display()
    );
    let mount = format!(
        "mount -t tmpfs -o size=1m tmpfs '{0}' && mkdir '{0}/keep' && {{ ({1}); ls -A '{0}'; }}",
        root.path().display(),
        run
    );
    let limit = format!("trap '' XFSZ; ulimit -f 1024; {run}");
    let shell = |script: &str, unshare: bool| {
        let mut command = if unshare {
            Command::new("unshare")
        } else {
            Command::new("sh")
        };
        if unshare {
            command.args(["--mount", "--map-root-user", "sh"]);
        }
        let run = command.args(["-c", script]);
        run.env("BUTTERFLY_TEST_DIR", &dir)
            .env("BUTTERFLY_TEST_SIZE", (8 << 20).to_string())
            .output()
    };
    let tmpfs = shell(&mount, true)
        .ok()
        .filter(|output| output.status.success());
    let (way, output) = match tmpfs {
        Some(output) => ("tmpfs", output),
        None => ("file size limit", shell(&limit, false).expect("sh")),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    println!("full disk by {way}: {said}");
    assert!(
        said.contains("refused") && said.contains("free space, or choose another folder"),
        "{way}: {said}"
    );
    if way == "tmpfs" {
        let left: Vec<_> = said.lines().rev().take(1).collect();
        assert_eq!(left, ["keep"], "{said}");
    }
    assert_eq!(
        Artifacts::open(&dir).expect("whole").manifest.kernels[0].files[0].bytes,
        length(10)
    );
    assert_eq!(names(root.path()), ["artifacts"]);
}

/// A cubin runs on GPUs of its own generation; for later ones the driver compiles the PTX beside
/// it, if there is any.
#[test]
fn later_architectures_take_ptx() {
    let root = tempfile::tempdir().expect("root");
    let target: Target = "cuda:sm_80".parse().expect("a target");
    let sm = |text: &str| match format!("cuda:{text}").parse() {
        Ok(Target::Cuda(sm)) => Some(sm),
        other => panic!("{other:?}"),
    };
    for with_ptx in [true, false] {
        let (mut manifest, _) = content(9);
        let mut files = vec![("kernels/0.cu".to_string(), text(9))];
        if with_ptx {
            files.push(("kernels/0.ptx".into(), b".version 9.0".to_vec()));
        }
        files.push(("kernels/0.cubin".into(), b"\x7fELF".to_vec()));
        let kernel = &mut manifest.kernels[0];
        (kernel.target, kernel.key) = (target, key::of(&spec(), target));
        let entries = files.iter().map(|(path, bytes)| FileEntry {
            path: path.clone(),
            bytes: bytes.len() as u64,
            blake3: blake3::hash(bytes).to_hex().to_string(),
        });
        kernel.files = entries.collect();
        let dir = root.path().join(with_ptx.to_string());
        write(&dir, &manifest, &files).expect("written");
        let artifacts = Artifacts::open(&dir).expect("opened");
        let kernel = &artifacts.manifest.kernels[0];
        let image = |own| artifacts.image_for(kernel, own).expect("an image");
        assert_eq!(image(sm("sm_86")), b"\x7fELF");
        let on = |own: &str| artifacts.target_for(Device::Cuda, sm(own)).ok();
        assert_eq!(on("sm_86"), Some(target));
        assert_eq!(on("sm_75"), None);
        assert_eq!(on("sm_90a"), with_ptx.then_some(target));
        if with_ptx {
            assert_eq!(image(sm("sm_100a")), b".version 9.0");
        }
    }
}
