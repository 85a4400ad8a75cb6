//! The server on a real etcd, with the clients that people and programs use: the real kubectl, and the library that
//! the controllers are written with.

mod clients;
mod kubectl;
mod stand;
mod streams;
