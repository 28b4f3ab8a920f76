//! For tests of who asks: a server that knows no question.

use std::os::unix::net::UnixListener;
use std::path::Path;

use tokio_stream::wrappers::UnixListenerStream;

use super::{ControlServer, Service};

/// Serves gRPC, but nothing of crfs, as long as the process lives.
pub(crate) fn serve_nothing(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let incoming = tokio::net::UnixListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_optional_service(None::<ControlServer<Service>>)
                .serve_with_incoming(UnixListenerStream::new(incoming))
                .await
        })
    });
}
