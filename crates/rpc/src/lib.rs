//! Framed data-path connections: dial, deadlines, backpressure.
