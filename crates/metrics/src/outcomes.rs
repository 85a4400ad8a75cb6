//! Pieces of work with a name, a result and a duration: requests, reconciliations, calls.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::page::installed;

/// Upper bounds of the buckets, in seconds.
const BUCKETS: [f64; 12] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    what: String,
    result: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct What {
    what: String,
}

fn seconds() -> Histogram {
    Histogram::new(BUCKETS)
}

/// Counts pieces of work on this process' page. The names and results must be few: each is a line of the page.
#[derive(Clone, Debug)]
pub struct Outcomes {
    done: Family<Outcome, Counter>,
    seconds: Family<What, Histogram, fn() -> Histogram>,
}

impl Outcomes {
    /// `cairn_<name>_total` and `cairn_<name>_seconds`; `None` where there is no page.
    #[must_use]
    pub fn on_page(name: &str, help: &str) -> Option<Self> {
        let page = installed()?;
        let seconds = Family::new_with_constructor(seconds as fn() -> Histogram);
        let outcomes = Self { done: Family::default(), seconds };
        page.add(name, help, outcomes.done.clone());
        page.add(&format!("{name}_seconds"), "How long it took", outcomes.seconds.clone());
        Some(outcomes)
    }

    /// One more of `what` ended like this after so long.
    pub fn done(&self, what: &str, result: &str, took: Duration) {
        let outcome = Outcome { what: what.to_owned(), result: result.to_owned() };
        self.done.get_or_create(&outcome).inc();
        self.seconds.get_or_create(&What { what: what.to_owned() }).observe(took.as_secs_f64());
    }
}
