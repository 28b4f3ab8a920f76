//! gRPC messages to snapshotter calls and back; no decision is taken here.
