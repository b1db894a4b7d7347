//! Links `adit-cni` statically: it runs on nodes of any distribution, from /opt/cni/bin.
//!
//! `-C target-feature=+crt-static` would do it, but cargo has no such flag for one crate: for all it would rebuild all,
//! the agent included. What that flag changes is which C libraries the linker gets, and this says it to the linker
//! itself: a static executable, and for each library that std asks for as a shared one, a linker script of that name
//! that leads to its archive. Only binaries get it; tests link as usual.

use std::path::PathBuf;
use std::{env, fs, io};

/// The shared libraries of std on this target that are not empty, and what is in their place.
const IN_PLACE_OF: [(&str, &str); 3] = [
    ("libgcc_s.so", "INPUT(libgcc_eh.a)"),
    ("libm.so", "INPUT(libm.a)"),
    ("libc.so", "GROUP(libc.a libgcc_eh.a libgcc.a)"),
];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |variable: &str, value: &str| {
        env::var(variable).is_ok_and(|all| all.split(',').any(|one| one == value))
    };
    // Elsewhere, as with musl, it is static by itself.
    if !is("CARGO_CFG_TARGET_OS", "linux")
        || !is("CARGO_CFG_TARGET_ENV", "gnu")
        || is("CARGO_CFG_TARGET_FEATURE", "crt-static")
    {
        return Ok(());
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("static");
    fs::create_dir_all(&folder)?;
    for (library, script) in IN_PLACE_OF {
        fs::write(folder.join(library), format!("{script}\n"))?;
    }
    println!("cargo::rustc-link-arg-bins=-static-pie");
    println!("cargo::rustc-link-arg-bins=-L{}", folder.display());
    Ok(())
}
