//! A file that only the holder of a key can read or change.
//!
//! # Layout
//! `CRFSKEY1` (8 bytes), nonce (12 bytes, random for every writing), ChaCha20-Poly1305 of the
//! content with its tag (16 bytes); the first 8 bytes are authenticated too. The key is a file of 32
//! random bytes, for root alone.
//!
//! # Crash behaviour
//! The file is replaced whole (temporary name, fsync, rename), the key is made once.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

const MAGIC: &[u8; 8] = b"CRFSKEY1";
const KEY: usize = 32;

/// A sealed file and where its key is.
#[derive(Debug, Clone)]
pub(super) struct Sealed {
    file: PathBuf,
    key: PathBuf,
}

impl Sealed {
    pub(super) const fn new(file: PathBuf, key: PathBuf) -> Self {
        Self { file, key }
    }

    /// The content; `None` if nothing was written yet.
    ///
    /// # Errors
    /// The file or its key cannot be read, or they do not belong together.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, String> {
        let bytes = match std::fs::read(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| format!("{}: {error}", self.file.display()))?,
        };
        let key = self
            .key()?
            .ok_or(format!("{} is gone", self.key.display()))?;
        let wrong = || {
            format!(
                "{} does not open {}",
                self.key.display(),
                self.file.display()
            )
        };
        let body = bytes.strip_prefix(MAGIC).ok_or_else(wrong)?;
        let (nonce, body) = body.split_at_checked(NONCE_LEN).ok_or_else(wrong)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
        let mut body = body.to_vec();
        let length = key
            .open_in_place(nonce, Aad::from(MAGIC), &mut body)
            .map_err(|_| wrong())?
            .len();
        body.truncate(length);
        Ok(Some(body))
    }

    /// Replaces the content. Makes the key if there is none yet.
    ///
    /// # Errors
    /// The key cannot be used or made, or the file not be written.
    pub(super) fn write(&self, content: &[u8]) -> Result<(), String> {
        let key = match self.key()? {
            Some(key) => key,
            None => self.make_key()?,
        };
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce)?;
        let mut body = content.to_vec();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(MAGIC),
            &mut body,
        )
        .map_err(|_| "sealing failed".to_owned())?;
        let failed = |error: io::Error| format!("{}: {error}", self.file.display());
        let folder = self.file.parent().unwrap_or(Path::new("/"));
        // Temporary files are for their owner alone.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        file.write_all(&[MAGIC, &nonce[..], &body].concat())
            .and_then(|()| file.as_file().sync_all())
            .map_err(failed)?;
        file.persist(&self.file)
            .map_err(|error| failed(error.error))?;
        let folder = std::fs::File::open(folder).map_err(failed)?;
        folder.sync_all().map_err(failed)
    }

    fn key(&self) -> Result<Option<LessSafeKey>, String> {
        let failed = |why: String| format!("{}: {why}", self.key.display());
        let meta = match std::fs::metadata(&self.key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            meta => meta.map_err(|error| failed(error.to_string()))?,
        };
        if meta.mode() & 0o077 != 0 {
            return Err(failed(
                "others than its owner may use it (chmod 600)".to_owned(),
            ));
        }
        let bytes = std::fs::read(&self.key).map_err(|error| failed(error.to_string()))?;
        if bytes.len() != KEY {
            return Err(failed(format!("it has {} bytes, not {KEY}", bytes.len())));
        }
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes);
        key.map(|key| Some(LessSafeKey::new(key)))
            .map_err(|_| failed("no key".to_owned()))
    }

    fn make_key(&self) -> Result<LessSafeKey, String> {
        let mut bytes = [0; KEY];
        random(&mut bytes)?;
        let failed = |error: io::Error| format!("{} cannot be made: {error}", self.key.display());
        if let Some(folder) = self.key.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.key)
            .map_err(failed)?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        self.key()?
            .ok_or_else(|| "the key is gone again".to_owned())
    }
}

fn random(bytes: &mut [u8]) -> Result<(), String> {
    let filled = SystemRandom::new().fill(bytes);
    filled.map_err(|_| "the system has no random numbers".to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_key_opens_what_was_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("etc/key");
        let sealed = Sealed::new(dir.path().join("file"), key.clone());
        assert_eq!(sealed.read(), Ok(None));
        sealed.write(b"hunter2").unwrap();
        assert_eq!(sealed.read().unwrap().unwrap(), b"hunter2");
        let bytes = std::fs::read(dir.path().join("file")).unwrap();
        assert!(!bytes.windows(7).any(|text| text == b"hunter2"));
        sealed.write(b"hunter2").unwrap();
        let again = std::fs::read(dir.path().join("file")).unwrap();
        assert_ne!(bytes[8..20], again[8..20], "a nonce is used once");
        assert_eq!(std::fs::metadata(&key).unwrap().mode() & 0o777, 0o600);

        for at in 0..again.len() {
            let mut damaged = again.clone();
            damaged[at] ^= 1;
            std::fs::write(dir.path().join("file"), &damaged).unwrap();
            assert!(sealed.read().is_err(), "byte {at}");
            std::fs::write(dir.path().join("file"), &again[..at]).unwrap();
            assert!(sealed.read().is_err(), "cut at {at}");
        }
        std::fs::write(dir.path().join("file"), &again).unwrap();
        std::fs::write(&key, [7; 32]).unwrap();
        assert!(sealed.read().unwrap_err().contains("does not open"));
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(sealed.write(b"x").unwrap_err().contains("chmod 600"));
        std::fs::remove_file(&key).unwrap();
        assert!(sealed.read().unwrap_err().contains("is gone"));
    }
}
