//! The one binary: every role, the administrator's verbs, and a few Kubernetes verbs. Wiring and output; no logic.

#![forbid(unsafe_code)]

mod admin;
mod failure;
mod form;
mod kube;
mod output;
mod roles;
mod size;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::admin::{
    HealthVerb, MetaVerb, NodeVerb, OsdVerb, PgVerb, PoolVerb, SnapshotVerb, Target, TrashVerb, VolumeVerb,
};
use crate::failure::Outcome;

/// Where a cluster lives when nothing else is said.
pub(crate) const DEFAULT_DIR: &str = "/var/lib/cairn";

#[derive(Parser)]
#[command(
    name = "cairn",
    version,
    about = "Distributed block storage for clusters",
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 cluster not reachable, 4 not found, \
                  5 not healthy, 6 not done in time."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a whole cluster on this host, and wait until it is healthy.
    Up(up::Up),
    /// Make a cluster of several hosts, beginning with this one; prints the command by which others join.
    Init(form::Init),
    /// Make this host part of a cluster.
    Join(form::Join),
    /// Join tokens: create; forget a host that joined.
    Token {
        #[command(subcommand)]
        verb: form::TokenVerb,
    },
    /// Stop a cluster of this host; its data stays.
    Down(up::Down),
    /// Stop a cluster of this host and delete everything of it.
    Reset(up::Reset),
    /// Members, leader, use of space.
    Status {
        #[command(flatten)]
        target: Target,
    },
    /// What is wrong, and what to do about it: detail, mute, unmute.
    Health {
        #[command(subcommand)]
        verb: Option<HealthVerb>,
        #[command(flatten)]
        target: Target,
    },
    /// Volumes: create, ls, info, resize, rename, label, set, attach, detach, rm, undelete.
    Volume {
        #[command(subcommand)]
        verb: VolumeVerb,
        #[command(flatten)]
        target: Target,
    },
    /// Snapshots of volumes: create, ls, info, rm.
    Snapshot {
        #[command(subcommand)]
        verb: SnapshotVerb,
        #[command(flatten)]
        target: Target,
    },
    /// Deleted volumes that are kept for a while: list, purge.
    Trash {
        #[command(subcommand)]
        verb: TrashVerb,
        #[command(flatten)]
        target: Target,
    },
    /// Pools: create, ls, set, scrub.
    Pool {
        #[command(subcommand)]
        verb: PoolVerb,
        #[command(flatten)]
        target: Target,
    },
    /// Placement groups: ls, query, scrub, schedule.
    Pg {
        #[command(subcommand)]
        verb: PgVerb,
        #[command(flatten)]
        target: Target,
    },
    /// Nodes: ls.
    Node {
        #[command(subcommand)]
        verb: NodeVerb,
        #[command(flatten)]
        target: Target,
    },
    /// OSDs: ls, tree, verify, drain, in, out, reweight, replace, remove, moves, balance, set. Without a verb: run one.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Osd {
        #[command(subcommand)]
        verb: Option<OsdVerb>,
        #[command(flatten)]
        role: Option<roles::OsdDaemon>,
    },
    /// Metadata members: ls, add, remove, replace, backup, restore. Without a verb: run one.
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Meta {
        #[command(subcommand)]
        verb: Option<MetaVerb>,
        #[command(flatten)]
        role: Option<roles::MetaDaemon>,
    },
    #[command(flatten)]
    Kube(kube::Verb),
    #[command(flatten)]
    Role(roles::Role),
    /// The process behind `up`: keeps a cluster's processes running.
    #[command(hide = true)]
    Supervise(up::Supervise),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code as u8)
        }
    }
}

fn run(verb: Verb) -> Outcome {
    match verb {
        Verb::Role(role) => roles::run(role),
        Verb::Osd { verb: None, role: Some(role) } => roles::run_osd(role),
        Verb::Meta { verb: None, role: Some(role) } => roles::run_meta(role),
        Verb::Supervise(options) => {
            roles::log_to_stderr();
            roles::runtime(2)?.block_on(up::supervise(options))
        }
        other => {
            sigpipe::reset();
            roles::runtime(1)?.block_on(command(other))
        }
    }
}

/// Commands that ask, print and end.
async fn command(verb: Verb) -> Outcome {
    match verb {
        Verb::Up(options) => up::up(options).await,
        Verb::Init(options) => form::init(options).await,
        Verb::Join(options) => form::join(options).await,
        Verb::Token { verb } => form::token(verb).await,
        Verb::Down(options) => up::down(options).await,
        Verb::Reset(options) => up::take_away(options).await,
        Verb::Status { target } => admin::status(&target).await,
        Verb::Health { verb, target } => admin::health(verb, &target).await,
        Verb::Volume { verb, target } => admin::volume(verb, &target).await,
        Verb::Snapshot { verb, target } => admin::snapshot(verb, &target).await,
        Verb::Trash { verb, target } => admin::trash(verb, &target).await,
        Verb::Pool { verb, target } => admin::pool(verb, &target).await,
        Verb::Pg { verb, target } => admin::pg(verb, &target).await,
        Verb::Node { verb, target } => admin::node(verb, &target).await,
        Verb::Osd { verb: Some(verb), .. } => admin::osd(verb).await,
        Verb::Meta { verb: Some(verb), .. } => admin::meta(verb).await,
        Verb::Kube(verb) => kube::run(verb).await,
        Verb::Osd { .. } | Verb::Meta { .. } | Verb::Role(_) | Verb::Supervise(_) => unreachable!("handled by `run`"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_role_and_a_noun_share_a_word() {
        let cli = Cli::try_parse_from(["cairn", "osd", "tree", "-o", "json"]).unwrap();
        assert!(matches!(cli.verb, Verb::Osd { verb: Some(OsdVerb::Tree(_)), .. }));
    }

    #[test]
    fn an_osd_runs_where_no_verb_is_named() {
        let line = "cairn osd --device /d --meta h:1,h:2 --listen unix:/s --host n";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert!(matches!(cli.verb, Verb::Osd { verb: None, role: Some(_) }));
    }

    #[test]
    fn a_metadata_member_runs_where_no_verb_is_named() {
        let line = "cairn meta --dir d --listen h:1 --join h:2,h:3";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert!(matches!(cli.verb, Verb::Meta { verb: None, role: Some(_) }));
        let cli = Cli::try_parse_from(["cairn", "meta", "replace", "2", "h:4", "--dry-run"]).unwrap();
        assert!(matches!(cli.verb, Verb::Meta { verb: Some(MetaVerb::Replace { id: 2, dry_run: true, .. }), .. }));
    }

    #[test]
    fn a_wrong_flag_is_answered_with_the_right_one() {
        let error = Cli::try_parse_from(["cairn", "volume", "create", "v", "--sise", "1Gi"]).err().unwrap();
        assert!(error.to_string().contains("--size"), "{error}");
    }
}
