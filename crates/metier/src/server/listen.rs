//! Sockets: binding, the loop that accepts connections, and how it ends.
//!
//! ```text
//! stop ──► no new connections ──► idle ones closed ──► running requests finish ──► grace over: the rest is cut
//! ```

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

/// Connections that are open at once; further ones wait in the system's backlog.
const MAX_CONNECTIONS: usize = 1024;
/// A connection that has not sent its request line and headers by then is closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Request line and headers together; more gets 431.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Pause after `accept` failed, as when the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why no socket listens.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Without API keys nobody but this machine may ask.
    #[error(
        "cannot serve on `{0}`: without API keys only loopback addresses are served; bind 127.0.0.1 or [::1] and put a proxy that authenticates in front"
    )]
    NotLoopback(SocketAddr),
    /// The system refuses.
    #[error("cannot listen on `{address}`{}", hint(source))]
    Bind {
        /// Address and port.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            ": another program has this port; choose one with `--bind`, port 0 takes a free one"
        }
        io::ErrorKind::PermissionDenied => ": ports below 1024 need rights that this user lacks",
        _ => "",
    }
}

/// Binds a loopback address; connections are accepted only once [`serve`] runs.
///
/// # Errors
/// The address is not loopback, or the system refuses it.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, ListenError> {
    if !address.ip().is_loopback() {
        return Err(ListenError::NotLoopback(address));
    }
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| ListenError::Bind { address, source })
}

/// Serves until `stop` is done, then lets running requests finish within `grace`. Returns whether all of them did.
///
/// # Errors
/// The socket cannot be used with this runtime.
pub async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    stop: impl Future<Output = ()>,
    grace: Duration,
) -> io::Result<bool> {
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let service = TowerToHyperService::new(router);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = async {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, slot)
        };
        let (accepted, slot) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Nagle's algorithm and delayed acknowledgements together hold small chunks of a stream back for 40 ms.
        let _ = stream.set_nodelay(true);
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service.clone());
        let connection = graceful.watch(connection);
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(slot);
        });
    }
    // From here a client that connects is refused by the system, not left waiting.
    drop(listener);
    let finished = tokio::time::timeout(grace, graceful.shutdown()).await.is_ok();
    // Cut requests end here, while the log can still close them.
    connections.shutdown().await;
    Ok(finished)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn only_loopback_is_bound_and_a_taken_port_says_so() {
        let everywhere = bind("0.0.0.0:0".parse().unwrap()).unwrap_err().to_string();
        assert!(everywhere.contains("only loopback"), "{everywhere}");
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let second = bind(first.local_addr().unwrap()).unwrap_err().to_string();
        assert!(second.contains("another program has this port"), "{second}");
    }
}
