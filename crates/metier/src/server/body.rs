//! Reads a request's body under a limit and a deadline.

use std::time::Duration;

use axum::body::{Body, Bytes};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::error::ServerError;

/// A body that is too long is read and thrown away up to this many times the limit: a client that is still writing when the
/// connection closes never reads the answer that tells it why.
const DRAIN_FACTOR: usize = 8;

/// What bodies may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// Longest body.
    pub(super) max_bytes: usize,
    /// The body must be whole by then, counted from the request's head.
    pub(super) deadline: Duration,
}

/// The whole body.
///
/// # Errors
/// It is too long, too slow, or breaks off.
pub(super) async fn read(body: Body, limits: BodyLimits) -> Result<Bytes, ServerError> {
    let too_large = || ServerError::BodyTooLarge { limit_bytes: limits.max_bytes };
    let deadline = Instant::now() + limits.deadline;
    let mut stream = body.into_data_stream();
    let mut whole = BytesMut::new();
    let mut n_bytes = 0_usize;
    loop {
        let next = tokio::time::timeout_at(deadline, stream.next()).await;
        match next {
            Err(_) if n_bytes > limits.max_bytes => return Err(too_large()),
            Err(_) => {
                let deadline_ms = u64::try_from(limits.deadline.as_millis()).unwrap_or(u64::MAX);
                return Err(ServerError::BodyTooSlow { deadline_ms });
            }
            Ok(None) if n_bytes > limits.max_bytes => return Err(too_large()),
            Ok(None) => return Ok(whole.freeze()),
            Ok(Some(Err(_))) => return Err(ServerError::BodyCut),
            Ok(Some(Ok(piece))) => {
                n_bytes = n_bytes.saturating_add(piece.len());
                if n_bytes <= limits.max_bytes {
                    whole.extend_from_slice(&piece);
                } else {
                    whole.clear();
                    if n_bytes > limits.max_bytes.saturating_mul(DRAIN_FACTOR) {
                        return Err(too_large());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const LIMITS: BodyLimits = BodyLimits { max_bytes: 10, deadline: Duration::from_secs(5) };

    #[tokio::test]
    async fn the_limit_holds_on_both_sides() {
        assert_eq!(read(Body::from("0123456789"), LIMITS).await.unwrap().len(), 10);
        for n_bytes in [11, 1000] {
            let error = read(Body::from(vec![b'x'; n_bytes]), LIMITS).await.unwrap_err();
            assert!(matches!(error, ServerError::BodyTooLarge { limit_bytes: 10 }), "{error}");
        }
    }

    #[tokio::test]
    async fn a_body_that_never_comes_is_too_slow() {
        let never = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let limits = BodyLimits { deadline: Duration::from_millis(1), ..LIMITS };
        let error = read(never, limits).await.unwrap_err();
        assert!(matches!(error, ServerError::BodyTooSlow { deadline_ms: 1 }), "{error}");
    }
}
