//! `apply`, `get`, `delete`, `logs`, `exec`: the few Kubernetes verbs for who has no kubectl. Tables come from the
//! server; this only prints them.

mod apply;
mod connect;
mod delete;
mod exec;
mod fetch;
mod logs;
mod resources;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::failure::Outcome;

pub(crate) use apply::apply_text;
pub(crate) use connect::client;

/// The verbs.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Make objects as a manifest says, or change them to be so.
    Apply {
        /// Manifest (YAML or JSON, several documents allowed); `-` reads standard input.
        #[arg(short, long, required = true)]
        filename: Vec<PathBuf>,
        #[command(flatten)]
        scope: Scope,
        /// Show what would be done; change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Show objects.
    Get {
        /// What: `pods`, `pvc`, `pvc/data`, ...
        resource: String,
        /// One object's name.
        name: Option<String>,
        #[command(flatten)]
        scope: Scope,
        /// All namespaces.
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        /// Only objects with these labels.
        #[arg(short = 'l', long)]
        selector: Option<String>,
        /// Only objects with these fields.
        #[arg(long)]
        field_selector: Option<String>,
        /// table, wide, json, yaml or name.
        #[arg(short, long, default_value = "table")]
        output: fetch::Form,
        /// Go on with every change, until interrupted.
        #[arg(short, long)]
        watch: bool,
    },
    /// Delete objects and wait until they are gone.
    Delete {
        /// Manifest whose objects go.
        #[arg(short, long)]
        filename: Vec<PathBuf>,
        /// What, and the names: `pod shell`.
        #[arg(required_unless_present = "filename", conflicts_with = "filename")]
        target: Vec<String>,
        #[command(flatten)]
        scope: Scope,
        /// Seconds to wait.
        #[arg(long, default_value_t = 60)]
        timeout_s: u64,
        /// Show what would be deleted; delete nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Print a pod's log.
    Logs {
        /// The pod.
        pod: String,
        /// One of its containers.
        #[arg(short, long)]
        container: Option<String>,
        /// Go on as the log grows.
        #[arg(short, long)]
        follow: bool,
        /// Put the time before each line.
        #[arg(long)]
        timestamps: bool,
        /// Only the last lines.
        #[arg(long)]
        tail: Option<i64>,
        #[command(flatten)]
        scope: Scope,
    },
    /// Run a command in a pod.
    Exec {
        /// The pod.
        pod: String,
        /// One of its containers.
        #[arg(short, long)]
        container: Option<String>,
        /// Pass standard input on.
        #[arg(short = 'i', long)]
        stdin: bool,
        #[command(flatten)]
        scope: Scope,
        /// The command, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Which cluster, which namespace.
#[derive(Args, Clone)]
pub(crate) struct Scope {
    /// The namespace.
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Credentials; by default $KUBECONFIG, or the kubeconfig in --dir.
    #[arg(long, env = "KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The cluster's directory.
    #[arg(long, env = "CAIRN_DIR", default_value = crate::DEFAULT_DIR)]
    pub(crate) dir: PathBuf,
}

/// Runs one verb.
pub(crate) async fn run(verb: Verb) -> Outcome {
    match verb {
        Verb::Apply { filename, scope, dry_run } => apply::run(&filename, &scope, dry_run).await,
        Verb::Get { resource, name, scope, all_namespaces, selector, field_selector, output, watch } => {
            let query = fetch::Query { resource, name, all_namespaces, selector, field_selector, form: output, watch };
            fetch::run(query, &scope).await
        }
        Verb::Delete { filename, target, scope, timeout_s, dry_run } => {
            delete::run(&filename, &target, &scope, timeout_s, dry_run).await
        }
        Verb::Logs { pod, container, follow, timestamps, tail, scope } => {
            let params = kube::api::LogParams { container, follow, timestamps, tail_lines: tail, ..Default::default() };
            logs::run(&pod, params, &scope).await
        }
        Verb::Exec { pod, container, stdin, scope, command } => {
            exec::run(&pod, container, stdin, command, &scope).await
        }
    }
}
