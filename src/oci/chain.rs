//! Chain ids: what a layer is together with all below it (OCI image spec, config.md, "Layer ChainID").

use crate::oci::Digest;

/// The chain id of every layer, from the digests of their tars, bottom first.
#[must_use]
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut below: Option<Digest> = None;
    let next = |diff_id: &Digest| {
        let own = match below {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        below = Some(own);
        own
    };
    diff_ids.iter().map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_made_of_the_one_below() {
        let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        let chain = chain_ids(&[a, b, c]);
        let ab = Digest::of(format!("{a} {b}").as_bytes());
        let abc = Digest::of(format!("{ab} {c}").as_bytes());
        assert_eq!(chain, [a, ab, abc]);
        assert_eq!(chain_ids(&[]), []);
    }
}
