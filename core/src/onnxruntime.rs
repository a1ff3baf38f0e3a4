//! Where the ONNX Runtime library lies. The server and the export's parity check load it at run time, so both
//! look in the same places, in the same order, and say the same sentence when it is nowhere.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The release that this workspace is built and tested with.
pub const VERSION: &str = "1.31.1";

/// The environment variable that names the library, the one that other programs which load ONNX Runtime use too.
pub const VARIABLE: &str = "ORT_DYLIB_PATH";

/// Folder, beside the project, into which `make onnxruntime` unpacks releases, one folder a version.
const FOLDER: &str = ".onnxruntime";

/// File name of the library.
const FILE: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// Where package managers and administrators put libraries.
const SYSTEM_FOLDERS: [&str; 8] = [
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/opt/onnxruntime/lib",
    "/opt/homebrew/lib",
];

/// Why there is no library to load. Each text is one sentence that ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// A file that was named does not exist.
    #[error(
        "the ONNX Runtime library '{path}' named by {source_of_path} does not exist: name another, or run `make onnxruntime` and name none"
    )]
    NamedButMissing {
        /// The file that was named.
        path: PathBuf,
        /// What named it.
        source_of_path: &'static str,
    },
    /// No place holds one.
    #[error(
        "the ONNX Runtime library is neither in .onnxruntime/{VERSION}/ nor in the system's folders: run `make onnxruntime`, or name the file with --onnxruntime or {VARIABLE}"
    )]
    NotFound,
}

/// The library to load: `explicit` (the flag `--onnxruntime`), else the file that [`VARIABLE`] names, else
/// `.onnxruntime/<VERSION>/libonnxruntime.so` in the current folder or above it, else the same seen from the
/// executable, else one in the system's library folders.
///
/// # Errors
/// When a file is named and missing (a named file is never replaced by another), or none is found.
pub fn locate(explicit: Option<&Path>) -> Result<PathBuf, LibraryError> {
    let near = [env::current_dir().ok(), env::current_exe().ok()];
    let near: Vec<&Path> = near.iter().flatten().map(PathBuf::as_path).collect();
    let system: Vec<&Path> = SYSTEM_FOLDERS.iter().map(Path::new).collect();
    search(explicit, env::var_os(VARIABLE), &near, &system)
}

fn search(
    explicit: Option<&Path>,
    variable: Option<OsString>,
    near: &[&Path],
    system: &[&Path],
) -> Result<PathBuf, LibraryError> {
    let named = explicit
        .map(|path| (path.to_owned(), "--onnxruntime"))
        .or_else(|| variable.filter(|value| !value.is_empty()).map(|value| (PathBuf::from(value), VARIABLE)));
    if let Some((path, source_of_path)) = named {
        return if path.is_file() { Ok(path) } else { Err(LibraryError::NamedButMissing { path, source_of_path }) };
    }
    let unpacked = Path::new(FOLDER).join(VERSION).join(FILE);
    near.iter()
        .flat_map(|start| start.ancestors())
        .map(|folder| folder.join(&unpacked))
        .chain(system.iter().map(|folder| folder.join(FILE)))
        .find(|path| path.is_file())
        .ok_or(LibraryError::NotFound)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A project folder with the library unpacked, a folder deep below it, and a system folder with a library.
    struct Machine {
        root: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let root = tempfile::tempdir().expect("a temporary folder");
            let machine = Self { root };
            for (folder, file) in [("project/.onnxruntime/1.31.1", FILE), ("lib", FILE), ("own", "mine.so")] {
                fs::create_dir_all(machine.path(folder)).expect("a folder");
                fs::write(machine.path(folder).join(file), "").expect("a file");
            }
            fs::create_dir_all(machine.path("project/target/release")).expect("a folder");
            machine
        }

        fn path(&self, relative: &str) -> PathBuf {
            self.root.path().join(relative)
        }
    }

    #[test]
    fn places_are_tried_in_the_documented_order() {
        let machine = Machine::new();
        let (flag, variable) = (machine.path("own/mine.so"), machine.path("lib").join(FILE));
        let deep = machine.path("project/target/release");
        let (lib, elsewhere) = (machine.path("lib"), machine.path("own"));
        let unpacked = machine.path("project").join(FOLDER).join(VERSION).join(FILE);
        let named = || Some(variable.clone().into_os_string());

        assert_eq!(search(Some(&flag), named(), &[&deep], &[&lib]), Ok(flag.clone()));
        assert_eq!(search(None, named(), &[&deep], &[]), Ok(variable.clone()));
        assert_eq!(search(None, Some(OsString::new()), &[&deep], &[&lib]), Ok(unpacked.clone()));
        assert_eq!(search(None, None, &[&elsewhere, &deep], &[&lib]), Ok(unpacked));
        assert_eq!(search(None, None, &[&elsewhere], &[&lib]), Ok(variable));
        assert_eq!(search(None, None, &[&elsewhere], &[&elsewhere]), Err(LibraryError::NotFound));
    }

    #[test]
    fn a_named_file_is_never_replaced_by_another() {
        let machine = Machine::new();
        let (wrong, lib) = (machine.path("nowhere.so"), machine.path("lib"));
        let by_flag = search(Some(&wrong), None, &[], &[&lib]).expect_err("it does not exist").to_string();
        assert!(by_flag.contains("nowhere.so") && by_flag.contains("--onnxruntime"), "{by_flag}");
        let by_variable = search(None, Some(wrong.into()), &[], &[&lib]).expect_err("it does not exist").to_string();
        assert!(by_variable.contains(VARIABLE) && by_variable.contains("make onnxruntime"), "{by_variable}");
    }
}
