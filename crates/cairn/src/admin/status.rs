//! `cairn status` and `cairn health`.

use cairn_proto::meta;
use serde_json::{Value, json};

use super::Target;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};
use crate::size;

/// Members, leader, use of space.
pub(crate) async fn status(target: &Target) -> Outcome {
    let metadata = target.connect()?;
    let status = metadata.status().await?;
    let health = metadata.health().await?;
    if target.output == Format::Json {
        output::json(&status_json(&status, &health.status));
        return Ok(());
    }
    let usage = status.usage.unwrap_or_default();
    println!("cluster   {}", status.cluster_id);
    println!("health    {}", health.status);
    println!("members   {}", members_line(&status));
    println!("map       epoch {}", status.epoch);
    println!(
        "space     {} used of {} raw; {} volumes, {} provisioned",
        size::show(usage.used),
        size::show(usage.capacity),
        usage.volumes,
        size::show(usage.provisioned)
    );
    for check in &health.checks {
        println!("          {} {}: {}", check.severity, check.code, check.summary);
    }
    Ok(())
}

fn members_line(status: &meta::StatusReply) -> String {
    let healthy = status.members.iter().filter(|member| member.healthy).count();
    let leader = if status.leader_id == 0 { "no leader".into() } else { format!("member {} leads", status.leader_id) };
    format!("{healthy} of {} answer, {leader} (term {})", status.members.len(), status.term)
}

fn status_json(status: &meta::StatusReply, health: &str) -> Value {
    let usage = status.usage.unwrap_or_default();
    let members: Vec<Value> = status
        .members
        .iter()
        .map(|member| json!({"id": member.id, "address": member.address, "healthy": member.healthy}))
        .collect();
    json!({
        "cluster_id": status.cluster_id,
        "health": health,
        "member_id": status.member_id,
        "leader_id": status.leader_id,
        "term": status.term,
        "applied_index": status.applied_index,
        "epoch": status.epoch,
        "cluster_version": status.cluster_version,
        "members": members,
        "usage": {
            "capacity": usage.capacity, "used": usage.used,
            "provisioned": usage.provisioned, "volumes": usage.volumes,
        },
    })
}

/// What is wrong, and what to do about it. The exit code says whether anything is.
pub(crate) async fn health(target: &Target) -> Outcome {
    let health = target.connect()?.health().await?;
    if target.output == Format::Json {
        let checks: Vec<Value> = health.checks.iter().map(check_json).collect();
        output::json(&json!({"status": health.status, "checks": checks}));
    } else {
        println!("{}", if health.status == "OK" { "HEALTHY" } else { &health.status });
        for check in &health.checks {
            println!("\n{} {}: {}", check.severity, check.code, check.summary);
            check.details.iter().for_each(|detail| println!("  {detail}"));
            println!("  remedy: {}", check.remedy);
        }
    }
    if health.status == "OK" {
        return Ok(());
    }
    Err(Failure::new(Code::Unhealthy, format!("the cluster is not healthy: {}", health.status)))
}

fn check_json(check: &meta::HealthCheck) -> Value {
    json!({
        "code": check.code, "severity": check.severity, "summary": check.summary,
        "remedy": check.remedy, "details": check.details,
    })
}
