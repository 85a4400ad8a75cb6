//! Namespaces that are to go: everything in them goes first, whatever its kind, and then the hold on the name.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::queue::Verdict;
use crate::reconcile::{Context, Look, Obstacle, patch_status};

/// What holds the name until the namespace is empty.
const HOLD: &str = "kubernetes";
/// Pods need their grace, claims their pods: looked at again after this.
const PAUSE: Duration = Duration::from_millis(500);

/// Looks at a namespace.
pub(crate) async fn look(context: &Context, name: &str) -> Look {
    let Some(namespace) = context.world.namespaces.get(&ObjectRef::new(name)) else { return Ok(Verdict::Settled) };
    let held = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
    let held = held.is_some_and(|held| held.iter().any(|one| one == HOLD));
    if namespace.metadata.deletion_timestamp.is_none() || !held {
        return Ok(Verdict::Settled);
    }
    let left = empty(context, name).await?;
    if left.is_empty() {
        finalize(context, &namespace).await?;
        return Ok(Verdict::Settled);
    }
    say_what_is_left(context, &namespace, &left).await?;
    Ok(Verdict::After(PAUSE))
}

/// Deletes everything in a namespace. What is left, by kind.
async fn empty(context: &Context, namespace: &str) -> Result<Vec<(String, usize)>, Obstacle> {
    let discovery = Discovery::new(context.client.clone()).run().await?;
    let mut left = Vec::new();
    for (kind, capabilities) in discovery.groups().flat_map(|group| group.recommended_resources()) {
        let able = |verb| capabilities.supports_operation(verb);
        if capabilities.scope != Scope::Namespaced || !able(verbs::LIST) || !able(verbs::DELETE) {
            continue;
        }
        let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, &kind);
        let objects = api.list_metadata(&ListParams::default()).await?;
        for object in objects.items.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
            match api.delete(&object.name_any(), &DeleteParams::background()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other?),
            }
        }
        let rest =
            if objects.items.is_empty() { 0 } else { api.list_metadata(&ListParams::default()).await?.items.len() };
        // Events are written about what goes, while it goes.
        if rest > 0 && kind.kind != "Event" {
            left.push((kind.plural.clone(), rest));
        }
    }
    Ok(left)
}

async fn say_what_is_left(context: &Context, namespace: &Namespace, left: &[(String, usize)]) -> Result<(), Obstacle> {
    let list: Vec<String> = left.iter().map(|(plural, count)| format!("{count} {plural}")).collect();
    let message = format!("still there: {}", list.join(", "));
    let conditions = namespace.status.as_ref().and_then(|status| status.conditions.as_ref());
    let said = conditions.into_iter().flatten().any(|one| one.message.as_deref() == Some(&message));
    if !said {
        let condition = json!({"type": "NamespaceContentRemaining", "status": "True", "reason": "SomeResourcesRemain",
            "message": message, "lastTransitionTime": k8s_openapi::jiff::Timestamp::now()});
        let change = json!({"status": {"conditions": [condition]}});
        patch_status(&context.cluster::<Namespace>(), namespace, change).await?;
    }
    Ok(())
}

async fn finalize(context: &Context, namespace: &Namespace) -> Result<(), Obstacle> {
    let mut freed = namespace.clone();
    if let Some(held) = freed.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        held.retain(|one| one != HOLD);
    }
    let namespaces: Api<Namespace> = context.cluster();
    namespaces.replace_subresource("finalize", &namespace.name_any(), &PostParams::default(), &freed).await?;
    Ok(())
}
