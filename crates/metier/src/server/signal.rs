//! When to stop: SIGTERM, SIGINT (Ctrl-C), or the end of standard input where the starter asked for that.

use tokio::sync::oneshot;

/// Done when the process is asked to stop.
pub async fn stop(until_stdin_closes: bool) {
    let stdin = async { if until_stdin_closes { stdin_closed().await } else { std::future::pending().await } };
    tokio::select! {
        () = signals() => tracing::info!("stopping: a signal came"),
        () = stdin => tracing::info!("stopping: standard input closed"),
    }
}

#[cfg(unix)]
async fn signals() {
    use tokio::signal::unix::{SignalKind, signal};
    // Without handlers the system's default would end the process with the log open; a system that cannot install them still runs.
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn signals() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}

/// A thread of its own: reading standard input cannot be cancelled, and must not hold up the runtime's end.
async fn stdin_closed() {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = tell.send(());
    });
    let _ = told.await;
}
