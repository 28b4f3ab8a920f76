//! One binary for every node: `deploy/build.sh` links what this build has compiled against an old glibc.

use std::path::Path;
use std::process::Command;

/// What a program that runs on the oldest supported system may want.
const GLIBC: (u32, u32) = (2, 28);

/// The newest glibc whose symbols the program wants.
fn wants(program: &Path) -> (u32, u32) {
    let table = Command::new("objdump").arg("-T").arg(program).output();
    let table = table.unwrap();
    assert!(table.status.success(), "{table:?}");
    let table = String::from_utf8(table.stdout).unwrap();
    let versions = table.split("GLIBC_").skip(1).map(|text| {
        let word = text.split([')', ' ', '\n']).next().unwrap();
        let mut numbers = word.split('.').map(|number| number.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    });
    versions.max().expect("a program wants something of glibc")
}

/// Links the program for all nodes; `None`, and says so, where the linker cannot be had.
pub fn build() -> Option<String> {
    if std::env::var_os("ZIG_FOLDER").is_none() {
        println!("skipped: zig cannot be had from the Python index");
        return None;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/build.sh");
    let built = Command::new(script).output().unwrap();
    assert!(built.status.success(), "{built:?}");
    Some(String::from_utf8(built.stdout).unwrap().trim().to_owned())
}

#[test]
fn the_binary_wants_no_newer_glibc_than_it_says() {
    let Some(program) = build() else { return };
    let newest = wants(Path::new(&program));
    assert!(newest <= GLIBC, "{program} wants glibc {newest:?}");
    let said = Command::new(&program).arg("--version").output().unwrap();
    let version = concat!("crfs ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&said.stdout), version, "{said:?}");
}
