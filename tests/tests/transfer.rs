//! Volumes in and out of files and pipes, back to a snapshot and free of their parents, as an administrator does it.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cairn_tests::{Cluster, UpOptions, capture, nbd, nbdcopy, noise, run};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

struct Bench {
    cluster: Cluster,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Result<Self> {
        let cluster = Cluster::up(UpOptions { storage_only: true, ..UpOptions::default() })?;
        Ok(Self { cluster, folder: tempfile::tempdir()? })
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn cairn(&self, args: &[&str]) -> Command {
        self.cluster.cairn(args)
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        run(&mut self.cairn(args))
    }

    /// What a command that must fail says.
    fn refused(&self, args: &[&str]) -> Result<String> {
        let output = self.cairn(args).output()?;
        ensure!(!output.status.success(), "{args:?} must be refused");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The content of a volume or of a snapshot of it.
    fn content(&self, args: &[&str]) -> Result<Vec<u8>> {
        let file = self.file("content");
        self.run(&[&["volume", "export"], args, &[&file]].concat())?;
        let content = std::fs::read(&file)?;
        std::fs::remove_file(&file)?;
        Ok(content)
    }

    fn same(&self, args: &[&str], expected: &[u8]) -> Result<()> {
        let content = self.content(args)?;
        ensure!(content.len() as u64 == SIZE && content[..expected.len()] == *expected, "{args:?} is something else");
        ensure!(content[expected.len()..].iter().all(|byte| *byte == 0), "{args:?} has something at its end");
        Ok(())
    }
}

fn bytes_of(extents: &Value, kind: &str) -> u64 {
    let extents = extents.as_array().into_iter().flatten().filter(|extent| extent["type"] == kind);
    extents.filter_map(|extent| extent["length"].as_u64()).sum()
}

#[test]
fn volumes_leave_and_come_as_files_and_diffs() -> Result<()> {
    let mut bench = Bench::new()?;
    let (first, second) = (bench.file("first"), bench.file("second"));
    noise(Path::new(&first), 24, 1)?;
    std::fs::copy(&first, &second)?;
    // A MiB in the middle is other, and one is zeros.
    let file = File::options().write(true).open(&second)?;
    file.write_all_at(&vec![7; MIB as usize], 3 * MIB)?;
    file.write_all_at(&vec![0; MIB as usize], 9 * MIB)?;
    bench.run(&["volume", "create", "v", "--size", "64Mi"])?;
    ensure!(bytes_of(&bench.cluster.cairn_json(&["volume", "diff", "v"])?, "data") == 0, "nothing was written");
    let uri = nbd(&bench.cluster, "v")?;
    nbdcopy(&first, &uri)?;
    bench.run(&["snapshot", "create", "one", "--volume", "v"])?;
    nbdcopy(&second, &uri)?;
    bench.run(&["snapshot", "create", "two", "--volume", "v"])?;
    let (first, second) = (std::fs::read(&first)?, std::fs::read(&second)?);

    // In use, and as it was; a file has holes where the volume has nothing.
    bench.same(&["v"], &second)?;
    bench.same(&["v", "--snapshot", "one"], &first)?;
    let whole = bench.file("whole");
    let began = Instant::now();
    bench.run(&["volume", "export", "v", &whole, "--snapshot", "one"])?;
    println!("24 of 64 MiB exported: {} ms", began.elapsed().as_millis());
    let metadata = std::fs::metadata(&whole)?;
    ensure!(metadata.len() == SIZE && metadata.blocks() * 512 <= 25 * MIB, "{} blocks", metadata.blocks());
    ensure!(bench.refused(&["volume", "export", "v", &whole])?.contains("exists already"), "a file stays");
    ensure!(
        bench.cluster.cairn_json(&["snapshot", "ls"])?.as_array().is_some_and(|all| all.len() == 2),
        "none is left"
    );

    // What changed. nbdcopy writes everything, so that all of it was written since.
    let du = bench.cluster.cairn_json(&["volume", "du", "v"])?;
    let used = du.as_array().context("a list")?.iter().map(|row| row["used"].as_u64().unwrap_or(0) / MIB);
    let used = used.collect::<Vec<_>>();
    ensure!(used.len() == 3 && used[0] == 24 && used[1] >= 1 && used[2] == 0, "{du}");
    let changed = bench.cluster.cairn_json(&["volume", "diff", "v", "--from", "one", "--to", "two"])?;
    ensure!(bytes_of(&changed, "data") >= MIB, "{changed}");
    ensure!(
        bytes_of(&bench.cluster.cairn_json(&["volume", "diff", "v", "--from", "two"])?, "data") == 0,
        "and nothing later"
    );
    ensure!(
        bench.refused(&["volume", "diff", "v", "--from", "two", "--to", "one"])?.contains("is not older than"),
        "a diff has a direction"
    );

    // The same again elsewhere: everything up to one snapshot, then what came after it.
    let (base, next) = (bench.file("base"), bench.file("next"));
    bench.run(&["volume", "export", "v", &base, "--snapshot", "one", "--diff"])?;
    bench.run(&["volume", "export", "v", &next, "--from", "one", "--snapshot", "two"])?;
    ensure!(bench.refused(&["volume", "import", &next, "w"])?.contains("there is no volume"), "nothing to continue");
    bench.run(&["volume", "import", &base, "w", "--snapshot", "w-one"])?;
    bench.same(&["w"], &first)?;

    // One that was cut off closes the volume, until it is brought back or a whole one has come.
    let cut = bench.file("cut");
    let stream = std::fs::read(&next)?;
    std::fs::write(&cut, &stream[..stream.len() / 2])?;
    let words = bench.refused(&["volume", "import", &cut, "w"])?;
    ensure!(words.contains("it was cut off") && words.contains("cairn volume rollback w"), "{words}");
    let words = bench.refused(&["volume", "attach", "w", "--nbd"])?;
    ensure!(words.contains("is being rolled back to snapshot `w-one`"), "{words}");
    bench.run(&["volume", "rollback", "w", "--to", "w-one"])?;
    bench.same(&["w"], &first)?;
    bench.refused(&["volume", "import", &cut, "w"])?;
    bench.run(&["volume", "import", &next, "w", "--snapshot", "w-two"])?;
    bench.same(&["w"], &second)?;
    bench.same(&["w", "--snapshot", "w-one"], &first)?;
    let words = bench.refused(&["volume", "import", &next, "w", "--snapshot", "again"])?;
    ensure!(words.contains("was written since snapshot `one`") && words.contains("--force"), "{words}");

    // Raw, through a pipe, and no volume where it fails.
    let mut export = bench.cairn(&["volume", "export", "v", "-"]).stdout(Stdio::piped()).spawn()?;
    let pipe = export.stdout.take().context("a pipe")?;
    let imported = bench.cairn(&["volume", "import", "-", "x", "--size", "64Mi"]).stdin(pipe).status()?;
    ensure!(export.wait()?.success() && imported.success(), "through a pipe");
    bench.same(&["x"], &second)?;
    let words = bench.refused(&["volume", "import", &whole, "y", "--size", "8Mi"])?;
    ensure!(words.contains("make the volume larger first"), "{words}");
    ensure!(
        bench.refused(&["volume", "import", &whole, "x"])?.contains("there is a volume x already"),
        "its name is taken"
    );
    let volumes = bench.cluster.cairn_json(&["volume", "ls"])?;
    let names = volumes.as_array().into_iter().flatten().filter_map(|volume| volume["name"].as_str());
    ensure!(names.eq(["v", "w", "x"]), "nothing is left of what failed: {volumes}");
    bench.cluster.reset()
}

#[test]
fn a_volume_goes_back_to_a_snapshot_and_a_clone_becomes_independent() -> Result<()> {
    let mut bench = Bench::new()?;
    let (first, second) = (bench.file("first"), bench.file("second"));
    noise(Path::new(&first), 32, 1)?;
    noise(Path::new(&second), 16, 2)?;
    bench.run(&["volume", "create", "v", "--size", "64Mi"])?;
    let uri = nbd(&bench.cluster, "v")?;
    nbdcopy(&first, &uri)?;
    bench.run(&["snapshot", "create", "one", "--volume", "v"])?;
    nbdcopy(&second, &uri)?;
    let (first, second) = (std::fs::read(&first)?, std::fs::read(&second)?);
    let words = bench.refused(&["volume", "rollback", "v", "--to", "one"])?;
    ensure!(words.contains("is attached to node") && words.contains("detach it there"), "{words}");
    bench.run(&["volume", "detach", "v"])?;
    let dry = capture(&mut bench.cairn(&["volume", "rollback", "v", "--to", "one", "--dry-run"]))?;
    ensure!(dry.contains("as it was in snapshot one"), "{dry}");
    bench.same(&["v"], &[&second[..], &first[second.len()..]].concat())?;

    // An OSD dies on the way.
    bench.run(&["volume", "create", "c", "--from", "one"])?;
    bench.cluster.kill("osd-1")?;
    bench.run(&["volume", "rollback", "v", "--to", "one"])?;
    bench.same(&["v"], &first)?;
    ensure!(bytes_of(&bench.cluster.cairn_json(&["volume", "diff", "c"])?, "data") == 32 * MIB, "its parent's counts");

    let dry = capture(&mut bench.cairn(&["volume", "flatten", "c", "--dry-run"]))?;
    ensure!(dry.contains("32 MiB"), "{dry}");
    let began = Instant::now();
    bench.run(&["volume", "flatten", "c"])?;
    println!("32 MiB flattened: {} ms", began.elapsed().as_millis());
    bench.run(&["volume", "flatten", "c"])?;
    let info = bench.cluster.cairn_json(&["volume", "info", "c"])?;
    ensure!(info["parent_snapshot"].is_null(), "{info}");
    bench.run(&["volume", "rm", "v"])?;
    bench.run(&["snapshot", "rm", "one"])?;
    bench.same(&["c"], &first)?;
    if bench.cluster.cairn_json(&["snapshot", "ls"])?.as_array().is_none_or(|all| !all.is_empty()) {
        bail!("a snapshot is left");
    }
    bench.cluster.reset()
}
