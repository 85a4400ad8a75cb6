//! `cairn exec`: a command in a pod, with its exit code as ours.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::AttachParams;

use super::{Scope, connect};
use crate::failure::{Code, Failure, Outcome};

pub(super) async fn run(
    pod: &str,
    container: Option<String>,
    stdin: bool,
    command: Vec<String>,
    scope: &Scope,
) -> Outcome {
    let (client, namespace) = connect::client(scope).await?;
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    let params = AttachParams { container, stdin, ..AttachParams::default() };
    let mut process = pods.exec(pod, command, &params).await?;
    let status = process.take_status();
    let out = copy(process.stdout(), tokio::io::stdout());
    let err = copy(process.stderr(), tokio::io::stderr());
    let input = process.stdin().map(|mut writer| {
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut writer).await;
        })
    });
    let (out, err) = tokio::join!(out, err);
    out.and(err).map_err(Failure::while_("the connection to the pod broke off"))?;
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    if let Some(input) = input {
        input.abort();
    }
    finish(status)
}

async fn copy(
    from: Option<impl tokio::io::AsyncRead + Unpin>,
    mut to: impl tokio::io::AsyncWrite + Unpin,
) -> std::io::Result<()> {
    use tokio::io::AsyncWriteExt;
    if let Some(mut from) = from {
        tokio::io::copy(&mut from, &mut to).await?;
    }
    to.flush().await
}

/// Ends this process with the command's own exit code when it was not 0.
fn finish(status: Option<Status>) -> Outcome {
    let Some(status) = status else {
        return Err(Failure::new(Code::Unreachable, "the connection ended without the command's exit code"));
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(());
    }
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let code = causes.iter().find(|cause| cause.reason.as_deref() == Some("ExitCode"));
    match code.and_then(|cause| cause.message.as_ref()?.parse().ok()) {
        Some(code) => std::process::exit(code),
        None => Err(Failure::new(Code::Failed, status.message.unwrap_or_else(|| "the command failed".into()))),
    }
}
