//! What libc reads for the locale of a program: the classes of characters, and how it finds what converts between encodings.

use crate::fs::Index;
use crate::layer::guess::place::{Place, find};
use crate::layer::guess::variable;

/// How libc finds what converts between encodings, which it looks into for any locale but `C` (iconvconfig(8)): in Debian's
/// and Red Hat's families.
#[cfg(target_arch = "x86_64")]
const CONVERSIONS: &[&str] = &[
    "usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    "usr/lib64/gconv/gconv-modules.cache",
];
#[cfg(not(target_arch = "x86_64"))]
const CONVERSIONS: &[&str] = &[
    "usr/lib/aarch64-linux-gnu/gconv/gconv-modules.cache",
    "usr/lib64/gconv/gconv-modules.cache",
];

/// A locale other than `C`, of which libc has all in itself; named as in `C.UTF-8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Locale(String);

impl Locale {
    /// What a program sets in this environment, each entry `NAME=value` (locale(7)).
    pub(super) fn of(program: &str, env: &[String]) -> Option<Self> {
        let value = |name: &str| variable(env, name).filter(|value| !value.is_empty());
        let set = value("LC_ALL=").or_else(|| value("LC_CTYPE="));
        let set = set.or_else(|| value("LANG=")).unwrap_or("C");
        if !matches!(set, "C" | "POSIX") {
            return Some(Self(set.to_owned()));
        }
        // Python takes this one instead (PEP 538).
        let name = program.rsplit('/').next().unwrap_or_default();
        name.starts_with("python")
            .then(|| Self("C.UTF-8".to_owned()))
    }

    /// What is read of these layers, topmost first, where the locale has a folder of its own: by its name, or with the
    /// encoding in its short form.
    pub(super) fn files(&self, stack: &[&Index]) -> impl Iterator<Item = Place> {
        let Self(name) = self;
        let (language, encoding) = name.split_once('.').unwrap_or((name, ""));
        let short = encoding.to_ascii_lowercase().replace('-', "");
        let folders = [name, &format!("{language}.{short}")];
        let classes = folders.map(|folder| format!("usr/lib/locale/{folder}/LC_CTYPE"));
        let classes = classes.iter().find_map(|path| find(stack, path.as_bytes()));
        let conversions = CONVERSIONS
            .iter()
            .find_map(|path| find(stack, path.as_bytes()));
        classes.into_iter().chain(conversions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::guess::files;
    use crate::layer::guess::tests::{layer, program};

    #[test]
    fn what_libc_reads_for_the_locale_is_foreseen() {
        let cache = CONVERSIONS[1];
        let layer = layer(&[
            "app",
            "python3",
            "usr/",
            "usr/lib/",
            "usr/lib/locale/",
            "usr/lib/locale/C.utf8/",
            "usr/lib/locale/C.utf8/LC_CTYPE",
            "usr/lib/locale/de_DE/",
            "usr/lib/locale/de_DE/LC_CTYPE",
            "usr/lib64/",
            "usr/lib64/gconv/",
            cache,
        ]);
        let found = |word: &str, env: &str| {
            let config = format!(r#"{{"Cmd":["/{word}"],"Env":["A=b"{env}]}}"#);
            let files = files(&[&layer], program(&config).as_ref());
            let paths = files.into_iter().map(|file| file.path.unwrap());
            let paths: Vec<_> = paths.map(|path| String::from_utf8(path).unwrap()).collect();
            assert_eq!(paths[0], word);
            paths[1..].to_vec()
        };
        let (utf8, german) = (
            "usr/lib/locale/C.utf8/LC_CTYPE",
            "usr/lib/locale/de_DE/LC_CTYPE",
        );
        assert_eq!(found("app", r#","LANG=C.UTF-8""#), [utf8, cache]);
        assert_eq!(
            found("app", r#","LANG=C","LC_CTYPE=C.utf8""#),
            [utf8, cache]
        );
        assert_eq!(found("app", r#","LC_ALL=de_DE","LANG=C""#), [german, cache]);
        assert_eq!(found("app", r#","LC_ALL=","LANG=tr_TR.UTF-8""#), [cache]);
        let none: [&str; 0] = [];
        assert_eq!(found("app", ""), none);
        assert_eq!(found("app", r#","LC_ALL=POSIX","LANG=C.UTF-8""#), none);
        assert_eq!(found("python3", ""), [utf8, cache], "PEP 538");
    }
}
