//! What the tests stand on: volumes that are files, with generations and fences like the cluster's.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_attach::device::{BlockDevice, IoError};
use cairn_attach::source::{Held, HeldDevice, SourceError, VolumeSource, Want};
use cairn_attach::{Config, KeeperConfig};
use cairn_proto::attach::attach_daemon_client::AttachDaemonClient;
use cairn_types::map::Location;
use cairn_types::{Generation, NodeName, VolumeId};
use tonic::transport::{Channel, Endpoint, Uri};

/// Volumes that are files in a directory: `N.data`, and `N.holder` with the generation that may write.
pub(crate) struct FileSource {
    pub(crate) dir: PathBuf,
    /// Every request takes this long, so that a kill finds some in flight.
    pub(crate) delay: Duration,
}

impl FileSource {
    pub(crate) fn create(dir: &Path, volume: u64, size: u64) {
        File::create(dir.join(format!("{volume}.data"))).unwrap().set_len(size).unwrap();
        set_holder(dir, volume, 0);
    }
}

pub(crate) fn holder(dir: &Path, volume: u64) -> u64 {
    std::fs::read_to_string(dir.join(format!("{volume}.holder"))).unwrap().parse().unwrap()
}

/// Another holder takes over: what the cluster does to a fenced node.
pub(crate) fn set_holder(dir: &Path, volume: u64, generation: u64) {
    let fresh = dir.join(format!("{volume}.holder.new"));
    std::fs::write(&fresh, generation.to_string()).unwrap();
    std::fs::rename(fresh, dir.join(format!("{volume}.holder"))).unwrap();
}

#[async_trait]
impl VolumeSource for FileSource {
    async fn register_node(&self) -> Result<(), SourceError> {
        Ok(())
    }

    async fn attach(&self, want: &Want) -> Result<Held, SourceError> {
        let volume = want.volume;
        if !self.dir.join(format!("{}.data", volume.0)).exists() {
            let message = format!("there is no volume with id {}", volume.0);
            return Err(SourceError::Refused { code: tonic::Code::NotFound, message });
        }
        let now = holder(&self.dir, volume.0);
        if want.continues.is_some_and(|generation| generation.0 != now) {
            return Err(SourceError::Ended { volume });
        }
        set_holder(&self.dir, volume.0, now + 1);
        let (dir, delay) = (self.dir.clone(), self.delay);
        let device = Arc::new(FileDevice::open(dir, volume.0, now + 1, delay));
        Ok(Held { name: format!("test-{}", volume.0), generation: Generation(now + 1), device })
    }

    async fn holds(&self, volume: VolumeId, generation: Generation, _: &str) -> Result<bool, SourceError> {
        Ok(holder(&self.dir, volume.0) == generation.0)
    }

    async fn detach(&self, _: VolumeId, _: Generation, _: &str) -> Result<(), SourceError> {
        Ok(())
    }
}

pub(crate) struct FileDevice {
    dir: PathBuf,
    volume: u64,
    generation: u64,
    file: Arc<File>,
    delay: Duration,
}

impl FileDevice {
    pub(crate) fn open(dir: PathBuf, volume: u64, generation: u64, delay: Duration) -> Self {
        let path = dir.join(format!("{volume}.data"));
        let file = Arc::new(File::options().read(true).write(true).open(path).unwrap());
        Self { dir, volume, generation, file, delay }
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, IoError> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        if holder(&self.dir, self.volume) != self.generation {
            return Err(IoError::Fenced);
        }
        let file = self.file.clone();
        tokio::task::spawn_blocking(move || work(&file)).await.unwrap().map_err(|_| IoError::Corrupt)
    }
}

#[async_trait]
impl BlockDevice for FileDevice {
    fn size(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, IoError> {
        self.work(move |file| {
            let mut data = vec![0; len as usize];
            file.read_exact_at(&mut data, offset)?;
            Ok(data.into())
        })
        .await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), IoError> {
        self.work(move |file| file.write_all_at(&data, offset)).await
    }

    async fn zero(&self, offset: u64, len: u64, _: bool) -> Result<(), IoError> {
        use rustix::fs::{FallocateFlags, fallocate};
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.work(move |file| fallocate(file, hole, offset, len).map_err(Into::into)).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.work(|_| Ok(())).await
    }
}

#[async_trait]
impl HeldDevice for FileDevice {
    async fn refresh(&self, _: &str) -> Result<u64, SourceError> {
        Ok(self.size())
    }

    async fn close(&self) {}
}

/// Everything of one test in one directory.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    children: Vec<(String, Child)>,
}

const ROLE: &str = "CAIRN_TEST_ROLE";
const PLACE: &str = "CAIRN_TEST_PLACE";

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("volumes")).unwrap();
        Self { dir, children: Vec::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts this very test binary as another process, which finds its role in its environment.
    pub(crate) fn start(&mut self, role: &str) {
        let exe = std::env::current_exe().unwrap();
        let mut command = Command::new(exe);
        command.args(["--exact", "child_process", "--nocapture"]).env(ROLE, role).env(PLACE, self.dir.path());
        command.stdout(std::process::Stdio::null());
        self.children.push((role.to_owned(), command.spawn().unwrap()));
    }

    /// kill -9, and wait until it is dead.
    pub(crate) fn kill(&mut self, role: &str) {
        let at = self.children.iter().position(|(name, _)| name == role).unwrap();
        let (_, mut child) = self.children.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, and wait until it has stopped by itself.
    pub(crate) fn stop(&mut self, role: &str) {
        let at = self.children.iter().position(|(name, _)| name == role).unwrap();
        let (_, mut child) = self.children.remove(at);
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
    }

    pub(crate) async fn client(&self) -> AttachDaemonClient<Channel> {
        let path = self.path("attach.sock");
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://attach");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match endpoint.connect_with_connector(connect.clone()).await {
                Ok(channel) => return AttachDaemonClient::new(channel),
                Err(error) if Instant::now() > deadline => panic!("attach does not serve: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn config(dir: &Path) -> Config {
        let name = || "default".to_owned();
        Config {
            node: NodeName("node-1".into()),
            socket: dir.join("attach.sock"),
            dir: dir.join("attach"),
            keeper_socket: dir.join("keeper.sock"),
            meta: Vec::new(),
            location: Location { zone: name(), rack: name(), host: "node-1".into() },
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for (_, child) in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
        let dir = self.dir.path().to_owned();
        let torn = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(cairn_attach::teardown(&dir.join("attach"), &dir.join("keeper.sock")))
        });
        let torn = torn.join().unwrap();
        if !std::thread::panicking() {
            torn.unwrap();
        }
    }
}

/// The body of the test `child_process`: nothing, unless the environment names a role.
pub(crate) fn play_role() {
    let (Ok(role), Ok(place)) = (std::env::var(ROLE), std::env::var(PLACE)) else { return };
    let place = PathBuf::from(place);
    match role.as_str() {
        "keeper" => cairn_attach::run_keeper(KeeperConfig { socket: place.join("keeper.sock"), stop: None }).unwrap(),
        "attach" => {
            let delay = Duration::from_millis(if place.join("slow").exists() { 20 } else { 0 });
            let source = Arc::new(FileSource { dir: place.join("volumes"), delay });
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let shutdown = tokio_util::sync::CancellationToken::new();
                let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
                let stopping = shutdown.clone();
                tokio::spawn(async move {
                    term.recv().await;
                    stopping.cancel();
                });
                cairn_attach::run_with(Place::config(&place), source, shutdown).await.unwrap();
            });
        }
        other => panic!("no role `{other}`"),
    }
}

/// Runs a command, and panics with its output where it fails.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Unmounts when it goes.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn new(device: &str, at: PathBuf) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        sh(&format!("mount -t ext4 -o errors=remount-ro {device} {}", at.display()));
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
