//! `cairn delete`: asks for deletion, then waits until the objects are gone.

use std::path::PathBuf;
use std::time::Duration;

use http::Request;
use kube::Client;
use serde_json::Value;

use super::apply::{documents, identity, read};
use super::resources::Catalogue;
use super::{Scope, connect};
use crate::failure::{Code, Failure, Outcome};

pub(super) async fn run(files: &[PathBuf], target: &[String], scope: &Scope, timeout_s: u64, dry_run: bool) -> Outcome {
    let (client, namespace) = connect::client(scope).await?;
    let catalogue = Catalogue::read(&client).await?;
    let mut doomed = Vec::new();
    for file in files {
        for object in documents(&read(file)?)? {
            let (api_version, kind, name) = identity(&object)?;
            let resource = catalogue.of_manifest(&api_version, &kind)?;
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&namespace);
            doomed.push((resource.label(&name), format!("{}/{name}", resource.path(Some(namespace)))));
        }
    }
    for (typed, name) in targets(target)? {
        let resource = catalogue.named(typed)?;
        doomed.push((resource.label(name), format!("{}/{name}", resource.path(Some(&namespace)))));
    }
    for (label, path) in &doomed {
        if dry_run {
            println!("{label} would be deleted");
        } else if delete(&client, path).await? {
            println!("{label} deleted");
        } else if files.is_empty() {
            return Err(Failure::new(Code::NotFound, format!("{label} not found")));
        }
    }
    if dry_run { Ok(()) } else { wait_gone(&client, &doomed, Duration::from_secs(timeout_s)).await }
}

/// `pod a b` or `pod/a pvc/b`.
fn targets(words: &[String]) -> Result<Vec<(&str, &str)>, Failure> {
    if words.iter().all(|word| word.contains('/')) {
        return Ok(words.iter().filter_map(|word| word.split_once('/')).collect());
    }
    match words {
        [typed, names @ ..] if !names.is_empty() => {
            Ok(names.iter().map(|name| (typed.as_str(), name.as_str())).collect())
        }
        _ => Err(Failure::new(Code::Failed, "name what to delete: `cairn delete pod NAME`")),
    }
}

/// Whether it was there.
async fn delete(client: &Client, path: &str) -> Result<bool, Failure> {
    let body = br#"{"apiVersion":"v1","kind":"DeleteOptions","propagationPolicy":"Background"}"#;
    let request = Request::delete(path)
        .header("Content-Type", "application/json")
        .body(body.to_vec())
        .map_err(Failure::while_("building the request"))?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn wait_gone(client: &Client, doomed: &[(String, String)], limit: Duration) -> Outcome {
    let deadline = tokio::time::Instant::now() + limit;
    for (label, path) in doomed {
        loop {
            let request = Request::get(path).body(Vec::new()).map_err(Failure::while_("building the request"))?;
            match client.request::<Value>(request).await {
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                Err(error) => return Err(error.into()),
                Ok(_) if tokio::time::Instant::now() > deadline => {
                    let message = format!(
                        "{label} is still there after {} s; `cairn get {label} -o yaml` shows its finalizers",
                        limit.as_secs()
                    );
                    return Err(Failure::new(Code::Failed, message));
                }
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
    Ok(())
}
