//! `cairn status` and `cairn health`.

use cairn_proto::meta;
use clap::Subcommand;
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

/// What can be done with health checks.
#[derive(Subcommand)]
pub(crate) enum HealthVerb {
    /// With everything that is concerned, and what each check means.
    Detail,
    /// Take a check out of the status; it is still shown.
    Mute {
        /// Its code: OSD_DOWN, PG_DEGRADED, ...
        code: String,
        /// For how long: 30m, 1h, 7d. Without it: until it is unmuted.
        #[arg(long = "for", value_parser = duration)]
        lasts: Option<u64>,
    },
    /// Let a check count again.
    Unmute {
        /// Its code.
        code: String,
    },
}

/// Seconds of `30s`, `5m`, `1h`, `7d`.
fn duration(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no duration; write 30m, 1h or 7d");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().filter(|n| *n > 0).and_then(|n| n.checked_mul(seconds)).ok_or_else(wrong)
}

/// What is wrong, and what to do about it. The exit code says whether anything is.
pub(crate) async fn health(verb: Option<HealthVerb>, target: &Target) -> Outcome {
    match verb {
        None => show_health(target, false).await,
        Some(HealthVerb::Detail) => show_health(target, true).await,
        Some(HealthVerb::Mute { code, lasts }) => {
            let until_s = lasts.map_or(0, |lasts| now_s() + lasts);
            let request = meta::MuteHealthRequest { mutation: None, code, until_s, unmute: false };
            target.connect()?.0.mute_health(request).await?;
            Ok(())
        }
        Some(HealthVerb::Unmute { code }) => {
            let request = meta::MuteHealthRequest { mutation: None, code, until_s: 0, unmute: true };
            target.connect()?.0.mute_health(request).await?;
            Ok(())
        }
    }
}

fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

async fn show_health(target: &Target, detailed: bool) -> Outcome {
    let health = target.connect()?.health().await?;
    if target.output == Format::Json {
        let checks: Vec<Value> = health.checks.iter().map(check_json).collect();
        output::json(&json!({"status": health.status, "checks": checks}));
    } else {
        println!("{}", if health.status == "OK" { "HEALTHY" } else { &health.status });
        for check in &health.checks {
            println!("\n{} {}: {}{}", check.severity, check.code, check.summary, muted(check));
            if detailed {
                check.details.iter().for_each(|detail| println!("  {detail}"));
            }
            println!("  remedy: {}", check.remedy);
        }
        if !detailed && health.checks.iter().any(|check| !check.details.is_empty()) {
            println!("\n`cairn health detail` names what is concerned");
        }
    }
    if health.status == "OK" {
        return Ok(());
    }
    Err(Failure::new(Code::Unhealthy, format!("the cluster is not healthy: {}", health.status)))
}

fn muted(check: &meta::HealthCheck) -> String {
    match (check.muted, check.muted_until_s) {
        (false, _) => String::new(),
        (true, 0) => " (muted until it is unmuted)".to_owned(),
        (true, until_s) => format!(" (muted for {} min more)", until_s.saturating_sub(now_s()).div_ceil(60)),
    }
}

fn check_json(check: &meta::HealthCheck) -> Value {
    json!({
        "code": check.code, "severity": check.severity, "summary": check.summary, "remedy": check.remedy,
        "details": check.details, "muted": check.muted, "muted_until_s": check.muted_until_s,
    })
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(
            (duration("90s"), duration("5m"), duration("2h"), duration("7d")),
            (Ok(90), Ok(300), Ok(7200), Ok(604_800))
        );
        assert!(["5", "h", "0m", "1w", "99999999999999999999d"].iter().all(|text| duration(text).is_err()));
    }
}
