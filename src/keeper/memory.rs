//! How keeper, front and the like stay small, although their program is the whole daemon's.

use rustix::mm::Advice;

/// Gives back the code that only a start needs: three quarters of what the keeper would hold, or the front.
/// Whatever was run once stays resident, with its neighbours. Only memory depends on it.
pub(crate) fn forget_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (from, to) in maps.lines().filter_map(clean) {
        // SAFETY: a private mapping of a file that was never writable holds just what is in the file,
        // and is read from there again when it is needed.
        let _ = unsafe {
            rustix::mm::madvise(
                from as *mut _,
                to.saturating_sub(from),
                Advice::LinuxDontNeed,
            )
        };
    }
}

/// First and last address of a mapping that can be read again from its file, in a line of proc(5):
/// `first-last r-xp offset device inode path`. The code, and what lies before it in the file: constants and
/// relocations. What is behind it may have been written by the linker.
fn clean(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    let is_clean = rest.starts_with("r-xp") || rest.starts_with("r--p 00000000 ");
    let (from, to) = range
        .split_once('-')
        .filter(|_| is_clean && line.contains('/'))?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(from)?, address(to)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_wrote_is_given_back() {
        let line = |flags: &str, rest: &str| format!("1000-3000 {flags} {rest}");
        let file = "00000000 fe:00 326269   /usr/bin/crfs";
        for (line, found) in [
            (line("r-xp", file), Some((0x1000, 0x3000))),
            (line("r--p", file), Some((0x1000, 0x3000))),
            (line("r--p", "00fec000 fe:00 326269   /usr/bin/crfs"), None),
            (line("rw-p", file), None),
            (line("r-xp", "00000000 00:00 0   [vdso]"), None),
            (String::new(), None),
        ] {
            assert_eq!(clean(&line), found, "{line}");
        }
        forget_code();
    }
}
