//! One placement group: order, replicate, recover, as a state machine without I/O.
