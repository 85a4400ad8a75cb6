//! `cairn logs`.

use futures::AsyncBufReadExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;

use super::{Scope, connect};
use crate::failure::{Failure, Outcome};

pub(super) async fn run(pod: &str, params: LogParams, scope: &Scope) -> Outcome {
    let (client, namespace) = connect::client(scope).await?;
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let mut lines = Box::pin(pods.log_stream(pod, &params).await?);
    let mut line = String::new();
    loop {
        line.clear();
        let read = lines.read_line(&mut line).await.map_err(Failure::while_("the log broke off"))?;
        if read == 0 {
            return Ok(());
        }
        print!("{line}");
    }
}
