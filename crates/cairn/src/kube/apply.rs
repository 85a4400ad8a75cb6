//! `cairn apply`: server-side apply of each document of a manifest.

use std::io::Read;
use std::path::{Path, PathBuf};

use http::Request;
use kube::Client;
use serde::Deserialize;
use serde_json::Value;

use super::resources::Catalogue;
use super::{Scope, connect};
use crate::failure::{Code, Failure, Outcome};

pub(super) async fn run(files: &[PathBuf], scope: &Scope, dry_run: bool) -> Outcome {
    let (client, namespace) = connect::client(scope).await?;
    for file in files {
        apply_text(&client, &namespace, &read(file)?, dry_run, &mut |line| println!("{line}")).await?;
    }
    Ok(())
}

/// Applies every document of `text`; `said` gets one line for each object.
pub(crate) async fn apply_text(
    client: &Client,
    namespace: &str,
    text: &str,
    dry_run: bool,
    said: &mut dyn FnMut(String),
) -> Outcome {
    let catalogue = Catalogue::read(client).await?;
    for object in documents(text)? {
        let (api_version, kind, name) = identity(&object)?;
        let resource = catalogue.of_manifest(&api_version, &kind)?;
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
        let mut uri =
            format!("{}/{name}?fieldManager=cairn&force=true&fieldValidation=Strict", resource.path(Some(namespace)));
        if dry_run {
            uri.push_str("&dryRun=All");
        }
        let before = exists(client, &format!("{}/{name}", resource.path(Some(namespace)))).await?;
        let body = serde_json::to_vec(&object).expect("a manifest is plain data");
        let request = Request::patch(uri)
            .header("Content-Type", "application/apply-patch+yaml")
            .header("Accept", "application/json")
            .body(body)
            .map_err(Failure::while_("building the request"))?;
        let _: Value = client.request(request).await?;
        let verb = if before { "configured" } else { "created" };
        let suffix = if dry_run { " (dry run)" } else { "" };
        said(format!("{} {verb}{suffix}", resource.label(&name)));
    }
    Ok(())
}

async fn exists(client: &Client, path: &str) -> Result<bool, Failure> {
    let request = Request::get(path).body(Vec::new()).map_err(Failure::while_("building the request"))?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The file's text; `-` is standard input.
pub(super) fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let result = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    result.map_err(Failure::while_(format!("cannot read {}", file.display())))?;
    Ok(text)
}

/// The documents of a manifest as JSON; empty ones are left out.
pub(super) fn documents(text: &str) -> Result<Vec<Value>, Failure> {
    let mut all = Vec::new();
    for (number, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let value = Value::deserialize(document)
            .map_err(|error| Failure::new(Code::Failed, format!("document {} is not YAML: {error}", number + 1)))?;
        if !value.is_null() {
            all.push(value);
        }
    }
    Ok(all)
}

/// apiVersion, kind and name.
pub(super) fn identity(object: &Value) -> Result<(String, String, String), Failure> {
    let field = |value: &Value, path: &str| {
        let missing = || Failure::new(Code::Failed, format!("the manifest lacks {path}"));
        value.as_str().filter(|text| !text.is_empty()).map(str::to_owned).ok_or_else(missing)
    };
    Ok((
        field(&object["apiVersion"], "apiVersion")?,
        field(&object["kind"], "kind")?,
        field(&object["metadata"]["name"], "metadata.name")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_and_named() {
        let text = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n---\n\
                    apiVersion: v1\nkind: Pod\nmetadata: {name: b}\n";
        let all = documents(text).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(identity(&all[1]).unwrap().2, "b");
    }

    #[test]
    fn what_is_missing_is_named() {
        let object = serde_json::json!({"apiVersion": "v1", "kind": "Pod"});
        assert_eq!(identity(&object).unwrap_err().message, "the manifest lacks metadata.name");
        assert!(documents("a: [").is_err());
    }
}
