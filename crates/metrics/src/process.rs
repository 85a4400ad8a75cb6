//! What the kernel says of this process, read when the page is.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Kernel ticks per second, as `/proc` counts them on every Linux.
const TICKS: f64 = 100.0;
const PAGE_BYTES: i64 = 4096;

/// The process itself.
#[derive(Debug)]
pub(crate) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Some((cpu_s, threads, resident)) = stat() else { return Ok(()) };
        let cpu = ConstCounter::new(cpu_s);
        let to = encoder.encode_descriptor("process_cpu_seconds", "User and system time", None, cpu.metric_type())?;
        cpu.encode(to)?;
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let gauges = [
            ("process_threads", "Threads", threads),
            ("process_resident_memory_bytes", "Resident memory", resident),
            ("process_open_fds", "Open file descriptors", i64::try_from(files).unwrap_or(i64::MAX)),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// CPU seconds, threads, resident bytes.
fn stat() -> Option<(f64, i64, i64)> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in brackets, may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<i64>().ok());
    let cpu_s = (number(11)? + number(12)?) as f64 / TICKS;
    Some((cpu_s, number(17)?, number(21)? * PAGE_BYTES))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_tells_of_this_process() {
        let (cpu_s, threads, resident) = super::stat().unwrap();
        assert!(cpu_s >= 0.0 && threads >= 1 && resident > 100 << 10, "{cpu_s} {threads} {resident}");
    }
}
