//! Conversions from layout to layout.
