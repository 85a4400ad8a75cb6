//! From a kubeconfig to a client.

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};

use super::Scope;
use crate::failure::{Code, Failure};

/// A client for the cluster that the scope names, and the namespace to work in.
pub(crate) async fn client(scope: &Scope) -> Result<(Client, String), Failure> {
    let file = scope.kubeconfig.clone().unwrap_or_else(|| scope.dir.join("kubeconfig"));
    let unreachable = |why: String| {
        let hint = "start a cluster with `cairn up`, or name its credentials with --kubeconfig";
        Failure::new(Code::Unreachable, format!("no credentials in {}: {why}; {hint}", file.display()))
    };
    let kubeconfig = Kubeconfig::read_from(&file).map_err(|error| unreachable(error.to_string()))?;
    let options = KubeConfigOptions::default();
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| unreachable(error.to_string()))?;
    let namespace = scope.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| unreachable(error.to_string()))?;
    Ok((client, namespace))
}
