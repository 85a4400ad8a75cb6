//! Commits per second of a cluster in one process, over real sockets and disks with real syncs: many clients, each
//! putting one small value after the other. Fixed keys, no randomness.
//!
//! `cargo bench -p cairn-meta --bench commits -- [MEMBERS] [CLIENTS] [SECONDS]`; without arguments it runs for a moment,
//! as a test that the bench works.

use std::time::{Duration, Instant};

use cairn_meta::Config;
use cairn_proto::etcdserverpb::PutRequest;
use cairn_proto::etcdserverpb::kv_client::KvClient;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

#[tokio::main]
async fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let [members, clients, seconds] = [(0, 3), (1, 64), (2, 0)].map(|(at, or)| numbers.get(at).copied().unwrap_or(or));
    let time = if seconds == 0 { Duration::from_millis(300) } else { Duration::from_secs(seconds) };
    let dir = tempfile::tempdir_in(std::env::var("CAIRN_BENCH_DIR").unwrap_or_else(|_| "/tmp".into())).unwrap();
    let mut listeners = Vec::new();
    for _ in 0..members {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let stop = CancellationToken::new();
    let mut running = Vec::new();
    for (id, listener) in (1..).zip(listeners) {
        let listed = (1..).zip(addresses.clone()).collect();
        let own = dir.path().join(format!("member-{id}"));
        let config = Config::new(id, own, addresses[id as usize - 1].clone(), listed);
        running.push(tokio::spawn(cairn_meta::serve(config, listener, stop.clone())));
    }
    let mut latencies = run_clients(&addresses, clients, time).await;
    latencies.sort_unstable();
    let (count, at) = (latencies.len(), |q: f64| latencies[((latencies.len() - 1) as f64 * q) as usize]);
    println!(
        "{members} members, {clients} clients, {:?}: {:.0} commits/s, latency p50 {:?} p99 {:?} max {:?}",
        time,
        count as f64 / time.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    stop.cancel();
    for member in running {
        member.await.unwrap().unwrap();
    }
}

async fn run_clients(addresses: &[String], clients: u64, time: Duration) -> Vec<Duration> {
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let address = &addresses[client as usize % addresses.len()];
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        tasks.spawn(async move {
            let mut kv = KvClient::new(channel);
            let put = |n: u64| PutRequest {
                key: format!("bench/{client}/{}", n % 100).into(),
                value: vec![b'v'; 100].into(),
                ..PutRequest::default()
            };
            let began = Instant::now();
            while let Err(status) = kv.put(put(0)).await {
                assert!(began.elapsed() < Duration::from_secs(20), "the cluster does not begin: {status}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let (start, mut latencies) = (Instant::now(), Vec::new());
            for n in 0.. {
                let began = Instant::now();
                if began - start >= time {
                    break;
                }
                kv.put(put(n)).await.unwrap();
                latencies.push(began.elapsed());
            }
            latencies
        });
    }
    let mut all = Vec::new();
    while let Some(latencies) = tasks.join_next().await {
        all.extend(latencies.unwrap());
    }
    all
}
