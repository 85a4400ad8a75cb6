//! Runs the controllers: watches, the queue, and as many looks at once as do good.

use std::path::PathBuf;
use std::sync::Arc;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as ClientConfig};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::csi::Csi;
use crate::queue::Queue;
use crate::reconcile::Context;
use crate::world::World;

/// How the controllers are started.
#[derive(Clone, Debug)]
pub struct Config {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// The socket of the CSI driver's controller service.
    pub csi_socket: PathBuf,
}

/// Why they cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The credentials cannot be read.
    #[error("cannot read the credentials in {0}: {1}")]
    Kubeconfig(PathBuf, String),
    /// No client can be made of them.
    #[error("cannot make an API client: {0}")]
    Client(#[from] kube::Error),
}

/// Objects looked at at the same time.
const LOOKS: usize = 32;

/// Runs the controllers until `shutdown`.
///
/// # Errors
/// When they cannot start; later trouble is logged, told by events, and tried again.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let client = client(&config).await?;
    let queue = Arc::new(Queue::new());
    let mut watches = JoinSet::new();
    let world = World::follow(&client, &queue, &mut watches);
    tokio::select! {
        () = world.complete() => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    let context = Arc::new(Context::new(client, world, Csi::new(&config.csi_socket)));
    tracing::info!("the controllers see the whole cluster");
    let mut looks: JoinSet<()> = JoinSet::new();
    loop {
        let key = tokio::select! {
            key = queue.next(), if looks.len() < LOOKS => key,
            Some(ended) = looks.join_next(), if !looks.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
                continue;
            }
            () = shutdown.cancelled() => break,
        };
        let (context, queue) = (Arc::clone(&context), Arc::clone(&queue));
        looks.spawn(async move {
            let verdict = context.look(&key).await;
            queue.done(&key, verdict);
        });
    }
    // What is under way is finished or dropped at its next wait: every step can be taken again.
    looks.shutdown().await;
    Ok(())
}

async fn client(config: &Config) -> Result<Client, Error> {
    let unreadable = |error: String| Error::Kubeconfig(config.kubeconfig.clone(), error);
    let kubeconfig = Kubeconfig::read_from(&config.kubeconfig).map_err(|error| unreadable(error.to_string()))?;
    let options = KubeConfigOptions::default();
    let client = ClientConfig::from_custom_kubeconfig(kubeconfig, &options).await;
    Ok(Client::try_from(client.map_err(|error| unreadable(error.to_string()))?)?)
}
