//! Sources of credentials, each against what it really talks to.
