//! A metadata member, three OSDs on files, and a client, in this process, over real sockets: what is written is read
//! back through stops and returns of OSDs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client::{Claim, Holding, Options, Volume};
use cairn_meta_client::{MapWatch, MetaClient};
use cairn_proto::meta;
use cairn_types::map::{ClusterMap, Location};
use cairn_types::volume::AttachMode;
use cairn_types::{VolumeId, id::mix};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, on a busy machine either.
const PATIENCE: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

struct Running<E> {
    stop: CancellationToken,
    task: JoinHandle<Result<(), E>>,
}

impl<E: std::fmt::Display> Running<E> {
    async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap() {
            panic!("{error}");
        }
    }
}

struct Cluster {
    dir: TempDir,
    address: String,
    meta: Running<cairn_meta::Error>,
    osds: Vec<Option<Running<cairn_osd::Error>>>,
    client: MetaClient,
    maps: MapWatch,
}

impl Cluster {
    async fn start(osds: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let members = vec![(1, address.clone())];
        let mut config = cairn_meta::Config::new(1, dir.path().join("meta"), address.clone(), members);
        config.heartbeat = Duration::from_millis(50);
        config.election = Duration::from_millis(300);
        let stop = CancellationToken::new();
        let task = tokio::spawn(cairn_meta::serve(config, listener, stop.clone()));
        let client = MetaClient::new(&[&address]).unwrap();
        let maps = client.watch_map();
        let meta = Running { stop, task };
        let mut cluster = Self { dir, address, meta, osds: Vec::new(), client, maps };
        for at in 0..osds {
            cluster.osds.push(None);
            cluster.start_osd(at);
        }
        cluster.wait("all OSDs are up", |map| map.osds.values().filter(|osd| osd.up).count() == osds).await;
        cluster
    }

    fn device(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("osd-{at}.img"))
    }

    fn config(&self, at: usize) -> cairn_osd::Config {
        cairn_osd::Config {
            device: self.device(at),
            size: Some(256 * MIB),
            formatted: false,
            meta: vec![self.address.clone()],
            listen: vec![format!("unix:{}", self.dir.path().join(format!("osd-{at}.sock")).display())],
            location: Location { zone: "default".into(), rack: "default".into(), host: "here".into() },
            device_class: "ssd".into(),
            insecure_listen: false,
            disk_faults: None,
        }
    }

    fn start_osd(&mut self, at: usize) {
        let stop = CancellationToken::new();
        let task = tokio::spawn(cairn_osd::run(self.config(at), stop.clone()));
        self.osds[at] = Some(Running { stop, task });
    }

    async fn stop_osd(&mut self, at: usize) {
        self.osds[at].take().unwrap().stop().await;
    }

    async fn wait(&self, what: &str, mut holds: impl FnMut(&ClusterMap) -> bool) -> Arc<ClusterMap> {
        let mut maps = self.maps.clone();
        let found = tokio::time::timeout(PATIENCE, maps.wait_for(|map| holds(map))).await;
        match found {
            Ok(map) => Arc::clone(&map.unwrap()),
            Err(_) => panic!("{what}: {:?}", self.maps.borrow().pgs),
        }
    }

    async fn all_in_sync(&mut self) {
        self.wait("every group is whole", |map| {
            !map.pgs.is_empty() && map.pgs.values().all(|pg| pg.primary.is_some() && pg.isr.len() == 3)
        })
        .await;
    }

    async fn volume(&mut self) -> Volume {
        let pool = meta::Pool {
            name: "default".into(),
            size: 3,
            min_size: 2,
            failure_domain: "osd".into(),
            pg_count: 8,
            ..meta::Pool::default()
        };
        let request =
            meta::CreatePoolRequest { mutation: None, pool: Some(pool), allow_degraded: false, expected_osds: 0 };
        self.client.create_pool(request).await.unwrap();
        self.all_in_sync().await;
        let request = meta::CreateVolumeRequest {
            name: "v".into(),
            pool: "default".into(),
            size: 64 * MIB,
            ..meta::CreateVolumeRequest::default()
        };
        let volume = self.client.create_volume(request).await.unwrap().volume.unwrap();
        let node = meta::RegisterNodeRequest { name: "here".into(), ..meta::RegisterNodeRequest::default() };
        self.client.register_node(node).await.unwrap();
        let claim = Claim {
            volume: VolumeId(volume.id),
            node: "here".into(),
            mode: AttachMode::Exclusive,
            steal: false,
            replaces: None,
            restores: None,
        };
        let holding = Holding::attach(&self.client, &claim).await.unwrap();
        Volume::open(&holding, self.client.watch_map(), Some(self.client.clone()), Options::default())
            .with_deadline(PATIENCE)
    }

    async fn shut_down(self) {
        for osd in self.osds.into_iter().flatten() {
            osd.stop().await;
        }
        self.meta.stop().await;
    }
}

/// What the volume must hold.
struct Oracle {
    bytes: Vec<u8>,
    random: u64,
}

impl Oracle {
    fn next(&mut self) -> u64 {
        self.random = mix(self.random);
        self.random
    }

    async fn write(&mut self, volume: &Volume) {
        let offset = self.next() % (63 * MIB) / 512 * 512;
        let len = match self.next() % 8 {
            0 => 1 + self.next() % MIB,
            1..=3 => 4096 * (1 + self.next() % 8),
            _ => 4096,
        };
        let fill = self.next() as u8;
        let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add((i / 512) as u8)).collect();
        volume.write_at(offset, Bytes::from(data.clone())).await.unwrap();
        self.bytes[offset as usize..(offset + len) as usize].copy_from_slice(&data);
    }

    async fn check(&self, volume: &Volume) {
        for at in (0..self.bytes.len()).step_by(MIB as usize) {
            let found = volume.read_at(at as u64, MIB).await.unwrap();
            assert!(found == self.bytes[at..at + MIB as usize], "the bytes from {at} differ");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_survives_stops_and_returns() {
    let mut cluster = Cluster::start(3).await;
    let volume = cluster.volume().await;
    let mut oracle = Oracle { bytes: vec![0; 64 * MIB as usize], random: 7 };
    for _ in 0..40 {
        oracle.write(&volume).await;
    }
    for at in 0..3 {
        cluster.stop_osd(at).await;
        for _ in 0..20 {
            oracle.write(&volume).await;
        }
        cluster.start_osd(at);
        cluster.all_in_sync().await;
    }
    oracle.check(&volume).await;
    for at in 0..3 {
        cluster.stop_osd(at).await;
    }
    for at in 0..3 {
        cluster.start_osd(at);
    }
    oracle.check(&volume).await;
    oracle.write(&volume).await;
    cluster.all_in_sync().await;
    oracle.check(&volume).await;
    volume.close().await;
    let devices: Vec<PathBuf> = (0..3).map(|at| cluster.device(at)).collect();
    let dir = cluster.dir.path().to_owned();
    // The directory outlives the daemons, so that the devices can be looked at.
    let Cluster { dir: keep, osds, meta, .. } = cluster;
    for osd in osds.into_iter().flatten() {
        osd.stop().await;
    }
    meta.stop().await;
    for device in devices {
        let options = cairn_disk::OpenOptions { path: device, create_len: None, read_only: true };
        let report = cairn_store::verify(&cairn_disk::FileDisk::open(&options).unwrap()).unwrap();
        assert_eq!(report.problems, []);
        assert!(report.superblock.unwrap().identity.osd.is_some());
    }
    drop(keep);
    assert!(!dir.exists());
}

/// Whoever hears of an OSD dials it at once, and takes a refusal for its end: such an OSD was put out of its groups when
/// it had just come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_osd_listens_before_anybody_knows_of_it() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("osd.sock");
    let config = cairn_osd::Config {
        device: dir.path().join("osd.img"),
        size: Some(256 * MIB),
        formatted: false,
        meta: vec![nobody.local_addr().unwrap().to_string()],
        listen: vec![format!("unix:{}", socket.display())],
        location: Location { zone: "default".into(), rack: "default".into(), host: "here".into() },
        device_class: "ssd".into(),
        insecure_listen: false,
        disk_faults: None,
    };
    let stop = CancellationToken::new();
    let task = tokio::spawn(cairn_osd::run(config, stop.clone()));
    let dialled = async {
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, dialled).await.expect("it never listened");
    Running { stop, task }.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_in_use_and_an_exposed_address_are_refused() {
    let cluster = Cluster::start(1).await;
    let refused = cairn_osd::run(cluster.config(0), CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
    let mut config = cluster.config(0);
    config.listen = vec!["tcp:0.0.0.0:0".into()];
    let refused = cairn_osd::run(config, CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("--insecure-listen"), "{refused}");
    let up = cluster.wait("it is up", |map| map.osds.len() == 1).await;
    assert!(up.osds.values().all(|osd| osd.up));
    cluster.shut_down().await;
}
