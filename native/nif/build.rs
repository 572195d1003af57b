//! Linker options of the library.

fn main() {
    // The runtime's threads run this library's code until the VM ends. If the VM unloaded it, they
    // would be left without.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
