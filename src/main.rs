//! The `crfs` binary: everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: the keeper is this binary by another name, and must stay small.
    if let Some(code) = crfs::keeper::run_if_keeper() {
        return code;
    }
    crfs::cli::main()
}
