//! Composition: build bottom-up, restore, bind, serve, drain.
