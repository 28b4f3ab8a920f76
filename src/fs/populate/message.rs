//! `FUSE_NOTIFY_STORE` (`include/uapi/linux/fuse.h`): a server puts content into the kernel's page cache.

/// The notification's number, where an answer has its error.
const NOTIFY_STORE: i32 = 4;
/// Length of `struct fuse_out_header` and `struct fuse_notify_store_out`.
const HEADER: usize = 16 + 24;
/// Length from which on a batch is sent.
const ENOUGH: usize = 64 << 10;

/// Longest batch, in bytes: all but the last file are shorter than [`ENOUGH`] together.
pub(super) const LONGEST: usize = 2 * ENOUGH + HEADER;

/// Messages to the kernel, one after another; each begins with its own length.
#[derive(Debug, Default)]
pub(super) struct Batch(Vec<u8>);

impl Batch {
    /// Adds the whole content of a file of at most 64 KiB.
    pub(super) fn add(&mut self, ino: u64, content: &[u8]) {
        let lengths = (
            u32::try_from(HEADER + content.len()),
            u32::try_from(content.len()),
        );
        let (Ok(all), Ok(size)) = lengths else { return };
        self.0.extend(all.to_ne_bytes());
        self.0.extend(NOTIFY_STORE.to_ne_bytes());
        // Notifications answer no request.
        self.0.extend(0_u64.to_ne_bytes());
        self.0.extend(ino.to_ne_bytes());
        let (offset, padding) = (0_u64, 0_u32);
        self.0.extend(offset.to_ne_bytes());
        self.0.extend(size.to_ne_bytes());
        self.0.extend(padding.to_ne_bytes());
        self.0.extend(content);
    }

    pub(super) const fn is_full(&self) -> bool {
        self.0.len() >= ENOUGH
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The messages of a batch; what is no whole message ends it.
pub(super) fn messages(batch: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = batch;
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        if len < HEADER {
            return None;
        }
        let (message, others) = rest.split_at_checked(len)?;
        rest = others;
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_its_messages_in_the_kernels_form() {
        let mut batch = Batch::default();
        batch.add(7, b"seven");
        batch.add(9, &[1; 64 << 10]);
        let all: Vec<_> = messages(batch.bytes()).collect();
        assert_eq!(all.len(), 2);
        let mut expected = vec![];
        for word in [45_u32, 4, 0, 0, 7, 0, 0, 0, 5, 0] {
            expected.extend(word.to_le_bytes());
        }
        expected.extend(b"seven");
        assert_eq!(all.first(), Some(&&*expected));
        assert!(batch.is_full() && batch.bytes().len() <= LONGEST);
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let mut batch = Batch::default();
        batch.add(7, b"seven");
        let whole = batch.bytes();
        for len in 0..whole.len() {
            assert_eq!(messages(whole.get(..len).unwrap()).count(), 0, "{len}");
        }
        assert_eq!(messages(&[0; 100]).count(), 0);
    }
}
