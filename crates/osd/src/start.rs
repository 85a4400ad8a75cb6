//! From a device to a serving OSD: open or format it, register with the metadata service, write down the new life
//! before anything is done under it, then run the loop until it ends.

use std::path::PathBuf;
use std::sync::Arc;

use cairn_disk::{BufferPool, Disk, FileDisk, OpenOptions};
use cairn_meta_client::{MapWatch, MetaClient, MetaError};
use cairn_osd_core::OsdCore;
use cairn_proto::convert::{uuid_from, uuid_to};
use cairn_proto::meta;
use cairn_rpc::{Address, AddressError, Local};
use cairn_store::{FormatOptions, Identity, Opened};
use cairn_types::map::Location;
use cairn_types::{Epoch, Incarnation, OsdId};
use mio::{Poll, Token, Waker};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::carrier::{core_pgs, epoch_note};
use crate::control::{Control, Fact, Inbox, MOST_QUESTIONS};
use crate::disk_io::DiskIo;
use crate::faults::inject;
use crate::net::Network;
use crate::shard::{Ended, Shard, now};
use crate::socket::Listener;

/// How an OSD is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// A block device, or a file.
    pub device: PathBuf,
    /// Bytes of the file, when it has to be made.
    pub size: Option<u64>,
    /// It was formatted before: a blank one is another than was meant, and stays blank.
    pub formatted: bool,
    /// The metadata members, host:port.
    pub meta: Vec<String>,
    /// Where it listens: unix:/path or tcp:address:port, the best first.
    pub listen: Vec<String>,
    /// Where it stands.
    pub location: Location,
    /// ssd, hdd, nvme, ...
    pub device_class: String,
    /// Allow an address that is not loopback.
    pub insecure_listen: bool,
    /// Tests only: a file that says what the disk does wrong (see [`cairn_disk::FaultyDisk`]).
    pub disk_faults: Option<PathBuf>,
}

/// Why an OSD does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An address that others can reach, without the flag that allows it.
    #[error(
        "{0} can be reached from other machines, and links are not encrypted yet; use a loopback address or a unix socket, or allow it with --insecure-listen"
    )]
    Exposed(Address),
    /// No address at all.
    #[error("an OSD must listen somewhere; give --listen unix:/path or tcp:address:port")]
    NoAddress,
    /// It cannot listen there.
    #[error("cannot listen on {0}: {1}")]
    Listen(Address, std::io::Error),
    /// The device cannot be opened.
    #[error("cannot open the device: {0}")]
    Disk(#[from] cairn_disk::Error),
    /// It should have been an OSD.
    #[error(
        "{0} was made an OSD and is blank now: another disk, or a directory whose filesystem is not mounted; nothing was \
         written to it"
    )]
    Blank(PathBuf),
    /// The device cannot be used.
    #[error("cannot use the device: {0}")]
    Store(#[from] cairn_store::Error),
    /// The metadata service refused or cannot be reached.
    #[error("cannot register with the metadata service: {0}")]
    Meta(#[from] MetaError),
    /// The metadata service answered nonsense.
    #[error("the metadata service sent an unreadable answer: {0}")]
    Unreadable(String),
    /// Threads, polls and wakers.
    #[error("cannot start the loop: {0}")]
    Loop(std::io::Error),
    /// The life ended by itself.
    #[error("{0}")]
    Ended(String),
}

/// Serves until `shutdown`, or until this life must end.
///
/// # Errors
/// See [`Error`]. After one, starting again is safe: only the disk is believed.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let addresses = addresses(&config)?;
    let (disk, opened) = open(&config).await?;
    let (disk, _faults) = match config.disk_faults.clone() {
        Some(file) => {
            let (disk, guard) = inject(disk, file);
            (disk, Some(guard))
        }
        None => (disk, None),
    };
    // Before anybody hears of this life: whoever dials it at once would be told that nobody is there.
    let listeners = listen(addresses)?;
    let client = MetaClient::new(&config.meta)?;
    let registered = tokio::select! {
        registered = register(&config, &client, disk.as_ref(), opened) => registered?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let maps = client.watch_map();
    serve(registered, disk, listeners, client, maps, shutdown).await
}

/// An OSD that the metadata service knows.
struct Registered {
    opened: Opened,
    osd: OsdId,
    incarnation: Incarnation,
    cluster: Uuid,
    epoch: Epoch,
}

fn addresses(config: &Config) -> Result<Vec<Address>, Error> {
    let addresses: Vec<Address> = config.listen.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    if addresses.is_empty() {
        return Err(Error::NoAddress);
    }
    if let Some(exposed) = addresses.iter().find(|address| !address.is_local()) {
        if !config.insecure_listen {
            return Err(Error::Exposed(exposed.clone()));
        }
        tracing::warn!(address = %exposed, "whoever reaches this address can read and write every volume");
    }
    Ok(addresses)
}

fn listen(addresses: Vec<Address>) -> Result<Vec<Listener>, Error> {
    let bind = |address| Listener::bind(&address).map_err(|error| Error::Listen(address, error));
    addresses.into_iter().map(bind).collect()
}

async fn open(config: &Config) -> Result<(Arc<dyn Disk>, Opened), Error> {
    let options = OpenOptions { path: config.device.clone(), create_len: config.size, read_only: false };
    let formatted = config.formatted;
    let work = move || -> Result<(Arc<dyn Disk>, Opened), Error> {
        let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(&options)?);
        let opened = match cairn_store::open(disk.as_ref(), cairn_store::Config::default()) {
            Err(cairn_store::Error::NotFormatted) if formatted => return Err(Error::Blank(options.path)),
            Err(cairn_store::Error::NotFormatted) => {
                tracing::info!(device = %options.path.display(), "formatting");
                let format = FormatOptions { osd_uuid: Uuid::new_v4(), ring_len: None, force: false };
                cairn_store::format(disk.as_ref(), &format)?;
                cairn_store::open(disk.as_ref(), cairn_store::Config::default())?
            }
            other => other?,
        };
        Ok((disk, opened))
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Ended(error.to_string()))?
}

/// Registers this life and writes it on the disk before anything is done under it (I16).
async fn register(
    config: &Config,
    client: &MetaClient,
    disk: &dyn Disk,
    mut opened: Opened,
) -> Result<Registered, Error> {
    let identity = *opened.store.identity();
    let known = identity.osd.is_some();
    let request = meta::RegisterOsdRequest {
        mutation: None,
        uuid: uuid_to(identity.osd_uuid),
        cluster: if known { uuid_to(identity.cluster) } else { bytes::Bytes::new() },
        id: identity.osd.map(|osd| osd.0),
        last_incarnation: identity.incarnation.0,
        addresses: config.listen.clone(),
        location: Some((&config.location).into()),
        device_class: config.device_class.clone(),
        capacity: opened.store.usage().capacity,
        protocol: u32::from(cairn_wire::PROTOCOL.max),
        memories: memories(&opened),
    };
    let reply = client.register_osd(request).await?;
    let cluster =
        uuid_from("the cluster's uuid", &reply.cluster).map_err(|error| Error::Unreadable(error.to_string()))?;
    let (osd, incarnation) = (OsdId(reply.id), Incarnation(reply.incarnation));
    let identity = Identity { cluster, osd_uuid: identity.osd_uuid, osd: Some(osd), incarnation };
    cairn_store::write_identity(disk, &mut opened.store, identity)?;
    tracing::info!(%osd, %incarnation, replayed = opened.replayed, "registered");
    Ok(Registered { opened, osd, incarnation, cluster, epoch: Epoch(reply.epoch) })
}

/// The newest configuration of each PG that the disk has seen.
fn memories(opened: &Opened) -> Vec<meta::PgMemory> {
    let memory = |(id, pg): (&cairn_types::PgId, &cairn_store::LoadedPg)| {
        let known = cairn_osd_core::remembered(&pg.attributes)?;
        let isr = known.isr.iter().map(|osd| osd.0).collect();
        Some(meta::PgMemory { pg: Some((*id).into()), c: known.c.0, isr, born: known.born.map(Into::into) })
    };
    opened.pgs.iter().filter_map(memory).collect()
}

async fn serve(
    registered: Registered,
    disk: Arc<dyn Disk>,
    listeners: Vec<Listener>,
    client: MetaClient,
    maps: MapWatch,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let Registered { opened, osd, incarnation, cluster, epoch } = registered;
    let poll = Poll::new().map_err(Error::Loop)?;
    let waker = Arc::new(Waker::new(poll.registry(), Token(0)).map_err(Error::Loop)?);
    let inbox = Arc::new(Inbox::new(Arc::clone(&waker)));
    let local = Local { cluster, osd, incarnation, shards: 1, epoch, features: 0 };
    let registry = poll.registry().try_clone().map_err(Error::Loop)?;
    let network = Network::new(registry, listeners, local).map_err(Error::Loop)?;
    let disk_io = DiskIo::start(disk, BufferPool::new(BUFFERS), waker).map_err(Error::Loop)?;

    let core_config = cairn_osd_core::Config::new(osd, incarnation, epoch);
    let seen = epoch_note(&opened.store);
    // The seed only spreads heartbeats: what identifies this life is as good as random.
    let seed = u64::from(osd.0) << 32 | incarnation.0;
    let (core, damaged) = OsdCore::load(core_config, seed, now(), seen, core_pgs(opened.pgs));
    for (pg, error) in damaged {
        tracing::error!(%pg, %error, "this group's records make no sense; it will be filled anew");
    }
    for (object, offset) in opened.lost {
        tracing::error!(%object, offset, "a block rotted in the log; it will be repaired from a peer");
    }
    let (ask, questions) = mpsc::channel(MOST_QUESTIONS);
    let control = Control { client, osd, incarnation, inbox: Arc::clone(&inbox) };
    let control = tokio::spawn(control.run(questions, maps));
    let stop = tokio::spawn({
        let (inbox, shutdown) = (Arc::clone(&inbox), shutdown);
        async move {
            shutdown.cancelled().await;
            inbox.put(Fact::Shutdown);
        }
    });
    let shard = Shard::new(osd, poll, network, opened.store, core, disk_io, inbox, ask);
    let (done, ended) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("shard-0".into()).spawn(move || {
        // Nobody waits for the answer when the whole process is ending.
        let _ = done.send(shard.run());
    });
    let thread = thread.map_err(Error::Loop)?;
    let ended = ended.await;
    stop.abort();
    control.abort();
    if thread.join().is_err() {
        return Err(Error::Ended("the loop panicked; see the log".into()));
    }
    match ended {
        Ok(Ended::Shutdown) => Ok(()),
        Ok(Ended::Failed(why)) => Err(Error::Ended(why)),
        Err(_) => Err(Error::Ended("the loop panicked; see the log".into())),
    }
}

/// Bytes of read buffers that are kept for use again.
const BUFFERS: usize = 8 << 20;
