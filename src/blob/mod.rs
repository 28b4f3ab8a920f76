//! Bytes of one remote blob through the verified local cache.
