//! `cairn osd verify`: a device that no OSD uses, read from end to end.

use std::path::Path;

use cairn_disk::{Disk, FileDisk, OpenOptions};
use cairn_store::{MAX_PROBLEMS, Report, verify};
use serde_json::{Value, json};

use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};
use crate::size;

pub(super) fn run(path: &Path, format: Format) -> Outcome {
    let options = OpenOptions { path: path.to_owned(), create_len: None, read_only: true };
    let failed = |error: &dyn std::fmt::Display| Failure::new(Code::Failed, error.to_string());
    let disk = FileDisk::open(&options).map_err(|error| failed(&error))?;
    let report = verify(&disk).map_err(|error| failed(&error))?;
    match format {
        Format::Json => output::json(&to_json(&report, disk.len())),
        Format::Table => show(&report, disk.len()),
    }
    if report.is_clean() {
        return Ok(());
    }
    let problems = if report.found == 1 { "1 problem".to_owned() } else { format!("{} problems", report.found) };
    let help = "peers have the data: let a scrub repair it, or put a new OSD on this device";
    let message = format!("{}: {problems}; {help}", path.display());
    Err(Failure::new(Code::Failed, message))
}

fn to_json(report: &Report, device: u64) -> Value {
    let identity = report.superblock.as_ref().map(|superblock| superblock.identity);
    let problems: Vec<Value> = report
        .problems
        .iter()
        .map(|problem| {
            let object = problem.object.map(|object| object.to_string());
            json!({ "object": object, "offset": problem.offset, "what": problem.what })
        })
        .collect();
    json!({
        "clean": report.is_clean(), "device_bytes": device,
        "osd": identity.and_then(|identity| identity.osd).map(|osd| osd.0),
        "osd_uuid": identity.map(|identity| identity.osd_uuid.to_string()),
        "cluster": identity.map(|identity| identity.cluster.to_string()),
        "superblocks": report.superblocks, "objects": report.objects, "index_nodes": report.nodes,
        "log_records": report.records, "pending_entries": report.pending,
        "data_bytes": report.blocks * 4096, "verified_bytes": report.verified * 4096,
        "bad_blocks": report.bad_blocks, "problems_found": report.found, "problems": problems,
    })
}

fn show(report: &Report, device: u64) {
    for problem in &report.problems {
        println!("{problem}");
    }
    if report.found > MAX_PROBLEMS as u64 {
        println!("... and {} more", report.found - MAX_PROBLEMS as u64);
    }
    let identity = report.superblock.as_ref().map(|superblock| superblock.identity);
    let osd = identity.and_then(|identity| identity.osd).map_or("not registered yet".to_owned(), |osd| osd.to_string());
    let rows = [
        ("osd", osd),
        ("uuid", identity.map_or(String::new(), |identity| identity.osd_uuid.to_string())),
        ("device", size::show(device)),
        ("superblock copies", format!("{} of 2", report.superblocks)),
        ("index", format!("{} objects in {} nodes", report.objects, report.nodes)),
        ("log", format!("{} records, {} pending entries", report.records, report.pending)),
        ("data", format!("{}, {} verified", size::show(report.blocks * 4096), size::show(report.verified * 4096))),
        ("bad blocks", report.bad_blocks.to_string()),
        ("problems", report.found.to_string()),
    ];
    output::table(&["CHECK", "RESULT"], rows.map(|(name, value)| vec![name.to_owned(), value]));
}
