//! The `crfs` binary: everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: these are this binary by other names, and must stay small.
    if let Some(code) = crfs::keeper::run_if_keeper() {
        return code;
    }
    if let Some(code) = crfs::fs::run_if_filler() {
        return code;
    }
    crfs::cli::main()
}
