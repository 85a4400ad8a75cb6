//! The NBD exporter, driven by the tools that people use: nbdinfo, nbdcopy, qemu-img, qemu-io and fio.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_attach::device::{BlockDevice, IoError};
use cairn_attach::exporter::nbd_socket::NbdSocket;
use cairn_attach::exporter::{Endpoint, Export, ExportError, ExportSpec, ExportState, Exporter, Removal};
use cairn_types::VolumeId;
use cairn_types::id::mix;
use tokio::process::Command;

const SIZE: usize = 24 << 20;

/// A device in memory that can be fenced. Answers come later than questions, and not in their order.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    fenced: AtomicBool,
}

impl Memory {
    fn new() -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(vec![0; SIZE]), fenced: AtomicBool::new(false) })
    }

    async fn with<T>(&self, offset: u64, work: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T, IoError> {
        for _ in 0..offset / 4096 % 3 {
            tokio::task::yield_now().await;
        }
        if self.fenced.load(Ordering::Relaxed) {
            return Err(IoError::Fenced);
        }
        Ok(work(&mut self.bytes.lock().expect("nobody panicked")))
    }
}

#[async_trait]
impl BlockDevice for Memory {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, IoError> {
        let range = offset as usize..offset as usize + len as usize;
        self.with(offset, |bytes| Bytes::copy_from_slice(&bytes[range])).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), IoError> {
        let range = offset as usize..offset as usize + data.len();
        self.with(offset, |bytes| bytes[range].copy_from_slice(&data)).await
    }

    async fn zero(&self, offset: u64, len: u64, _unmap: bool) -> Result<(), IoError> {
        let range = offset as usize..(offset + len) as usize;
        self.with(offset, |bytes| bytes[range].fill(0)).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.with(0, |_| ()).await
    }
}

struct Stage {
    directory: tempfile::TempDir,
    exporter: NbdSocket,
    memory: Arc<Memory>,
    export: Box<dyn Export>,
}

impl Stage {
    async fn set(read_only: bool) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let exporter = NbdSocket::new(directory.path().join("nbd"));
        let memory = Memory::new();
        let spec = ExportSpec { volume: VolumeId(7), name: "data".into(), read_only };
        let device: Arc<dyn BlockDevice> = Arc::<Memory>::clone(&memory);
        let export = exporter.export(&spec, device).await.expect("exports");
        Self { directory, exporter, memory, export }
    }

    fn socket(&self) -> PathBuf {
        let Endpoint::Socket(path) = self.export.endpoint() else { panic!("a socket") };
        path
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///data?socket={}", self.socket().display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file as large as the device: noise, with holes in it.
    fn source(&self) -> PathBuf {
        let path = self.file("source");
        let mut noise: Vec<u8> = (0..SIZE as u64 / 8).flat_map(|i| mix(i).to_le_bytes()).collect();
        noise[3 << 20..9 << 20].fill(0);
        noise[20_000_001..20_009_999].fill(0);
        std::fs::write(&path, noise).expect("writes");
        path
    }

    fn holds(&self, path: &Path) -> bool {
        *self.memory.bytes.lock().expect("nobody panicked") == std::fs::read(path).expect("reads")
    }
}

/// Runs a tool and returns what it said.
async fn run(tool: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(tool);
    command.args(arguments).current_dir(std::env::temp_dir()).kill_on_drop(true);
    match command.output().await {
        Ok(output) => output,
        Err(error) => panic!(
            "`{tool}` cannot be run ({error}): install the packages libnbd-bin, qemu-utils and fio, \
             or run `cargo xtask test`, which does"
        ),
    }
}

/// Runs a tool that must succeed.
async fn good(tool: &str, arguments: &[&str]) -> String {
    let output = run(tool, arguments).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{tool} {arguments:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_sees_what_it_can_do() {
    let stage = Stage::set(false).await;
    let uri = stage.uri();
    assert_eq!(good("nbdinfo", &["--size", &uri]).await.trim(), SIZE.to_string());
    for ability in ["flush", "fua", "trim", "zero", "fast-zero", "multi-conn", "cache", "structured-reply", "df"] {
        good("nbdinfo", &["--can", ability, &uri]).await;
    }
    assert!(!run("nbdinfo", &["--is", "read-only", &uri]).await.status.success());
    let all = good("nbdinfo", &["--json", "--no-content", &uri]).await;
    let all: serde_json::Value = serde_json::from_str(&all).expect("JSON");
    let export = &all["exports"][0];
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 << 20);
    assert_eq!(export["block_size_minimum"], 1);
    let listed = good("nbdinfo", &["--list", "--no-content", &uri]).await;
    assert!(listed.contains("export=\"data\""), "{listed}");
    let wrong = uri.replace("///data", "///other");
    assert!(!run("nbdinfo", &[&wrong]).await.status.success(), "there is no such export");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_there_and_back() {
    let stage = Stage::set(false).await;
    let (uri, source, back) = (stage.uri(), stage.source(), stage.file("back"));
    let many = ["--connections=4", "--requests=64", "--flush", "--no-extents"];
    good("nbdcopy", &[&many[..], &[source.to_str().expect("UTF-8"), &uri]].concat()).await;
    assert!(stage.holds(&source));
    good("nbdcopy", &["--connections=4", &uri, back.to_str().expect("UTF-8")]).await;
    assert!(stage.holds(&back));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_converts_compares_and_pokes() {
    let stage = Stage::set(false).await;
    let (uri, source) = (stage.uri(), stage.source());
    let source = source.to_str().expect("UTF-8");
    good("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", source, &uri]).await;
    assert!(stage.holds(Path::new(source)));
    good("qemu-img", &["compare", "-f", "raw", "-F", "raw", source, &uri]).await;
    let info = good("qemu-img", &["info", "--output=json", &uri]).await;
    let info: serde_json::Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["virtual-size"], SIZE);

    let mut expected = std::fs::read(source).expect("reads");
    expected[100..300].fill(0xaa);
    expected[65536..131_072].fill(0xbb);
    expected[1 << 20..(1 << 20) + 5000].fill(0);
    expected[2 << 20..(2 << 20) + 65536].fill(0);
    expected[12 << 20..(12 << 20) + 8192].fill(0);
    let pokes = [
        "write -P 0xaa 100 200",
        "write -f -P 0xbb 64k 64k",
        "write -z 1M 5000",
        "write -z -u 2M 64k",
        "discard 12M 8k",
        "flush",
        "read -P 0xaa 100 200",
    ];
    let mut arguments = vec!["-f", "raw"];
    pokes.iter().for_each(|poke| arguments.extend(["-c", poke]));
    arguments.push(&uri);
    let said = good("qemu-io", &arguments).await;
    assert!(!said.contains("failed") && !said.contains("error"), "{said}");
    assert!(*stage.memory.bytes.lock().expect("nobody panicked") == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_verifies_what_it_wrote() {
    let stage = Stage::set(false).await;
    let uri = format!("--uri={}", stage.uri());
    let engine = good("fio", &["--enghelp"]).await;
    assert!(engine.contains("nbd"), "this fio has no nbd engine; install one built with libnbd");
    let mixed = [
        "--name=mixed",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--blockalign=512",
        "--size=20M",
        "--io_size=24M",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--randseed=7",
        "--verify_state_save=0",
        "--fsync=64",
    ];
    good("fio", &mixed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_export_takes_no_writes() {
    let stage = Stage::set(true).await;
    let uri = stage.uri();
    good("nbdinfo", &["--is", "read-only", &uri]).await;
    let source = stage.source();
    assert!(!run("nbdcopy", &[source.to_str().expect("UTF-8"), &uri]).await.status.success());
    assert!(!stage.holds(&source));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_volume_fails_with_an_error_and_says_so() {
    let stage = Stage::set(false).await;
    let uri = stage.uri();
    assert_eq!(stage.export.state(), ExportState::Serving);
    stage.memory.fenced.store(true, Ordering::Relaxed);
    let failed = run("nbdcopy", &[&uri, "null:"]).await;
    assert!(!failed.status.success());
    assert!(String::from_utf8_lossy(&failed.stderr).contains("Input/output error"), "{failed:?}");
    assert_eq!(stage.export.state(), ExportState::Fenced);
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_export() {
    let stage = Stage::set(false).await;
    let socket = stage.socket();
    let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o7777;
    assert_eq!((mode(&socket), mode(socket.parent().expect("a directory"))), (0o600, 0o700));
    assert_eq!(stage.exporter.remains().await.expect("lists"), [VolumeId(7)]);

    let mut client = tokio::net::UnixStream::connect(&socket).await.expect("connects");
    let mut greeting = [0; 18];
    tokio::io::AsyncReadExt::read_exact(&mut client, &mut greeting).await.expect("the server speaks first");
    let busy = stage.export.remove(Removal::IfIdle).await;
    assert!(matches!(busy, Err(ExportError::InUse { .. })));
    assert_eq!(stage.export.state(), ExportState::Serving);
    stage.export.remove(Removal::Force).await.expect("removes");
    assert_eq!(tokio::io::AsyncReadExt::read(&mut client, &mut greeting).await.expect("ends"), 0);
    assert!(!socket.exists());
    stage.export.remove(Removal::IfIdle).await.expect("nothing left to do");
    assert_eq!(stage.exporter.remains().await.expect("lists"), []);
}

#[tokio::test]
async fn who_leaves_keeps_the_name_for_a_successor() {
    let stage = Stage::set(false).await;
    let socket = stage.socket();
    stage.export.leave().await;
    assert_eq!(stage.export.state(), ExportState::Failed);
    let spec = ExportSpec { volume: VolumeId(7), name: "data".into(), read_only: false };
    let device: Arc<dyn BlockDevice> = Arc::<Memory>::clone(&stage.memory);
    let resumed = stage.exporter.resume(&spec, &Endpoint::Socket(socket.clone()), Arc::clone(&device)).await;
    assert!(matches!(resumed, Err(ExportError::NothingToResume { .. })));
    assert_eq!(stage.exporter.remains().await.expect("lists"), [VolumeId(7)]);
    stage.exporter.sweep(VolumeId(7)).await.expect("sweeps");
    assert!(!socket.exists());
    let again = stage.exporter.export(&spec, device).await.expect("exports");
    tokio::net::UnixStream::connect(&socket).await.expect("connects");
    again.remove(Removal::Force).await.expect("removes");
}
