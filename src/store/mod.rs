//! Opens sled; schema version, typed trees, one codec, durability.
