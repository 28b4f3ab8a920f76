//! The one closed, typed configuration.
