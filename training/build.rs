//! Lets the binary and the tests find libtorch where the build found it, without `LD_LIBRARY_PATH`.

use std::path::PathBuf;
use std::process::exit;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Some(root) = std::env::var_os("LIBTORCH").map(PathBuf::from) else {
        fail("LIBTORCH is not set; build inside the workspace, whose .cargo/config.toml sets it");
    };
    println!("cargo:rerun-if-changed={}", root.join("build-version").display());
    let Ok(library) = root.join("lib").canonicalize() else {
        fail(&format!("no libtorch in {}; run `make libtorch`", root.display()));
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", library.display());
    // libtorch_cpu.so names libraries that lie beside it (OpenMP, CUDA stubs); the linker looks them up there too.
    println!("cargo:rustc-link-arg=-Wl,-rpath-link,{}", library.display());
}

fn fail(reason: &str) -> ! {
    println!("cargo:warning={reason}");
    eprintln!("error: {reason}");
    exit(1);
}
