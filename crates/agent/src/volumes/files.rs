//! Volumes that are files: config maps, secrets, the downward API, and their projections. What they hold is computed
//! here (pure), and written so that a container never sees half of an update.
//!
//! The files live in a directory of their own that `..data` points to; an update writes a new directory and moves the
//! link, as a kubelet does it, so software that watches `..data` works.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, Volume, VolumeProjection};

use crate::pod::{ConfigError, Surroundings, field, resource};

/// Relative path to contents and mode.
pub(crate) type Payload = BTreeMap<String, (Vec<u8>, u32)>;

const MODE_DEFAULT: u32 = 0o644;
const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// A volume whose files cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("path \"{0}\" leaves the volume; use a relative path without \"..\"")]
    Escapes(String),
    #[error("{0} is not supported by this agent")]
    Unsupported(&'static str),
}

/// What the API has of the things a volume refers to; None: it does not exist.
#[derive(Clone, Debug, Default)]
pub(crate) struct Referents {
    pub(crate) config_maps: BTreeMap<String, Option<ConfigMap>>,
    pub(crate) secrets: BTreeMap<String, Option<Secret>>,
}

/// Names of the config maps and secrets that a volume's files come from.
pub(crate) fn references(volume: &Volume) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
    secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        config_maps.extend(source.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(source.secret.iter().map(|source| source.name.clone()));
    }
    (config_maps, secrets)
}

/// The kind of a volume that is files: the word its directory is called by. None for any other volume.
pub(crate) fn kind(volume: &Volume) -> Option<&'static str> {
    let kinds = [
        (volume.config_map.is_some(), "configmap"),
        (volume.secret.is_some(), "secret"),
        (volume.downward_api.is_some(), "downward-api"),
        (volume.projected.is_some(), "projected"),
    ];
    kinds.into_iter().find(|(is, _)| *is).map(|(_, kind)| kind)
}

/// All files of such a volume.
pub(crate) fn payload(
    pod: &Pod,
    volume: &Volume,
    referents: &Referents,
    around: &Surroundings,
) -> Result<Payload, FileError> {
    let mut out = Payload::new();
    let mut sink = Sink { pod, referents, around, mode: MODE_DEFAULT, out: &mut out };
    if let Some(source) = &volume.config_map {
        sink.mode = mode(source.default_mode, MODE_DEFAULT);
        sink.config_map(&source.name, source.items.as_deref(), source.optional)?;
    } else if let Some(source) = &volume.secret {
        sink.mode = mode(source.default_mode, MODE_DEFAULT);
        sink.secret(source.secret_name.as_deref().unwrap_or_default(), source.items.as_deref(), source.optional)?;
    } else if let Some(source) = &volume.downward_api {
        sink.mode = mode(source.default_mode, MODE_DEFAULT);
        sink.downward(source.items.as_deref().unwrap_or_default())?;
    } else if let Some(projected) = &volume.projected {
        sink.mode = mode(projected.default_mode, MODE_DEFAULT);
        for source in projected.sources.iter().flatten() {
            sink.projection(source)?;
        }
    }
    Ok(out)
}

fn mode(given: Option<i32>, otherwise: u32) -> u32 {
    given.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(otherwise) & 0o7777
}

struct Sink<'a> {
    pod: &'a Pod,
    referents: &'a Referents,
    around: &'a Surroundings,
    mode: u32,
    out: &'a mut Payload,
}

impl Sink<'_> {
    fn projection(&mut self, source: &VolumeProjection) -> Result<(), FileError> {
        if source.service_account_token.is_some() {
            return Err(FileError::Unsupported("a projected serviceAccountToken"));
        }
        if source.cluster_trust_bundle.is_some() {
            return Err(FileError::Unsupported("a projected clusterTrustBundle"));
        }
        if let Some(source) = &source.config_map {
            self.config_map(&source.name, source.items.as_deref(), source.optional)?;
        }
        if let Some(source) = &source.secret {
            self.secret(&source.name, source.items.as_deref(), source.optional)?;
        }
        if let Some(source) = &source.downward_api {
            self.downward(source.items.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }

    fn config_map(&mut self, name: &str, items: Option<&[KeyToPath]>, optional: Option<bool>) -> Result<(), FileError> {
        let optional = optional == Some(true);
        let Some(map) = self.referents.config_maps.get(name).cloned().flatten() else {
            return self.absent("configmap", name, optional);
        };
        let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
        let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
        self.keys("configmap", name, text.chain(binary).collect(), items, optional)
    }

    fn secret(&mut self, name: &str, items: Option<&[KeyToPath]>, optional: Option<bool>) -> Result<(), FileError> {
        let optional = optional == Some(true);
        let Some(secret) = self.referents.secrets.get(name).cloned().flatten() else {
            return self.absent("secret", name, optional);
        };
        let data = secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect();
        self.keys("secret", name, data, items, optional)
    }

    fn absent(&self, kind: &'static str, name: &str, optional: bool) -> Result<(), FileError> {
        if optional {
            return Ok(());
        }
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        Err(ConfigError::Missing { kind, name: name.to_owned(), namespace }.into())
    }

    /// All keys under their own names, or the listed ones under theirs.
    fn keys(
        &mut self,
        kind: &'static str,
        name: &str,
        mut data: BTreeMap<String, Vec<u8>>,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> Result<(), FileError> {
        let Some(items) = items else {
            for (key, contents) in data {
                self.put(&key, contents, None)?;
            }
            return Ok(());
        };
        for item in items {
            match data.remove(&item.key) {
                Some(contents) => self.put(&item.path, contents, item.mode)?,
                None if optional => {}
                None => {
                    let key = item.key.clone();
                    return Err(ConfigError::MissingKey { kind, name: name.to_owned(), key }.into());
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile]) -> Result<(), FileError> {
        for item in items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(reference), _) => field(self.pod, reference, self.around)?,
                (None, Some(reference)) => {
                    let containers = self.pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
                    let wanted = reference.container_name.as_deref();
                    let container = containers.iter().find(|container| Some(container.name.as_str()) == wanted);
                    let container = container.ok_or_else(|| ConfigError::Resource(reference.resource.clone()))?;
                    resource(self.pod, container, reference, self.around)?
                }
                (None, None) => String::new(),
            };
            self.put(&item.path, text.into_bytes(), item.mode)?;
        }
        Ok(())
    }

    fn put(&mut self, path: &str, contents: Vec<u8>, own: Option<i32>) -> Result<(), FileError> {
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || path.is_empty() || path.starts_with("..") {
            return Err(FileError::Escapes(path.to_owned()));
        }
        self.out.insert(path.to_owned(), (contents, mode(own, self.mode)));
        Ok(())
    }
}

/// Writes the payload into the volume's directory. Does nothing when it is there already.
pub(crate) fn write(dir: &Path, payload: &Payload, group: Option<u32>) -> std::io::Result<()> {
    if is_current(dir, payload) {
        return Ok(());
    }
    let version = format!("..{}", uuid::Uuid::new_v4());
    let fresh = dir.join(&version);
    for (path, (contents, mode)) in payload {
        let file = fresh.join(path);
        let parent = file.parent().unwrap_or(&fresh);
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        std::fs::write(&file, contents)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(*mode))?;
        if group.is_some() {
            std::os::unix::fs::chown(&file, None, group)?;
        }
    }
    std::fs::create_dir_all(&fresh)?;
    let old = std::fs::read_link(dir.join(DATA)).ok();
    let next = dir.join(DATA_NEXT);
    let _ = std::fs::remove_file(&next);
    std::os::unix::fs::symlink(&version, &next)?;
    std::fs::rename(&next, dir.join(DATA))?;
    link_names(dir, payload)?;
    if let Some(old) = old.filter(|old| old.to_string_lossy().starts_with("..")) {
        std::fs::remove_dir_all(dir.join(old))?;
    }
    Ok(())
}

/// The visible names are links through `..data`; those of files that are gone go too.
fn link_names(dir: &Path, payload: &Payload) -> std::io::Result<()> {
    let tops: std::collections::BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        let link = dir.join(top);
        if link.symlink_metadata().is_err() {
            std::os::unix::fs::symlink(Path::new(DATA).join(top), link)?;
        }
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(&*name) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_current(dir: &Path, payload: &Payload) -> bool {
    let data = dir.join(DATA);
    let same = |(path, (contents, mode)): (&String, &(Vec<u8>, u32))| {
        let file = data.join(path);
        let kept = std::fs::metadata(&file).is_ok_and(|meta| meta.permissions().mode() & 0o7777 == *mode);
        kept && std::fs::read(&file).is_ok_and(|now| now == *contents)
    };
    data.exists() && count_files(&data) == payload.len() && payload.iter().all(same)
}

fn count_files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count_files(&entry.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::{FileError, Payload, Referents, payload, write};
    use crate::pod::Surroundings;
    use serde_json::json;
    use std::path::Path;

    fn files(volume: serde_json::Value) -> Result<Payload, FileError> {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "b"}}});
        let pod = serde_json::from_value(pod).expect("a pod");
        let volume = serde_json::from_value(volume).expect("a volume");
        let mut referents = Referents::default();
        let map = json!({"data": {"x": "1", "y": "2"}});
        referents.config_maps.insert("cm".into(), serde_json::from_value(map).ok());
        let secret = json!({"data": {"key": "AAE="}});
        referents.secrets.insert("s".into(), serde_json::from_value(secret).ok());
        payload(&pod, &volume, &referents, &Surroundings::default())
    }

    #[test]
    fn sources() {
        let map = files(json!({"name": "v", "configMap": {"name": "cm", "defaultMode": 256}})).expect("there");
        assert_eq!(map["x"], (b"1".to_vec(), 0o400));
        assert_eq!(map.len(), 2);
        let all = files(json!({"name": "v", "projected": {"sources": [
            {"configMap": {"name": "cm", "items": [{"key": "y", "path": "deep/y", "mode": 384}]}},
            {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"configMap": {"name": "none", "optional": true}},
        ]}}))
        .expect("there");
        assert_eq!(all["deep/y"], (b"2".to_vec(), 0o600));
        assert_eq!(all["key"], (vec![0, 1], 0o644));
        assert_eq!(all["labels"].0, b"a=\"b\"\n");
    }

    #[test]
    fn refusals_name_the_cause() {
        let missing = files(json!({"name": "v", "secret": {"secretName": "no"}})).expect_err("not there");
        assert!(missing.to_string().contains("secret \"no\" not found"), "{missing}");
        for path in ["../x", "/etc/x", "a/../b", ""] {
            let items = json!([{"key": "x", "path": path}]);
            let error = files(json!({"name": "v", "configMap": {"name": "cm", "items": items}}));
            assert_eq!(error, Err(FileError::Escapes(path.into())), "{path}");
        }
    }

    fn one(name: &str, contents: &str) -> Payload {
        Payload::from([(name.to_owned(), (contents.into(), 0o640))])
    }

    #[test]
    fn an_update_is_one_move() {
        let dir = tempfile::tempdir().expect("a directory");
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).expect("readable");
        let mut both = one("a", "1");
        both.extend(one("d/b", "2"));
        write(dir.path(), &both, None).expect("written");
        assert_eq!((read("a"), read("d/b")), ("1".into(), "2".into()));
        let before = std::fs::read_link(dir.path().join("..data")).expect("a link");
        write(dir.path(), &both, None).expect("written");
        assert_eq!(std::fs::read_link(dir.path().join("..data")).expect("a link"), before, "nothing changed");
        write(dir.path(), &one("a", "3"), None).expect("written");
        assert_eq!(read("a"), "3");
        assert!(!dir.path().join("d").exists() && !dir.path().join(before).exists(), "the old files are gone");
        assert_eq!(std::fs::read_link(dir.path().join("a")).expect("a link"), Path::new("..data/a"));
        write(dir.path(), &Payload::new(), None).expect("written");
        assert!(!dir.path().join("a").exists());
    }
}
