//! The folder of profiles.
//!
//! # Layout
//! `<root>/profiles/<repository>-<key>.profile`: the first 16 hex digits of the digest of the image's
//! `host/name`, and the key of its lazy layers (see [`super::key`]). Each is one sealed record (see
//! [`crate::store::codec`]) of some ten kilobytes. Its modification time says when it was last used.
//!
//! # Crash behaviour
//! A profile is replaced as a whole: a crash leaves the old one or the new one. A damaged one is
//! noticed by its checksum, and dropped: the next start records it again.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use crate::layer::profile::Profile;
use crate::oci::{Digest, Reference};
use crate::store::{self, codec, files};

/// Most profiles that are kept; those that were not used for longest go first.
const MOST: usize = 256;
const ENDING: &str = ".profile";
/// Longer files are not read: no profile is half as long.
const MAX_LEN: u64 = 16 << 20;

/// Why a profile cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] store::Error),
    /// The file is not a profile, or damaged.
    #[error("profile {}: {why}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// All profiles of a node.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The profiles in the root folder `root`. Touches nothing: a folder that is not there has no
    /// profiles, and is made with the first.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            path: root.join("profiles"),
        }
    }

    /// Every profile that can be read, latest first, and why the others cannot.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn all(&self) -> Result<(Vec<Profile>, Vec<Error>), Error> {
        let (mut profiles, mut errors) = (Vec::new(), Vec::new());
        for (path, _) in self.list()? {
            match read(&path) {
                Ok(Some(profile)) => profiles.push(profile),
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        profiles.sort_by_key(|profile: &Profile| std::cmp::Reverse(profile.updated));
        Ok((profiles, errors))
    }

    /// The profile of the lazy layers that `key` names; a damaged one is dropped.
    ///
    /// # Errors
    /// The folder or the file cannot be read.
    pub(in crate::layer) fn load(&self, key: &Digest) -> Result<Option<Profile>, Error> {
        match self.find(key)? {
            Some(path) => read_or_drop(&path),
            None => Ok(None),
        }
    }

    /// The profile that is best for a start of `image` with the lazy layers that `key` names: theirs,
    /// or else that of another version of the image. Counts as its use.
    ///
    /// # Errors
    /// The folder or the file cannot be read.
    pub(in crate::layer) fn load_for(
        &self,
        key: &Digest,
        image: &str,
    ) -> Result<Option<Profile>, Error> {
        let path = match self.find(key)? {
            Some(path) => Some(path),
            None => self.latest_of(image)?,
        };
        let Some(path) = path else {
            return Ok(None);
        };
        touch(&path);
        read_or_drop(&path)
    }

    /// Replaces a profile, or adds it. Blocks.
    ///
    /// # Errors
    /// It cannot be written; what was there before still is.
    pub(in crate::layer) fn save(&self, key: &Digest, profile: &Profile) -> Result<(), Error> {
        fs::create_dir_all(&self.path).map_err(store::Error::io("make", &self.path))?;
        let image = profile.images.first().map_or("", |image| &image.name);
        let path = match self.find(key)? {
            Some(path) => path,
            None => {
                let name = format!("{}-{}{ENDING}", repository(image), key.hex());
                self.path.join(name)
            }
        };
        let bytes = codec::seal(profile).map_err(|why| damaged(&path, why))?;
        Ok(files::replace(&path, &bytes)?)
    }

    /// Notes that the profile was used.
    pub(in crate::layer) fn used(&self, key: &Digest) {
        if let Ok(Some(path)) = self.find(key) {
            touch(&path);
        }
    }

    /// Removes profiles that were not used for `keep`, those above the bound, and what a crash has
    /// left half-written. Not while one is being saved.
    ///
    /// # Errors
    /// The folder cannot be read, or a file not be removed.
    pub(in crate::layer) fn sweep(&self, keep: Duration) -> Result<(), Error> {
        let mut all = self.list()?;
        all.sort_by_key(|(_, used)| std::cmp::Reverse(*used));
        let now = SystemTime::now();
        for (place, (path, used)) in all.iter().enumerate() {
            let age = now.duration_since(*used).unwrap_or_default();
            if place >= MOST || age > keep {
                fs::remove_file(path).map_err(store::Error::io("remove", path))?;
            }
        }
        for path in self.entries()? {
            if path.extension().is_some_and(|ending| ending == "new") {
                fs::remove_file(&path).map_err(store::Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn find(&self, key: &Digest) -> Result<Option<PathBuf>, Error> {
        let ending = format!("-{}{ENDING}", key.hex());
        let mut all = self.entries()?.into_iter();
        Ok(all.find(|path| name(path).ends_with(&ending)))
    }

    fn latest_of(&self, image: &str) -> Result<Option<PathBuf>, Error> {
        let start = format!("{}-", repository(image));
        let all = self.list()?.into_iter();
        let of_image = all.filter(|(path, _)| name(path).starts_with(&start));
        let latest = of_image.max_by_key(|(_, used)| *used);
        Ok(latest.map(|(path, _)| path))
    }

    /// All profiles, and when each was last used.
    fn list(&self) -> Result<Vec<(PathBuf, SystemTime)>, Error> {
        let paths = self.entries()?.into_iter();
        let profiles = paths.filter(|path| name(path).ends_with(ENDING));
        Ok(profiles
            .filter_map(|path| {
                // One that is gone by now is not missed.
                let used = fs::metadata(&path).and_then(|data| data.modified()).ok()?;
                Some((path, used))
            })
            .collect())
    }

    fn entries(&self) -> Result<Vec<PathBuf>, Error> {
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(store::Error::io("read", &self.path)(error).into()),
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let paths: io::Result<_> = paths.collect();
        Ok(paths.map_err(store::Error::io("read", &self.path))?)
    }
}

/// What versions of one image have in common, as the start of a file's name.
fn repository(image: &str) -> String {
    let parsed = image.parse::<Reference>();
    let name = parsed.map(|image| format!("{}/{}", image.host(), image.repository()));
    let digest = Digest::of(name.as_deref().unwrap_or(image).as_bytes());
    digest.start(16)
}

fn name(path: &Path) -> &str {
    let name = path.file_name().and_then(|name| name.to_str());
    name.unwrap_or_default()
}

/// A profile from its file; `None` if it is gone.
fn read(path: &Path) -> Result<Option<Profile>, Error> {
    let io = |error| store::Error::io("read", path)(error);
    let len = match fs::metadata(path) {
        Ok(data) => data.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error).into()),
    };
    if len > MAX_LEN {
        return Err(damaged(path, format!("{len} bytes are too many")));
    }
    let bytes = fs::read(path).map_err(io)?;
    let profile: Profile = codec::unseal(&bytes).map_err(|why| damaged(path, why))?;
    if !profile.is_sound() {
        return Err(damaged(path, "a number leads nowhere"));
    }
    Ok(Some(profile))
}

fn read_or_drop(path: &Path) -> Result<Option<Profile>, Error> {
    match read(path) {
        Err(error @ Error::Damaged { .. }) => {
            tracing::warn!(%error, "dropped, the next start records it again");
            fs::remove_file(path).map_err(store::Error::io("remove", path))?;
            Ok(None)
        }
        outcome => outcome,
    }
}

/// A use that cannot be noted only makes the profile look older than it is.
fn touch(path: &Path) {
    let file = fs::File::options().write(true).open(path);
    let touched = file.and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(%error, path = %path.display(), "use of a profile not noted");
    }
}

fn damaged(path: &Path, why: impl ToString) -> Error {
    Error::Damaged {
        path: path.to_owned(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::profile::merge::tests::order;
    use crate::layer::profile::{Image, key};

    fn profile(image: &str, layer: &[u8]) -> (Digest, Profile) {
        let layers = vec![Digest::of(layer)];
        let profile = Profile {
            images: vec![Image {
                name: image.to_owned(),
                manifest: Digest::of(b"manifest"),
            }],
            updated: 7,
            starts: 1,
            order: order(&[(0, "a", 0), (0, "b", 3)]),
            layers,
        };
        (key(&profile.layers), profile)
    }

    #[test]
    fn profiles_are_found_by_layers_or_by_the_image_s_name() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let (one, first) = profile("r.io/app:1", b"1");
        assert_eq!(folder.load(&one).unwrap(), None);
        assert!(folder.all().unwrap().0.is_empty());
        folder.sweep(Duration::ZERO).unwrap();
        folder.save(&one, &first).unwrap();
        assert_eq!(folder.load(&one).unwrap(), Some(first.clone()));
        let (two, second) = profile("r.io/app:2", b"2");
        assert_eq!(folder.load(&two).unwrap(), None);
        let found = folder.load_for(&two, "r.io/app:2").unwrap();
        assert_eq!(found, Some(first), "that of the version before");
        assert_eq!(folder.load_for(&two, "r.io/other:2").unwrap(), None);
        folder.save(&two, &second).unwrap();
        let found = folder.load_for(&two, "r.io/app:2").unwrap();
        assert_eq!(found, Some(second));
        assert_eq!(folder.all().unwrap().0.len(), 2);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_costs_the_profile_only() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let (key, whole) = profile("r.io/app:1", b"1");
        folder.save(&key, &whole).unwrap();
        let path = folder.find(&key).unwrap().unwrap();
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            for bytes in [&damaged[..], &bytes[..at]] {
                fs::write(&path, bytes).unwrap();
                assert_eq!(folder.all().unwrap().1.len(), 1, "{at}");
                assert_eq!(folder.load(&key).unwrap(), None, "{at}");
                assert!(!path.exists());
            }
        }
        let mut wild = whole;
        wild.order.pieces[0].file = 2;
        folder.save(&key, &wild).unwrap();
        assert_eq!(
            folder.load(&key).unwrap(),
            None,
            "a number that leads nowhere"
        );
    }

    #[test]
    fn what_is_old_or_too_many_or_half_written_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let (_, template) = profile("r.io/app:1", b"1");
        for number in 0..MOST + 5 {
            let key = Digest::of(&number.to_le_bytes());
            folder.save(&key, &template).unwrap();
        }
        fs::write(folder.path.join("x.new"), b"half").unwrap();
        let key = Digest::of(&7_usize.to_le_bytes());
        let used = Digest::of(&8_usize.to_le_bytes());
        for (key, age) in [(&key, 3600), (&used, 3600)] {
            let path = folder.find(key).unwrap().unwrap();
            let then = SystemTime::now() - Duration::from_secs(age);
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(then).unwrap();
        }
        folder.used(&used);
        folder.sweep(Duration::from_secs(1800)).unwrap();
        assert_eq!(folder.list().unwrap().len(), MOST);
        assert_eq!(folder.entries().unwrap().len(), MOST);
        assert!(folder.load(&key).unwrap().is_none());
        assert!(folder.load(&used).unwrap().is_some());
    }

    #[test]
    fn a_profile_that_cannot_be_written_leaves_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let (key, first) = profile("r.io/app:1", b"1");
        folder.save(&key, &first).unwrap();
        let path = folder.find(&key).unwrap().unwrap();
        // Where the new one would be written there is a folder.
        fs::create_dir(path.with_extension("new")).unwrap();
        let mut second = first.clone();
        second.starts = 9;
        assert!(matches!(folder.save(&key, &second), Err(Error::Io(_))));
        assert_eq!(folder.load(&key).unwrap(), Some(first));
    }
}
