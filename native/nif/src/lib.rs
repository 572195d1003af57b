//! The Erlang side of the mesh pool: terms in, messages out. It has never heard of QUIC; what a
//! call means is decided in the crate `mesh`.
//!
//! No function here waits: each decodes, hands the work on and returns. Work that takes time runs
//! on the runtime (`runtime`), and its outcome is posted as one message (`reply`).

mod address;
mod atoms;
mod data;
#[cfg(feature = "defects")]
mod defects;
mod direct;
mod events;
mod inlet;
mod library;
mod nifs;
mod options;
mod readers;
mod reply;
mod resources;
mod runtime;
mod settings;
mod terms;

rustler::init!("macula_gateway_mesh_nif", load = library::load);
